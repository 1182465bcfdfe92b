//! Tests of the core over a store in memory: scripts, properties, bytes of the log and of rows.

mod format;
mod property;
mod script;

use std::collections::BTreeMap;

use consensus::{MemoryStore, Rows};
use uuid::Uuid;
use wire::block::{DatanodeAddress, Replication};
use wire::ids::{ContainerId, DatanodeId, Generation, LeaseId, LocalId};

use super::{Reply, apply};
use crate::command::{self, Command};
use crate::schema::{self, TABLES};

/// A state machine without raft.
struct Core {
    store: MemoryStore,
}

impl Core {
    fn new() -> Self {
        Self { store: MemoryStore::new(TABLES) }
    }

    /// Applies a command by way of its bytes, as the log does, twice over: the second changes nothing.
    fn apply_twice(&mut self, command: &Command) -> Reply {
        let reply = self.apply(command);
        let state_hash = self.store.state_hash();
        let repeated = self.apply(command);
        assert_eq!(self.store.state_hash(), state_hash, "a repeat of {command:?} changed rows");
        assert_eq!(repeated, reply, "a repeat of {command:?}");
        reply
    }

    fn apply(&mut self, command: &Command) -> Reply {
        let command = Command::decode(&command.encode()).unwrap();
        self.store.write(|batch| apply(batch, command)).unwrap()
    }

    fn container(&self, id: u64) -> schema::ContainerRow {
        schema::container(&self.store.view(), ContainerId(id)).unwrap().unwrap()
    }

    /// Deletion transactions by container and number.
    fn deletions(&self) -> BTreeMap<(u64, u64), Vec<u64>> {
        let mut found = BTreeMap::new();
        let view = self.store.view();
        view.scan(schema::DELETION, &[], None, &mut |row_key, value| {
            let (container, transaction) = schema::parse_deletion_key(row_key).unwrap();
            let row: schema::DeletionRow = schema::decode(schema::DELETION, row_key, value).unwrap();
            let blocks = row.blocks.into_iter().map(|block| block.0).collect();
            found.insert((container.0, transaction), blocks);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        found
    }
}

fn datanode(number: u64) -> DatanodeId {
    DatanodeId(Uuid::from_u128(u128::from(number)))
}

fn register(number: u64) -> Command {
    Command::RegisterDatanode(command::RegisterDatanode {
        datanode: DatanodeAddress {
            id: datanode(number),
            address: Some(std::net::SocketAddr::from(([127, 0, 0, 1], 7000)).into()),
        },
        incarnation: 1,
        disks: Vec::new(),
        now_ms: 1000,
        node: String::new(),
        rack: String::new(),
    })
}

fn grant(request: u64, container: Option<u64>, members: &[u64], now_ms: u64) -> Command {
    Command::GrantLease(command::GrantLease {
        request,
        replication: if members.len() > 1 { Replication::Three } else { Replication::One },
        container: container.map(ContainerId),
        members: members.iter().map(|number| datanode(*number)).collect(),
        count: 100,
        now_ms,
    })
}

fn close(container: u64, now_ms: u64) -> Command {
    Command::CloseContainers(command::CloseContainers { containers: vec![ContainerId(container)], now_ms })
}

fn seal(container: u64, members: &[u64]) -> Command {
    let sealed = members.iter().map(|number| (datanode(*number), Generation(1))).collect();
    Command::SealContainer(command::SealContainer { container: ContainerId(container), sealed })
}

fn delete(batch: u64, part: u32, container: u64, blocks: &[u64]) -> Command {
    let blocks = blocks.iter().map(|local| LocalId(*local)).collect();
    let deletions = vec![command::DeletionPart { container: ContainerId(container), blocks }];
    Command::LogDeletions(command::LogDeletions { batch, fingerprint: batch * 31, part, deletions })
}

fn pass(container: u64, done: &[(u64, u64)]) -> Command {
    let done = done.iter().map(|(number, through)| (datanode(*number), Generation(1), *through)).collect();
    Command::PassDeletions(command::PassDeletions { container: ContainerId(container), done })
}

fn give_back(leases: &[u64]) -> Command {
    let leases = leases.iter().map(|id| LeaseId(*id)).collect();
    Command::ReturnLeases(command::ReturnLeases { leases })
}

fn add_token_key(after: u32, now_ms: u64) -> Command {
    let expires_ms = now_ms + 2000;
    Command::AddTokenKey(command::AddTokenKey { secret: [7; 32], expires_ms, after, now_ms })
}

fn life(number: u64, generation: u64) -> (DatanodeId, Generation) {
    (datanode(number), Generation(generation))
}

fn lives(members: &[(u64, u64)]) -> Vec<(DatanodeId, Generation)> {
    members.iter().map(|(number, generation)| life(*number, *generation)).collect()
}

fn degrade(container: u64, generation: u64, acknowledged: &[u64], now_ms: u64) -> Command {
    Command::DegradeContainer(command::DegradeContainer {
        container: ContainerId(container),
        generation: Generation(generation),
        acknowledged: acknowledged.iter().map(|number| datanode(*number)).collect(),
        now_ms,
    })
}

fn retire(container: u64) -> Command {
    Command::RetireContainer(command::RetireContainer { container: ContainerId(container) })
}

fn invalidate(container: u64, replicas: &[(u64, u64)], now_ms: u64) -> Command {
    let (container, replicas) = (ContainerId(container), lives(replicas));
    Command::InvalidateReplicas(command::InvalidateReplicas { container, replicas, now_ms })
}

fn begin_copy(container: u64, source: (u64, u64), target: u64) -> Command {
    let (container, source) = (ContainerId(container), life(source.0, source.1));
    Command::BeginCopy(command::BeginCopy { container, source, target: datanode(target) })
}

fn end_copy(container: u64, target: (u64, u64), deletion_done: u64) -> Command {
    let (datanode, generation) = life(target.0, target.1);
    let container = ContainerId(container);
    Command::EndCopy(command::EndCopy { container, datanode, generation, deletion_done })
}

fn delete_replicas(container: u64, replicas: &[(u64, u64)]) -> Command {
    let (container, replicas) = (ContainerId(container), lives(replicas));
    Command::DeleteReplicas(command::DeleteReplicas { container, replicas })
}

fn forget_replicas(container: u64, replicas: &[(u64, u64)]) -> Command {
    let (container, replicas) = (ContainerId(container), lives(replicas));
    Command::ForgetReplicas(command::ForgetReplicas { container, replicas })
}

fn raise(containers: &[u64], now_ms: u64) -> Command {
    let containers = containers.iter().map(|id| ContainerId(*id)).collect();
    Command::RaiseContainers(command::RaiseContainers { containers, now_ms })
}

fn set_datanode(number: u64, operational: schema::OperationalState, until_ms: Option<u64>) -> Command {
    let (datanode, maintenance_until_ms) = (datanode(number), until_ms);
    let others_in_service = None;
    Command::SetDatanode(command::SetDatanode {
        datanode,
        operational,
        maintenance_until_ms,
        others_in_service,
    })
}

/// Taken out of service, if so many others stay.
fn decommission(number: u64, others: u64) -> Command {
    Command::SetDatanode(command::SetDatanode {
        datanode: datanode(number),
        operational: schema::OperationalState::Decommissioning,
        maintenance_until_ms: None,
        others_in_service: Some(others),
    })
}

fn forget_datanode(number: u64, containers: &[u64], is_last: bool) -> Command {
    let containers = containers.iter().map(|id| ContainerId(*id)).collect();
    Command::ForgetDatanode(command::ForgetDatanode { datanode: datanode(number), containers, is_last })
}
