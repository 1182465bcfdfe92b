//! The cluster's own certificate authority, and the certificates of its nodes.
//!
//! Every node proves itself by the cluster key with each call; certificates make the channel private and tie it to the
//! host. They live for ten years: one that ran out by itself would stop a cluster at night. A node's is replaced by
//! making the node's files anew.
//!
//! Not here: using them (the client crate's TLS).

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use wire::clock;

/// How long certificates are good.
const YEARS: i16 = 10;
const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";

/// A certificate authority with its key.
pub(crate) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Draws the authority of a cluster.
    pub(crate) fn random(cluster: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("draw the authority's key")?;
        let params = authority_params(cluster)?;
        let certificate = params.self_signed(&key).context("sign the authority's certificate")?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Reads it from where [`Self::write`] left it.
    pub(crate) fn load(dir: &Path, cluster: &str) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let file = dir.join(name);
            fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
        };
        let key = KeyPair::from_pem(&read(KEY_FILE)?).context("ca.key holds no key")?;
        // What an issuer needs of itself, its name and key, follows from the cluster id and the key.
        Ok(Self {
            certificate: read(CERTIFICATE_FILE)?,
            issuer: Issuer::new(authority_params(cluster)?, key),
        })
    }

    /// Writes the key and the certificate.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        write_private(&dir.join(KEY_FILE), &self.issuer.key().serialize_pem())?;
        fs::write(dir.join(CERTIFICATE_FILE), &self.certificate).context("write ca.pem")
    }

    /// Its own certificate, in PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for the node `name` under these host names and addresses, and its key, both in PEM.
    pub(crate) fn sign(&self, name: &str, hosts: Vec<String>) -> anyhow::Result<(String, String)> {
        let key = KeyPair::generate().context("draw the node's key")?;
        let mut params = CertificateParams::new(hosts).context("names of the certificate")?;
        set_validity(&mut params)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Nodes call one another: each is a server and a client.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).context("sign the node's certificate")?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn authority_params(cluster: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    set_validity(&mut params)?;
    params.distinguished_name.push(DnType::CommonName, format!("ferrozone cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// From yesterday, since clocks differ, for [`YEARS`].
fn set_validity(params: &mut CertificateParams) -> anyhow::Result<()> {
    const DAY_MS: u64 = 86_400_000;
    let yesterday = i64::try_from(clock::now_ms().saturating_sub(DAY_MS)).context("the clock is far off")?;
    let day = Timestamp::from_millisecond(yesterday).context("the clock is far off")?;
    let day = day.to_zoned(TimeZone::UTC).date();
    // The 29th of February is not in every year.
    let (month, of_month) = (day.month().unsigned_abs(), day.day().min(28).unsigned_abs());
    params.not_before = date_time_ymd(i32::from(day.year()), month, of_month);
    params.not_after = date_time_ymd(i32::from(day.year() + YEARS), month, of_month);
    Ok(())
}

/// Writes a text that its owner alone may read; refuses to replace one.
pub(crate) fn write_private(file: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut handle = options.write(true).create_new(true).mode(0o600).open(file)?;
        handle.write_all(text.as_bytes())?;
        handle.sync_all()
    };
    write().with_context(|| format!("write {}", file.display()))
}
