//! Orders of SCM to datanodes, and those among them that come too late: meant for a former life of the replica.
//!
//! While it is on, a deletion reaches a datanode as if it had been ordered in the life before this one, and the real order
//! is lost; SCM repeats it later. A datanode must leave the replica alone: names on disks and numbers of transactions are
//! the same in both lives, only the generation tells them apart. That it obeyed shows in its next report.
//!
//! Not here: when it is on (`faults`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use platform::node::NodeIndex;
use wire::ids::{ContainerId, Generation};
use wire::scm::{DatanodeAction, DatanodeCommand, ReplicaCondition, ReplicaReport, ScmReply};

/// See the module.
#[derive(Default)]
pub(crate) struct Orders {
    is_on: AtomicBool,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    replicas: BTreeMap<(NodeIndex, ContainerId, Generation), Known>,
    wrong: Vec<String>,
}

/// What is known of a whole replica.
#[derive(Default)]
struct Known {
    /// The last deletion whose real order reached it.
    delivered: u64,
    /// The first deletion after it whose order came as one of another life.
    aged: Option<u64>,
}

impl Orders {
    pub(crate) fn set_on(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
    }

    /// Deletions that were done though they were ordered of another life.
    pub(crate) fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().wrong)
    }

    /// An answer to a report of `node` on its way back.
    pub(crate) fn pass(&self, node: NodeIndex, reports: &[ReplicaReport], reply: &mut ScmReply) {
        let mut shared = self.shared.lock();
        for report in reports {
            shared.check(node, report);
        }
        let commands = match reply {
            ScmReply::Heartbeat(heartbeat) => &mut heartbeat.commands,
            ScmReply::RegisterDatanode(registered) => &mut registered.commands,
            _ => return,
        };
        for command in commands {
            let DatanodeAction::DeleteBlocks { transaction, .. } = &command.action else { continue };
            let (transaction, is_on) = (*transaction, self.is_on.load(Ordering::Relaxed));
            // What is still being copied inherits deletions without an order.
            let Some(known) = shared.replicas.get_mut(&(node, command.container, command.generation)) else {
                continue;
            };
            if is_on && transaction > known.delivered {
                known.aged.get_or_insert(transaction);
                age(command);
            } else {
                known.delivered = known.delivered.max(transaction);
                known.aged = known.aged.filter(|aged| *aged > transaction);
            }
        }
    }
}

impl Shared {
    fn check(&mut self, node: NodeIndex, report: &ReplicaReport) {
        let replica = (node, report.container, report.generation);
        if report.condition != ReplicaCondition::Whole {
            return;
        }
        let known = self.replicas.entry(replica).or_default();
        known.delivered = known.delivered.max(report.deletion_done);
        if let Some(aged) = known.aged.filter(|aged| report.deletion_done >= *aged) {
            known.aged = None;
            self.wrong.push(format!(
                "datanode {node} did deletion {aged} of container {} in life {:?}, which was ordered of another life",
                report.container, report.generation
            ));
        }
    }
}

/// Makes it an order of the life before.
fn age(command: &mut DatanodeCommand) {
    command.generation = Generation(command.generation.0.wrapping_sub(1));
}
