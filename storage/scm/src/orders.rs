//! What datanodes are told: seal, delete blocks, copy, drop.
//!
//! Every order follows from logged rows that no later command takes back: CLOSING never opens again, a deletion
//! transaction stays, DELETING never becomes anything else, a generation is never given twice. So an order of a leader
//! that has lost its quorum, and looks at old rows, does no harm; datanodes refuse it all the same once a later term has
//! spoken. An order is repeated until a report shows its effect.
//!
//! Invariants:
//! * A replica is dropped only if it is logged as DELETING, or if the rows prove that it is none of the container's: its
//!   container is known, its generation was given, and it is not among the replicas.
//!
//! Not here: deciding what becomes of replicas (`replication`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::block::{BlockClaim, BlockOperation, BlockToken, TokenKey};
use wire::ids::{ContainerId, DatanodeId, LocalId, SessionId};
use wire::limits::{BLOCK_TOKEN_LIFE_MS, LEASE_IDS};
use wire::scm::{ContainerState, DatanodeAction, DatanodeCommand, GENERATION_UNKNOWN, ReplicaCondition};

use crate::fleet::{Fleet, Life, OrderKind};
use crate::prepare::Scene;
use crate::schema::{
    ContainerRow, DELETION, DeletionRow, META, ReplicaRow, ReplicaState, active_containers, container,
    containers_with_deletions, deletion_key, load, meta, parse_deletion_key, scan, tended_containers,
};
use crate::state::address;

/// Transactions told to a datanode in one heartbeat at most.
const HEARTBEAT_DELETIONS_MAX: usize = 16;
/// Other orders told to a datanode in one heartbeat at most.
const HEARTBEAT_ORDERS_MAX: usize = 64;
/// Reported replicas looked up in one heartbeat at most; the rest follows with the next.
const HEARTBEAT_SUSPECTS_MAX: usize = 512;
/// An order that has not shown effect is repeated after this long.
const REPEAT_NS: u64 = 5_000_000_000;

/// What a datanode is told in one answer.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) commands: Vec<DatanodeCommand>,
    /// Reported replicas that were found to be the container's.
    cleared: Vec<Life>,
    /// Reports that say no more than what the rows say.
    stale: Vec<Life>,
    /// Reported replicas of containers that SCM never opened: nothing is done about them.
    pub(crate) unheard_of: Vec<Life>,
}

/// Who speaks, with what.
pub(crate) struct Voice<'a> {
    pub(crate) term: u64,
    /// The key to sign leave to copy with.
    pub(crate) key: Option<&'a TokenKey>,
}

impl<R: Rows> Scene<'_, R> {
    /// What a datanode is told now. The caller notes it with [`note_orders`].
    pub(crate) fn orders(&self, datanode: DatanodeId, voice: &Voice<'_>) -> Result<Orders, StoreError> {
        let mut orders = Orders::default();
        if self.fleet.node(datanode).is_none() {
            return Ok(orders);
        }
        self.close_orders(datanode, voice, &mut orders)?;
        self.tended_orders(datanode, voice, &mut orders)?;
        self.stray_orders(datanode, voice, &mut orders)?;
        let mut budget = HEARTBEAT_DELETIONS_MAX;
        for id in containers_with_deletions(self.rows)? {
            if budget == 0 {
                break;
            }
            let told = self.deletion_orders(datanode, id, voice.term, budget)?;
            budget -= told.len();
            orders.commands.extend(told);
        }
        Ok(orders)
    }

    fn close_orders(
        &self,
        datanode: DatanodeId,
        voice: &Voice<'_>,
        orders: &mut Orders,
    ) -> Result<(), StoreError> {
        for id in active_containers(self.rows)? {
            let Some(row) = container(self.rows, id)?.filter(|row| row.state == ContainerState::Closing)
            else {
                continue;
            };
            let Some(replica) = row.replicas.iter().find(|replica| replica.datanode == datanode) else {
                continue;
            };
            let report = self.fleet.report(datanode, id, replica.generation);
            let needs_it = report.is_none_or(|report| {
                !report.is_sealed
                    && matches!(report.condition, ReplicaCondition::Whole | ReplicaCondition::CopyVerified)
            });
            if needs_it && self.may_order(datanode, (id, replica.generation), OrderKind::Close, orders) {
                orders.push(id, replica, voice.term, DatanodeAction::Close);
            }
        }
        Ok(())
    }

    fn tended_orders(
        &self,
        datanode: DatanodeId,
        voice: &Voice<'_>,
        orders: &mut Orders,
    ) -> Result<(), StoreError> {
        let tended = tended_containers(self.rows)?;
        let mut copies = None;
        for id in &tended {
            let Some(row) = container(self.rows, *id)? else { continue };
            let Some(replica) = row.replicas.iter().find(|replica| replica.datanode == datanode) else {
                continue;
            };
            let life = (*id, replica.generation);
            let report = self.fleet.report(datanode, *id, replica.generation);
            match replica.state {
                ReplicaState::Deleting => {
                    let is_there = self.fleet.has_up_to(datanode, *id, replica.generation);
                    if is_there && self.may_order(datanode, life, OrderKind::Drop, orders) {
                        orders.push(*id, replica, voice.term, DatanodeAction::DeleteReplica);
                    }
                }
                // Also one under way: whoever took the order may have forgotten it, and its share of the bandwidth changes
                // as others begin and end.
                ReplicaState::Copying => {
                    let is_over = report
                        .is_some_and(|report| !matches!(report.condition, ReplicaCondition::Copying { .. }));
                    if is_over || !self.may_order(datanode, life, OrderKind::Copy, orders) {
                        continue;
                    }
                    let under_way = match copies {
                        Some(count) => count,
                        None => *copies.insert(self.count_copies(&tended)?),
                    };
                    if let Some(action) = self.copy_action(*id, &row, replica, voice, under_way)? {
                        orders.push(*id, replica, voice.term, action);
                    }
                }
                ReplicaState::Valid | ReplicaState::Invalid => {}
            }
        }
        Ok(())
    }

    fn count_copies(&self, tended: &[ContainerId]) -> Result<u64, StoreError> {
        let mut count = 0;
        for id in tended {
            let Some(row) = container(self.rows, *id)? else { continue };
            count += row.replicas.iter().filter(|replica| replica.state == ReplicaState::Copying).count();
        }
        Ok(count as u64)
    }

    fn copy_action(
        &self,
        id: ContainerId,
        row: &ContainerRow,
        replica: &ReplicaRow,
        voice: &Voice<'_>,
        under_way: u64,
    ) -> Result<Option<DatanodeAction>, StoreError> {
        let (Some((source, source_generation)), Some(key)) = (replica.source, voice.key) else {
            return Ok(None);
        };
        let claim = BlockClaim {
            operation: BlockOperation::CopyReplica,
            container: id,
            generation: source_generation,
            replication: row.replication,
            first: LocalId(1),
            count: LEASE_IDS,
            session: SessionId(0),
            length_max: u64::MAX,
            expires_ms: self.now_ms.saturating_add(BLOCK_TOKEN_LIFE_MS),
        };
        // Never 0 of a limit: that would be none.
        let bytes_per_second = match self.config.repair_bandwidth {
            0 => 0,
            limit => (limit / under_way.max(1)).max(1),
        };
        Ok(Some(DatanodeAction::CopyReplica {
            source: address(self.rows, source)?,
            source_generation,
            token: BlockToken::sign(claim, key),
            bytes_per_second,
        }))
    }

    /// Replicas that are none of their container's.
    fn stray_orders(
        &self,
        datanode: DatanodeId,
        voice: &Voice<'_>,
        orders: &mut Orders,
    ) -> Result<(), StoreError> {
        let Some(node) = self.fleet.node(datanode) else { return Ok(()) };
        let last: u64 = load(self.rows, META, meta::LAST_CONTAINER)?.unwrap_or(0);
        let suspects: Vec<Life> = node.suspects().take(HEARTBEAT_SUSPECTS_MAX).collect();
        for life in suspects {
            let (id, generation) = life;
            let Some(row) = container(self.rows, id)? else {
                // A container that this view does not know may have been opened by a later leader: never by order.
                if id.0 > last {
                    orders.unheard_of.push(life);
                }
                orders.cleared.push(life);
                continue;
            };
            let there = row.replicas.iter().find(|replica| replica.datanode == datanode);
            let is_ours = there.is_some_and(|replica| replica.generation == generation);
            let is_replaced_later = there.is_some_and(|replica| {
                replica.state == ReplicaState::Copying && replica.generation > generation
            });
            if is_ours || generation > row.last_generation() {
                orders.cleared.push(life);
                continue;
            }
            if is_replaced_later {
                // Kept until its successor is verified; looked at again with the successor's report.
                orders.cleared.push(life);
                continue;
            }
            if generation == GENERATION_UNKNOWN && row.state != ContainerState::Deleted {
                // A file that cannot be read now. It may be the last replica, and readable after the next start.
                orders.cleared.push(life);
                continue;
            }
            let report = self.fleet.report(datanode, id, generation);
            match report.map(|report| report.condition) {
                None | Some(ReplicaCondition::Dropped) => orders.stale.push(life),
                Some(_) => {
                    if self.may_order(datanode, life, OrderKind::Drop, orders) {
                        orders.commands.push(DatanodeCommand {
                            container: id,
                            generation,
                            term: voice.term,
                            action: DatanodeAction::DeleteReplica,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Transactions of one container that the datanode has neither done nor just been told.
    fn deletion_orders(
        &self,
        datanode: DatanodeId,
        id: ContainerId,
        term: u64,
        budget: usize,
    ) -> Result<Vec<DatanodeCommand>, StoreError> {
        let mut orders = Vec::new();
        let Some(row) = container(self.rows, id)? else { return Ok(orders) };
        // Deleting from a replica that is none of the container's would act on the wrong one; an INVALID one is dropped
        // as a whole.
        let Some(replica) = row.valid().find(|replica| replica.datanode == datanode) else {
            return Ok(orders);
        };
        let Some(report) = self.fleet.report(datanode, id, replica.generation) else { return Ok(orders) };
        if !matches!(report.condition, ReplicaCondition::Whole | ReplicaCondition::CopyVerified) {
            return Ok(orders);
        }
        // In order and without gaps: the datanode records only the last one. So nothing further is told before what
        // was told is done, or its answer counts as lost.
        let sent = self.fleet.node(datanode).and_then(|node| node.deletion_sent.get(&id));
        if sent.is_some_and(|(through, at)| *through > report.deletion_done && !self.is_overdue(*at)) {
            return Ok(orders);
        }
        let from = deletion_key(id, report.deletion_done + 1);
        let to = deletion_key(ContainerId(id.0 + 1), 0);
        scan(self.rows, DELETION, &from, Some(&to), |row_key, deletion: DeletionRow| {
            let (_, transaction) = parse_deletion_key(row_key)?;
            orders.push(DatanodeCommand {
                container: id,
                generation: report.generation,
                term,
                action: DatanodeAction::DeleteBlocks { transaction, blocks: deletion.blocks },
            });
            Ok(if orders.len() < budget { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(orders)
    }

    fn may_order(&self, datanode: DatanodeId, life: Life, kind: OrderKind, orders: &Orders) -> bool {
        let sent = self.fleet.node(datanode).and_then(|node| node.ordered_ns(life, kind));
        orders.commands.len() < HEARTBEAT_ORDERS_MAX && sent.is_none_or(|sent| self.is_overdue(sent))
    }

    fn is_overdue(&self, sent_ns: u64) -> bool {
        self.now_ns.saturating_sub(sent_ns) >= REPEAT_NS
    }
}

impl Orders {
    fn push(&mut self, container: ContainerId, replica: &ReplicaRow, term: u64, action: DatanodeAction) {
        self.commands.push(DatanodeCommand { container, generation: replica.generation, term, action });
    }
}

/// Remembers what a datanode was told, so that it is not told again at once.
pub(crate) fn note_orders(fleet: &mut Fleet, datanode: DatanodeId, orders: &Orders, now_ns: u64) {
    let Some(node) = fleet.node_mut(datanode) else { return };
    // What is long overdue is either done or will be told again: the notes stay small.
    node.trim_orders(now_ns, REPEAT_NS);
    for life in orders.cleared.iter().chain(&orders.unheard_of) {
        node.clear_suspect(*life);
    }
    for life in &orders.stale {
        node.clear_suspect(*life);
        node.forget(*life);
    }
    for order in &orders.commands {
        let life = (order.container, order.generation);
        let kind = match &order.action {
            DatanodeAction::Close => OrderKind::Close,
            DatanodeAction::DeleteReplica => OrderKind::Drop,
            DatanodeAction::CopyReplica { .. } => OrderKind::Copy,
            DatanodeAction::DeleteBlocks { transaction, .. } => {
                node.deletion_sent.insert(order.container, (*transaction, now_ns));
                continue;
            }
        };
        node.note_order(life, kind, now_ns);
    }
}
