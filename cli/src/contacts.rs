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
/// Asked in vain so often, they are named in the log at most this seldom: once an hour.
const ASKS_BETWEEN_WORDS_MAX: u32 = 360;
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
    let mut silence = Silence::default();
    loop {
        let (of_om, of_scm) = (call_om(&*om, GetGroup {}).await, call_scm(&*scm, GetGroup {}).await);
        let is_silence = of_om.is_err() && of_scm.is_err();
        if let Err(error) = &of_scm
            && silence.is_to_be_told(is_silence)
        {
            let asked: Vec<&str> = configured.iter().map(HostPort::as_str).collect();
            tracing::warn!(
                asked = asked.join(", "),
                asks = silence.asks,
                %error,
                "no node with OM and SCM answers: start them, or see whether this host reaches them; if they have other \
                 addresses now, write these into the [[meta]] entries of this node's configuration and start it anew"
            );
        }
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

/// Asks in vain, one after another.
#[derive(Debug, Default)]
struct Silence {
    asks: u32,
    /// The ask at which it is told next.
    next: u32,
}

impl Silence {
    /// Notes an ask: at first, then at growing intervals it is worth a word that nobody answers.
    fn is_to_be_told(&mut self, is_silence: bool) -> bool {
        if !is_silence {
            *self = Self::default();
            return false;
        }
        self.asks = self.asks.saturating_add(1);
        let is_now = self.asks >= self.next.max(1);
        if is_now {
            self.next = self.asks.saturating_add(self.asks.min(ASKS_BETWEEN_WORDS_MAX));
        }
        is_now
    }
}

fn addresses(group: &GroupInfo) -> impl Iterator<Item = HostPort> + '_ {
    group.members.iter().map(|member| member.member.address.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_at_growing_intervals_and_anew_after_an_answer() {
        let mut silence = Silence::default();
        let told: Vec<u32> = (1..=1200).filter(|_| silence.is_to_be_told(true)).collect();
        assert_eq!(told, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 872]);
        assert!(!silence.is_to_be_told(false));
        assert!(silence.is_to_be_told(true));
    }

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
