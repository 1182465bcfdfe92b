//! TLS of the command line's own S3 requests: which authority a server's certificate is checked by, and under which name.
//!
//! Not here: the handshake (the client crate's TLS), requests (the crate `s3-client`).

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use client::http::tls::Trust;
use s3_client::{Duplex, Handshake, Secure};
use tokio::net::TcpStream;

/// An authority, and the name that certificates are for where it is not the host dialled.
#[derive(Debug)]
pub(crate) struct S3Trust {
    trust: Trust,
    authority: PathBuf,
    name: Option<String>,
}

impl S3Trust {
    /// Trusts what the authorities in a PEM file signed.
    pub(crate) fn open(authority: &Path, name: Option<String>) -> anyhow::Result<Self> {
        let authority = authority.to_owned();
        let trust =
            Trust::open(&authority).with_context(|| format!("use the authority {}", authority.display()))?;
        Ok(Self { trust, authority, name })
    }
}

impl Secure for S3Trust {
    fn secure(&self, host: &str, stream: TcpStream) -> Handshake {
        let name = self.name.clone().unwrap_or_else(|| host.to_owned());
        let (trust, authority) = (self.trust.clone(), self.authority.clone());
        Box::pin(async move {
            let secured = trust.connect(&name, stream).await.map_err(|error| {
                io::Error::other(format!(
                    "{error} (the certificate is checked by {} under the name {name}; --ca PEM names another authority)",
                    authority.display()
                ))
            })?;
            Ok(Box::new(secured) as Box<dyn Duplex>)
        })
    }
}
