//! Terms of leadership: what a leader knows and does begins anew with each, and ends with it.
//!
//! With a term come a fresh `LeaderMemory` and the workers; at its end these are dropped where they stand. That is
//! harmless between two steps: every step is a logged command that settles itself in apply, or a call of SCM that SCM
//! answers the same when it comes again (see `worker`). A command that a leader proposed in its term stands in the log
//! before everything of a later term, or nowhere.
//!
//! Not here: who leads, and when a term begins and ends (consensus).

use std::sync::Weak;

use consensus::Terms;

use crate::server::Om;

/// Starts and stops the workers as leadership comes and goes, until told to stop or nobody needs this OM any more.
pub(crate) async fn follow(om: Weak<Om>, mut terms: Terms) {
    while let Some(term) = terms.begun().await {
        let Some(leading) = om.upgrade() else { return };
        let memory = leading.memory_of(term);
        leading.workers().start(&leading, &memory);
        drop(leading);
        tracing::info!(term, "om leads");
        let goes_on = terms.ended(term).await;
        // Nobody left: its workers hold no more than a weak reference, and end by themselves.
        let Some(led) = om.upgrade() else { return };
        led.workers().stop().await;
        if !goes_on {
            return;
        }
        tracing::info!(term, "om leads no longer");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use async_trait::async_trait;
    use client::service::{CallError, OmService, ScmService, call_om};
    use consensus::{Group, GroupConfig, Leadership};
    use parking_lot::Mutex;
    use platform::watch;
    use tempfile::TempDir;
    use wire::block::{DatanodeAddress, Pipeline, Replication, TokenKey};
    use wire::ids::{ClusterId, ContainerId, DatanodeId, Generation, LeaseId, LocalId, PipelineId};
    use wire::om::{CreateBucket, GetBucket, OmCall, OpenSession, RenewSession, TakeLoan, WriteContext};
    use wire::operator::GetGroup;
    use wire::scm::{Lease, LeasesSynced, ScmReply, ScmRequest};
    use wire::status::{Failure, Status};

    use super::*;
    use crate::config::OmConfig;
    use crate::state::OmState;
    use crate::state::tests::{block_id, commit_key, entry_of, user};

    /// Grants one lease, and remembers what leases OM named at each comparison.
    #[derive(Default)]
    struct Scm {
        synced: Mutex<Vec<Vec<LeaseId>>>,
    }

    #[async_trait]
    impl ScmService for Scm {
        async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
            match request {
                ScmRequest::SyncLeases(request) => {
                    self.synced.lock().push(request.held);
                    let token_keys = vec![TokenKey { id: 1, secret: [5; 32], expires_ms: u64::MAX }];
                    let (end, unknown_to_om) = (Vec::new(), Vec::new());
                    Ok(ScmReply::SyncLeases(LeasesSynced { end, unknown_to_om, token_keys }))
                }
                ScmRequest::GrantLease(request) => {
                    let members = vec![DatanodeAddress { id: DatanodeId::default(), address: None }];
                    let pipeline = Pipeline { id: PipelineId(1), replication: request.replication, members };
                    Ok(ScmReply::GrantLease(Lease {
                        id: LeaseId(1),
                        container: ContainerId(1),
                        generation: Generation(1),
                        first: LocalId(1),
                        count: 65_536,
                        pipeline,
                    }))
                }
                ScmRequest::ListRetirable(_) => Ok(ScmReply::ListRetirable(Vec::new())),
                other => panic!("om asked scm {}", other.name()),
            }
        }
    }

    async fn call<C: OmCall>(om: &Arc<Om>, request: C) -> Result<C::Reply, CallError> {
        call_om(om.as_ref() as &dyn OmService, request).await
    }

    fn is_refused<T>(outcome: &Result<T, CallError>) -> bool {
        matches!(outcome, Err(CallError::Failed(Failure { status: Status::NotLeader, .. })))
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("waited in vain until {what}");
    }

    /// A group of one, whose leadership comes and goes as the test says.
    async fn open(dir: &TempDir, scm: Arc<Scm>) -> (Arc<Om>, watch::Sender<Leadership>) {
        let config = OmConfig {
            lease_interval_ms: 10,
            log_segment_bytes: 1 << 20,
            ..OmConfig::new(
                consensus::directory(&dir.path().join("om")).unwrap(),
                ClusterId(uuid::Uuid::from_u128(7)),
                [3; 32],
            )
        };
        let group_config = GroupConfig {
            log_segment_bytes: config.log_segment_bytes,
            ..GroupConfig::new("om", config.disk.clone(), config.cluster_id.0)
        };
        let opened = platform::task::spawn_blocking(|| Group::open(group_config, OmState::default()));
        let group = opened.await.unwrap().unwrap();
        group.wait_leader().await.unwrap();
        let (sender, leadership) = watch::channel(Leadership { term: 1, is_leading: false, leader: Some(2) });
        (Om::start(config, scm, group, leadership), sender)
    }

    #[tokio::test]
    async fn every_term_begins_anew_and_what_is_in_state_goes_on() {
        let dir = TempDir::new().unwrap();
        let scm = Arc::new(Scm::default());
        let (om, leadership) = open(&dir, scm.clone()).await;
        let nonce = [9; 16];
        assert!(is_refused(&call(&om, OpenSession { nonce }).await), "it does not lead");
        assert!(call(&om, GetGroup {}).await.is_ok(), "every replica tells of the group");
        assert!(scm.synced.lock().is_empty(), "who does not lead does no work");

        leadership.send_replace(Leadership { term: 2, is_leading: true, leader: Some(1) });
        let session = call(&om, OpenSession { nonce }).await.unwrap();
        let context = |sequence| WriteContext { session, sequence, acknowledged: 1 };
        let name = wire::names::BucketName::new("bucket").unwrap();
        let create = CreateBucket {
            context: context(1),
            name: name.clone(),
            owner: user("root"),
            location: String::new(),
        };
        let made = call(&om, create.clone()).await.unwrap();
        let take = TakeLoan {
            context: context(2),
            replication: Replication::One,
            count: 4,
            avoid: Vec::new(),
            avoid_datanodes: Vec::new(),
        };
        let loan = call(&om, take.clone()).await.unwrap();
        let first = om.memory_of(2);
        assert!(first.silent_sessions(&[session], u64::MAX).is_empty());

        leadership.send_replace(Leadership { term: 2, is_leading: false, leader: None });
        assert!(is_refused(&call(&om, GetBucket { name: name.clone() }).await));
        assert!(is_refused(&call(&om, RenewSession { session, acknowledged: 0 }).await));
        // Once the workers have ended, nothing asks SCM any more.
        until("nobody but the test holds the term's memory", || Arc::strong_count(&first) == 2).await;
        let before = scm.synced.lock().len();

        leadership.send_replace(Leadership { term: 4, is_leading: true, leader: Some(1) });
        until("leases are compared at once", || scm.synced.lock().len() > before).await;
        assert_eq!(scm.synced.lock()[before], [LeaseId(1)], "with what is in state");
        assert!(!Arc::ptr_eq(&first, &om.memory_of(4)));
        // A late look at the earlier term changes nothing.
        assert!(Arc::ptr_eq(&om.memory_of(2), &om.memory_of(4)));
        // Repeats are answered as they were under the leader before; its loan is committed under this one.
        assert_eq!(call(&om, create).await.unwrap(), made);
        assert_eq!(call(&om, take).await.unwrap().first, loan.first);
        assert_eq!(call(&om, OpenSession { nonce }).await.unwrap(), session);
        let bucket =
            wire::om::BucketRef { name, id: made.id, config_version: made.config_version, access_version: 0 };
        let block = block_id(loan.container.0, loan.first.0);
        call(&om, commit_key(context(3), bucket, "key", vec![entry_of(block, 10)])).await.unwrap();
        om.shutdown().await;
    }

    #[tokio::test]
    async fn workers_of_two_leaders_at_once_harm_nothing() {
        // A deposed leader that does not know it yet works on with its own memory, beside the next one's workers.
        let dir = TempDir::new().unwrap();
        let scm = Arc::new(Scm::default());
        let (om, leadership) = open(&dir, scm.clone()).await;
        leadership.send_replace(Leadership { term: 2, is_leading: true, leader: Some(1) });
        let deposed = om.memory_of(2);
        let others = crate::worker::Workers::new();
        others.start(&om, &deposed);
        leadership.send_replace(Leadership { term: 3, is_leading: true, leader: Some(1) });
        let session = call(&om, OpenSession { nonce: [1; 16] }).await.unwrap();
        let take = TakeLoan {
            context: WriteContext { session, sequence: 1, acknowledged: 1 },
            replication: Replication::One,
            count: 4,
            avoid: Vec::new(),
            avoid_datanodes: Vec::new(),
        };
        let loan = call(&om, take).await.unwrap();
        let before = scm.synced.lock().len();
        until("both have compared", || scm.synced.lock().len() > before + 4).await;
        // The lease was granted to both and logged twice: it is one.
        assert_eq!(scm.synced.lock().last().unwrap(), &[LeaseId(1)]);
        assert_eq!(om.status().unwrap().lease_ids_left, 65_536 - u64::from(loan.count));
        others.stop().await;
        om.shutdown().await;
    }
}
