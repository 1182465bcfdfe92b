//! Which replicas of OM and SCM there are, remembered over restarts.
//!
//! The configuration names those the cluster was made with. Members that were added later are known to Raft alone: a node
//! that starts when the first ones are gone would find nobody. So every node asks now and then, and writes what it heard
//! beside its data.
//!
//! Invariants:
//! * The file is a hint: who it names still has to answer with the cluster's key, and leads or says who does.
//! * A member that left stays for as long as nobody else can be asked; at most [`CONTACTS_MAX`] are remembered.
//!
//! Not here: who leads (the crate `client`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::failover::{OmClient, ScmClient};
use client::service::{call_om, call_scm};
use wire::group::GroupInfo;
use wire::host::HostPort;
use wire::operator::GetGroup;

use crate::identity::{read_json, write_json};

/// Members change by hand, a few times a year; a node that starts hears of them soon.
const ASK_INTERVAL: Duration = Duration::from_secs(10);
/// Both groups together, five replicas each at most.
const CONTACTS_MAX: usize = 10;

/// Where they are remembered.
pub(crate) fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("contacts.json")
}

/// Those remembered. A file that cannot be read is none: the configuration still stands.
pub(crate) fn read(file: &Path) -> Vec<HostPort> {
    match read_json::<Vec<HostPort>>(file) {
        Ok(contacts) => contacts.unwrap_or_default().into_iter().take(CONTACTS_MAX).collect(),
        Err(error) => {
            tracing::warn!(%error, "contacts are not remembered");
            Vec::new()
        }
    }
}

/// Asks for the members now and then, tells the clients, and remembers them. When nobody answers it says whom it asked: the
/// configuration may name the wrong ones.
pub(crate) async fn keep(om: Arc<OmClient>, scm: Arc<ScmClient>, configured: Vec<HostPort>, file: PathBuf) {
    let mut written: BTreeSet<HostPort> = read(&file).into_iter().collect();
    let mut is_silence_told = false;
    loop {
        let (of_om, of_scm) = (call_om(&*om, GetGroup {}).await, call_scm(&*scm, GetGroup {}).await);
        let is_silence = of_om.is_err() && of_scm.is_err();
        if let (Err(error), false) = (&of_scm, is_silence_told)
            && is_silence
        {
            let asked: Vec<&str> = configured.iter().map(HostPort::as_str).collect();
            tracing::warn!(
                asked = asked.join(", "),
                %error,
                "no node with OM and SCM answers: do they run, and are the addresses of the [[meta]] entries right?"
            );
        }
        is_silence_told = is_silence;
        let groups = [of_om.ok(), of_scm.ok()];
        let found: BTreeSet<HostPort> = groups.iter().flatten().flat_map(addresses).collect();
        for address in &found {
            om.learn(address);
            scm.learn(address);
        }
        // Half an answer would forget the other half; a replica that waits to be added knows no members.
        let is_whole = groups.iter().all(|group| group.as_ref().is_some_and(|group| group.leader.is_some()));
        if is_whole && found != written {
            match write_json(&file, &found.iter().take(CONTACTS_MAX).collect::<Vec<_>>()) {
                Ok(()) => written = found,
                Err(error) => tracing::warn!(error = format!("{error:#}"), "contacts are not remembered"),
            }
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

fn addresses(group: &GroupInfo) -> impl Iterator<Item = HostPort> + '_ {
    group.members.iter().map(|member| member.member.address.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_no_contact() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        assert!(read(&file).is_empty());
        std::fs::write(&file, "{").unwrap();
        assert!(read(&file).is_empty());
        let contacts = vec!["a:1".parse::<HostPort>().unwrap(), "b:2".parse().unwrap()];
        write_json(&file, &contacts).unwrap();
        assert_eq!(read(&file), contacts);
    }
}
