//! What SCM asks of its group beyond what consensus of a sole voter answers: who leads, who is a member.
//!
//! Not here: replicas of several (consensus has them not yet).

use consensus::{Group, StateMachine};
use platform::task;
use tokio::sync::watch;
use wire::group::{GroupInfo, Member};

/// Who leads, as this replica knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leadership {
    /// The current term.
    pub(crate) term: u64,
    /// This replica leads and has applied an entry of its term.
    pub(crate) is_leading: bool,
    /// The leader's raft id.
    pub(crate) leader: Option<u64>,
}

/// See the module.
pub(crate) trait GroupExt {
    /// Follows leadership.
    fn leadership(&self) -> watch::Receiver<Leadership>;
    /// A member by its raft id.
    fn member(&self, raft_id: u64) -> Option<Member>;
    /// Where the group stands.
    fn info(&self) -> GroupInfo;
}

impl<M: StateMachine> GroupExt for Group<M> {
    fn leadership(&self) -> watch::Receiver<Leadership> {
        let status = self.status();
        let (sender, receiver) =
            watch::channel(Leadership { term: status.term, is_leading: false, leader: None });
        let group = self.clone();
        task::spawn(async move {
            let led = tokio::select! {
                biased;
                () = sender.closed() => return,
                led = group.wait_leader() => led,
            };
            if led.is_ok() {
                let status = group.status();
                drop(group);
                sender.send_replace(Leadership {
                    term: status.term,
                    is_leading: true,
                    leader: Some(status.leader),
                });
                sender.closed().await;
            }
        });
        receiver
    }

    fn member(&self, _raft_id: u64) -> Option<Member> {
        None
    }

    fn info(&self) -> GroupInfo {
        let status = self.status();
        GroupInfo {
            group: "scm".to_owned(),
            raft_id: 1,
            term: status.term,
            leader: Some(status.leader).filter(|leader| *leader != 0),
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            log_first_index: status.log_first_index,
            log_last_index: status.log_last_index,
            state_hash: format!("{:032x}", status.state_hash),
            members: Vec::new(),
        }
    }
}
