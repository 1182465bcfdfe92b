//! Copies of replicas: equal to their source, verified or nothing, whatever fails and whenever.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod rig;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use client::service::{ChunkStream, DatanodeService, ReplicaStream};
use futures_util::StreamExt;
use parking_lot::Mutex;
use platform::simulated::SimulatedDisk;
use rig::{Rig, pattern, simulated, simulated_with};
use wire::block::{BlockEntry, BlockOperation, BlockToken, DatanodeAddress};
use wire::chunk::ChunkRun;
use wire::datanode::{BlockReceipt, FetchReplica, ReadBlock, ReplicaPiece, WriteBlock};
use wire::ids::{ContainerId, DatanodeId, Generation, LocalId};
use wire::scm::{DatanodeAction, DatanodeCommand, ReplicaCondition, ReplicaReport, ScmRequest};
use wire::status::{Failure, Status};

/// The container of these tests, and the generation of its copies.
const CONTAINER: u64 = 1;
const COPY: Generation = Generation(2);

/// What a container holds.
type Blocks = Vec<(BlockEntry, Vec<u8>)>;

fn lengths() -> Vec<usize> {
    vec![1, 3964, 3965, 4096, 65_536, 70_000, 131_072, 700_000, 5, 1_500_000]
}

/// A datanode with a sealed replica: small and large blocks, one of unknown length, one deleted.
async fn source() -> (Rig, Blocks) {
    let rig = Rig::on(SimulatedDisk::new(1 << 28), |config| config.growth_step = 256 << 10).await;
    let mut blocks = Blocks::new();
    for (local, length) in (10..).zip(lengths()) {
        let data = pattern(local, length);
        blocks.push((rig.write(CONTAINER, local, &data).await.unwrap(), data));
    }
    let data = pattern(99, 300_000);
    blocks.push((rig.stream(CONTAINER, 99, &data, 1 << 20).await.unwrap(), data));
    delete(&rig, Generation(1), 1, &[11]).await;
    blocks.remove(1);
    rig.command(CONTAINER, DatanodeAction::Close).await;
    rig.until(|rig| rig.report_of(CONTAINER).unwrap().is_sealed).await;
    (rig, blocks)
}

async fn delete(rig: &Rig, generation: Generation, transaction: u64, locals: &[u64]) {
    let blocks = locals.iter().map(|local| LocalId(*local)).collect();
    let mut command = rig.make_command(CONTAINER, DatanodeAction::DeleteBlocks { transaction, blocks });
    command.generation = generation;
    rig.scm.command(vec![command]);
    rig.until(|rig| rig.report_of(CONTAINER).unwrap().deletion_done == transaction).await;
}

async fn target_of(source: &Arc<dyn DatanodeService>) -> Rig {
    target_on(SimulatedDisk::new(1 << 28), source).await
}

const SOURCE: DatanodeId = DatanodeId(uuid::Uuid::from_u128(7));

async fn target_on(disk: SimulatedDisk, source: &Arc<dyn DatanodeService>) -> Rig {
    let rig = Rig::on(disk, |config| config.growth_step = 256 << 10).await;
    rig.datanodes.insert(SOURCE, source.clone());
    rig
}

fn service(rig: &Rig) -> Arc<dyn DatanodeService> {
    Arc::new(rig.datanode.clone())
}

fn copy_command(target: &Rig, generation: Generation, bytes_per_second: u64) -> DatanodeCommand {
    let action = DatanodeAction::CopyReplica {
        source: DatanodeAddress { id: SOURCE, address: None },
        source_generation: Generation(1),
        token: target.token(BlockOperation::CopyReplica, CONTAINER),
        bytes_per_second,
    };
    DatanodeCommand { container: ContainerId(CONTAINER), generation, term: 1, action }
}

async fn condition(target: &Rig, wanted: ReplicaCondition) -> ReplicaReport {
    let is_wanted = |rig: &Rig| rig.report_of(CONTAINER).is_some_and(|report| report.condition == wanted);
    target.until(is_wanted).await;
    target.report_of(CONTAINER).unwrap()
}

async fn copy(target: &Rig) -> ReplicaReport {
    target.scm.command(vec![copy_command(target, COPY, 0)]);
    condition(target, ReplicaCondition::CopyVerified).await
}

async fn fails(target: &Rig) {
    target.scm.command(vec![copy_command(target, COPY, 0)]);
    condition(target, ReplicaCondition::CopyFailed).await;
    assert!(leftovers(target).is_empty(), "{:?}", leftovers(target));
    assert!(!target.datanode.report().0[0].is_failed);
    let (entry, run) = (target.write_request(CONTAINER, 5000, 1), ChunkRun::new(Bytes::from_static(b"x")));
    target.datanode.write_small_block(entry, run).await.expect("nothing of the copy stands in the way");
}

/// Waits until the datanode says that a replica is lost, beside whatever it says of copies.
async fn is_lost(target: &Rig) {
    let is_lost = |report: &ReplicaReport| report.condition == ReplicaCondition::Lost;
    target.until(|rig| rig.datanode.report().1.iter().any(is_lost)).await;
}

fn leftovers(rig: &Rig) -> Vec<String> {
    use platform::disk::DiskIo;
    let mut names = rig.disk.list().unwrap();
    names.retain(|name| name.ends_with(".copy") || name.ends_with(".container") || name.ends_with(".new"));
    names
}

async fn holds_all(rig: &Rig, blocks: &Blocks) {
    for (entry, data) in blocks {
        let read = rig.read(entry, 0, entry.length).await;
        assert!(read.unwrap() == *data, "block {}", entry.block);
    }
}

#[test]
fn a_copy_equals_its_source_also_after_restarts() {
    simulated(1, async {
        let (source, blocks) = source().await;
        let mut target = target_of(&service(&source)).await;
        let copied = copy(&target).await;
        let original = source.report_of(CONTAINER).unwrap();
        assert_eq!(copied.generation, COPY);
        assert!(copied.is_sealed && !copied.is_unhealthy);
        assert_eq!(
            (copied.block_count, copied.used_bytes, copied.deletion_done, copied.replication),
            (original.block_count, original.used_bytes, 1, original.replication)
        );
        for restart in [None, Some(true), Some(false)] {
            if let Some(is_orderly) = restart {
                target.restart(is_orderly).await;
            }
            holds_all(&target, &blocks).await;
            assert_eq!(target.report_of(CONTAINER).unwrap(), copied);
        }
        // The index is lost: the file tells all of it, the deletion number too.
        target.datanode.shutdown().await;
        target.disk.kill();
        target.disk.damage("index.redb", 0, &[0; 64]);
        target.reopen().await;
        holds_all(&target, &blocks).await;
        assert_eq!(target.report_of(CONTAINER).unwrap(), copied);
        // A copy of the copy.
        let third = target_of(&service(&target)).await;
        let mut order = copy_command(&third, Generation(3), 0);
        let DatanodeAction::CopyReplica { source_generation, .. } = &mut order.action else { unreachable!() };
        *source_generation = COPY;
        third.scm.command(vec![order]);
        condition(&third, ReplicaCondition::CopyVerified).await;
        holds_all(&third, &blocks).await;
    });
}

#[test]
fn a_crash_at_any_operation_of_a_copy_leaves_a_whole_one_or_none() {
    let mut crashes = 0;
    let (mut none, mut whole) = (0, 0);
    for step in (1..).step_by(2) {
        let crashed = simulated(step, async {
            let (source, blocks) = source().await;
            let mut target = target_of(&service(&source)).await;
            target.disk.crash_after(step, step * 31);
            target.scm.command(vec![copy_command(&target, COPY, 0)]);
            let is_over = |rig: &Rig| {
                rig.datanode.report().0[0].is_failed
                    || rig.report_of(CONTAINER).is_some_and(|report| {
                        matches!(
                            report.condition,
                            ReplicaCondition::CopyVerified | ReplicaCondition::CopyFailed
                        )
                    })
            };
            target.until(is_over).await;
            if target.disk.cancel_crash() {
                return None;
            }
            target.datanode.shutdown().await;
            target.reopen().await;
            let found = target.report_of(CONTAINER);
            match &found {
                None => assert!(leftovers(&target).is_empty(), "step {step}"),
                Some(report) => {
                    assert_eq!((report.condition, report.deletion_done), (ReplicaCondition::CopyVerified, 1));
                    holds_all(&target, &blocks).await;
                }
            }
            copy(&target).await;
            holds_all(&target, &blocks).await;
            Some(found.is_some())
        });
        match crashed {
            None => break,
            Some(true) => whole += 1,
            Some(false) => none += 1,
        }
        crashes += 1;
    }
    assert!(none > 10 && whole > 1, "{crashes} crashes: {none} left none, {whole} a whole copy");
}

#[test]
fn a_deletion_during_a_copy_is_in_its_number_or_comes_to_it_again() {
    simulated(3, async {
        let (source, mut blocks) = source().await;
        let target = target_of(&service(&source)).await;
        target.scm.command(vec![copy_command(&target, COPY, 1 << 20)]);
        target.until(|rig| rig.report_of(CONTAINER).is_some()).await;
        condition_copying(&target).await;
        // The block that comes last is deleted while the first ones are on their way.
        delete(&source, Generation(1), 2, &[99]).await;
        let copied = condition(&target, ReplicaCondition::CopyVerified).await;
        assert_eq!(copied.deletion_done, 1, "what was copied is the state of the first deletion");
        holds_all(&target, &blocks).await;
        let (gone, data) = blocks.pop().unwrap();
        delete(&target, COPY, 2, &[99]).await;
        assert_eq!(target.read(&gone, 0, 1).await.unwrap_err().status, Status::NotFound);
        holds_all(&target, &blocks).await;
        for rig in [&source, &target] {
            rig.until(|rig| {
                let bytes = rig.disk.contents("0000000000000001.container").unwrap();
                !bytes.chunks(4096).any(|page| page.get(64..128) == Some(&data[..64]))
            })
            .await;
        }
    });
}

async fn condition_copying(target: &Rig) {
    let is_copying = |rig: &Rig| {
        let report = rig.report_of(CONTAINER).unwrap();
        matches!(report.condition, ReplicaCondition::Copying { received_bytes } if received_bytes > 0)
    };
    target.until(is_copying).await;
}

#[test]
fn a_crash_of_the_source_at_any_operation_of_a_deletion_under_a_copy_costs_no_block() {
    for step in (1..).step_by(3) {
        let crashed = simulated(step, async {
            let (mut source, mut blocks) = source().await;
            let target = target_of(&service(&source)).await;
            target.scm.command(vec![copy_command(&target, COPY, 1 << 20)]);
            target.until(|rig| rig.report_of(CONTAINER).is_some()).await;
            source.disk.crash_after(step, step);
            let delete = DatanodeAction::DeleteBlocks { transaction: 2, blocks: vec![LocalId(99)] };
            source.command(CONTAINER, delete.clone()).await;
            let is_over = |rig: &Rig| {
                rig.report_of(CONTAINER).is_some_and(|report| {
                    matches!(report.condition, ReplicaCondition::CopyVerified | ReplicaCondition::CopyFailed)
                })
            };
            target.until(is_over).await;
            if source.disk.cancel_crash() {
                return false;
            }
            let copied = target.report_of(CONTAINER).unwrap();
            if copied.condition == ReplicaCondition::CopyVerified {
                assert_eq!(copied.deletion_done, 1);
                holds_all(&target, &blocks).await;
            }
            source.datanode.shutdown().await;
            source.scm.forget();
            source.reopen().await;
            let (gone, _) = blocks.pop().unwrap();
            holds_all(&source, &blocks).await;
            let is_done = source.report_of(CONTAINER).unwrap().deletion_done == 2;
            assert_eq!(source.read(&gone, 0, 1).await.is_err(), is_done, "step {step}");
            true
        });
        if !crashed {
            assert!(step > 10);
            return;
        }
    }
}

#[test]
fn a_crash_at_any_operation_of_dropping_a_replica_leaves_it_whole_or_gone() {
    for step in 1.. {
        let crashed = simulated(step, async {
            let (mut source, blocks) = source().await;
            source.disk.crash_after(step, step * 7);
            source.command(CONTAINER, DatanodeAction::DeleteReplica).await;
            source
                .until(|rig| rig.datanode.report().0[0].is_failed || rig.report_of(CONTAINER).is_none())
                .await;
            if source.disk.cancel_crash() {
                return false;
            }
            source.datanode.shutdown().await;
            source.scm.forget();
            source.reopen().await;
            if source.report_of(CONTAINER).is_some() {
                holds_all(&source, &blocks).await;
            }
            source.command(CONTAINER, DatanodeAction::DeleteReplica).await;
            source.until(|rig| answers(rig).contains(&ReplicaCondition::Dropped)).await;
            assert!(leftovers(&source).is_empty());
            let late = source.write(CONTAINER, 4000, b"late").await.unwrap_err();
            assert_eq!(late.status, Status::Refused);
            true
        });
        if !crashed {
            assert!(step > 5);
            return;
        }
    }
}

/// Conditions of the container in all heartbeats.
fn answers(rig: &Rig) -> Vec<ReplicaCondition> {
    let requests = rig.scm.requests.lock();
    let reports = requests.iter().filter_map(|request| match request {
        ScmRequest::Heartbeat(beat) => Some(&beat.replicas),
        ScmRequest::RegisterDatanode(register) => Some(&register.replicas),
        _ => None,
    });
    let reports = reports.flatten().filter(|report| report.container == ContainerId(CONTAINER));
    reports.map(|report| report.condition).collect()
}

/// What happens to the pieces on their way.
type Meddle = dyn Fn(usize, ReplicaPiece) -> Option<ReplicaPiece> + Send + Sync;

/// A source whose pieces change on their way.
struct Meddled {
    source: Arc<dyn DatanodeService>,
    meddle: Arc<Meddle>,
}

#[async_trait]
impl DatanodeService for Meddled {
    async fn write_block(&self, request: WriteBlock, body: ChunkStream) -> Result<BlockReceipt, Failure> {
        self.source.write_block(request, body).await
    }

    async fn write_small_block(&self, request: WriteBlock, body: ChunkRun) -> Result<BlockReceipt, Failure> {
        self.source.write_small_block(request, body).await
    }

    async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure> {
        self.source.read_block(request).await
    }

    async fn fetch_replica(&self, request: FetchReplica) -> Result<ReplicaStream, Failure> {
        let (pieces, meddle) = (self.source.fetch_replica(request).await?, self.meddle.clone());
        let changed = pieces.enumerate().filter_map(move |(number, piece)| {
            let changed = piece.map(|piece| meddle(number, piece)).transpose();
            async move { changed }
        });
        Ok(Box::pin(changed))
    }
}

fn flip(run: ChunkRun) -> ChunkRun {
    let mut data = run.data.to_vec();
    let middle = data.len() / 2;
    data[middle] ^= 1;
    ChunkRun { data: data.into(), crcs: run.crcs }
}

#[test]
fn what_changes_on_the_way_is_never_a_copy() {
    let meddlers: Vec<Arc<Meddle>> = vec![
        // A flipped bit of data, with the checksums as they were, and with checksums that fit.
        Arc::new(|number, piece| match piece {
            ReplicaPiece::Run(run) if number > 8 => Some(ReplicaPiece::Run(flip(run))),
            piece => Some(piece),
        }),
        Arc::new(|number, piece| match piece {
            ReplicaPiece::Run(run) if number > 8 => Some(ReplicaPiece::Run(ChunkRun::new(flip(run).data))),
            piece => Some(piece),
        }),
        // Pieces lost and doubled.
        Arc::new(|_, piece| (!matches!(piece, ReplicaPiece::End)).then_some(piece)),
        Arc::new(|number, piece| (number != 5 && number != 6).then_some(piece)),
        Arc::new(|number, piece| (number != 6).then_some(piece)),
        Arc::new(|_, piece| match piece {
            ReplicaPiece::Head { replication, deletion_done, block_count, used_bytes } => {
                let block_count = block_count + 1;
                Some(ReplicaPiece::Head { replication, deletion_done, block_count, used_bytes })
            }
            piece => Some(piece),
        }),
        Arc::new(|_, piece| match piece {
            ReplicaPiece::Block { local: LocalId(12), length, digest } => {
                Some(ReplicaPiece::Block { local: LocalId(13), length, digest })
            }
            piece => Some(piece),
        }),
        Arc::new(|_, piece| match piece {
            ReplicaPiece::Head { replication, deletion_done, block_count, .. } => {
                let used_bytes = u64::MAX;
                Some(ReplicaPiece::Head { replication, deletion_done, block_count, used_bytes })
            }
            piece => Some(piece),
        }),
    ];
    for meddle in meddlers {
        simulated(5, async {
            let (source, _) = source().await;
            let meddled: Arc<dyn DatanodeService> = Arc::new(Meddled { source: service(&source), meddle });
            fails(&target_of(&meddled).await).await;
        });
    }
}

#[test]
fn a_damaged_source_is_no_source() {
    simulated(6, async {
        let (source, blocks) = source().await;
        let name = "0000000000000001.container";
        let bytes = source.disk.contents(name).unwrap();
        let at = rig::position_of(&bytes, &blocks.last().unwrap().1[..64]) + 200_000;
        source.disk.damage(name, at, &[bytes[at as usize] ^ 1]);
        fails(&target_of(&service(&source)).await).await;
        assert!(source.report_of(CONTAINER).unwrap().is_unhealthy);
    });
}

#[test]
fn rot_on_the_medium_of_the_target_is_found_before_the_copy_counts() {
    for offset in [20, 8192 + 5, 8192 + 64, 100_000, 1_000_000] {
        let disk = SimulatedDisk::new(1 << 28);
        let medium = disk.clone();
        let rot = move |step: &'static str| {
            if step == "datanode_copy_synced" {
                let name = "0000000000000001.copy";
                let byte = medium.contents(name).unwrap()[offset as usize];
                medium.rot(name, offset, &[byte ^ 4]);
            }
        };
        simulated_with(7, rot, async {
            let (source, _) = source().await;
            fails(&target_on(disk, &service(&source)).await).await;
        });
    }
}

#[test]
fn a_full_disk_fails_the_copy_and_nothing_else() {
    simulated(8, async {
        let (source, _) = source().await;
        let disk = SimulatedDisk::new(1 << 28);
        let target = target_on(disk, &service(&source)).await;
        use platform::disk::DiskIo;
        let room = target.disk.room().unwrap();
        target.disk.set_capacity(room.capacity - room.available + (3 << 20));
        target.scm.command(vec![copy_command(&target, COPY, 0)]);
        condition(&target, ReplicaCondition::CopyFailed).await;
        assert!(leftovers(&target).is_empty());
        assert!(!target.datanode.report().0[0].is_failed);
        target.disk.set_capacity(room.capacity);
        // An order that comes at once is the repeat of one whose failure was not heard.
        target.scm.command(vec![copy_command(&target, COPY, 0)]);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        condition(&target, ReplicaCondition::CopyFailed).await;
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        copy(&target).await;
    });
}

/// The disk is full from the moment at which the first copy has its name.
fn full_once_named(disk: &SimulatedDisk) -> impl Fn(&'static str) + 'static {
    let disk = disk.clone();
    let is_first = std::cell::Cell::new(true);
    move |step| {
        if step == "datanode_copy_named" && is_first.replace(false) {
            disk.set_capacity(0);
        }
    }
}

#[test]
fn a_copy_that_could_not_be_entered_into_the_index_leaves_nothing_when_it_is_dropped() {
    let disk = SimulatedDisk::new(1 << 28);
    simulated_with(11, full_once_named(&disk), async {
        let (source, _) = source().await;
        let target = target_on(disk, &service(&source)).await;
        target.scm.command(vec![copy_command(&target, COPY, 0)]);
        is_lost(&target).await;
        assert_eq!(leftovers(&target), ["0000000000000001.container"], "it has its name, and no rows");
        target.disk.set_capacity(1 << 28);
        let mut drop = target.make_command(CONTAINER, DatanodeAction::DeleteReplica);
        drop.generation = COPY;
        target.scm.command(vec![drop]);
        target.until(|rig| answers(rig).contains(&ReplicaCondition::Dropped)).await;
        assert!(leftovers(&target).is_empty(), "{:?}", leftovers(&target));
        assert!(!target.datanode.report().0[0].is_failed);
        // The failed one is kept for a while, so that SCM hears of it.
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        target.scm.command(vec![copy_command(&target, Generation(3), 0)]);
        condition(&target, ReplicaCondition::CopyVerified).await;
    });
}

#[test]
fn a_later_copy_takes_the_place_of_one_that_was_lost() {
    let disk = SimulatedDisk::new(1 << 28);
    simulated_with(12, full_once_named(&disk), async {
        let (source, blocks) = source().await;
        let mut target = target_on(disk, &service(&source)).await;
        target.scm.command(vec![copy_command(&target, COPY, 0)]);
        is_lost(&target).await;
        target.disk.set_capacity(1 << 28);
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        target.scm.command(vec![copy_command(&target, Generation(3), 0)]);
        condition(&target, ReplicaCondition::CopyVerified).await;
        assert_eq!(leftovers(&target), ["0000000000000001.container"]);
        target.restart(false).await;
        assert_eq!(target.report_of(CONTAINER).unwrap().generation, Generation(3));
        holds_all(&target, &blocks).await;
    });
}

#[test]
fn open_replicas_other_generations_and_bad_tokens_are_refused() {
    simulated(9, async {
        let (source, _) = source().await;
        source.write(2, 1, b"still open").await.unwrap();
        let fetch = |container, generation, token: BlockToken| FetchReplica {
            container: ContainerId(container),
            generation: Generation(generation),
            token,
        };
        let good = |container| source.token(BlockOperation::CopyReplica, container);
        let mut forged = good(1);
        forged.claim.expires_ms -= 1;
        for (request, status) in [
            (fetch(2, 1, good(2)), Status::Refused),
            (fetch(1, 2, good(1)), Status::NotFound),
            (fetch(3, 1, good(3)), Status::NotFound),
            (fetch(1, 1, good(2)), Status::Denied),
            (fetch(1, 1, source.token(BlockOperation::Read, 1)), Status::Denied),
            (fetch(1, 1, forged), Status::Denied),
        ] {
            let failure = source.datanode.fetch_replica(request).await.err().unwrap();
            assert_eq!(failure.status, status, "{failure}");
        }
        let open = source.datanode.fetch_replica(fetch(1, 1, good(1))).await;
        assert!(open.is_ok());
    });
}

#[test]
fn orders_are_repeated_replaced_and_taken_back() {
    simulated(10, async {
        let (source, blocks) = source().await;
        let target = target_of(&service(&source)).await;
        // An older replica stays until its successor is verified.
        let old = target.write(CONTAINER, 5000, b"of an older life").await.unwrap();
        let slow = copy_command(&target, COPY, 1 << 20);
        target.scm.command(vec![slow.clone(), slow.clone()]);
        let copying = |rig: &Rig| {
            let reports = rig.datanode.report().1;
            reports.iter().any(|report| matches!(report.condition, ReplicaCondition::Copying { received_bytes } if received_bytes > 0))
        };
        target.until(copying).await;
        assert_eq!(target.read(&old, 0, 2).await.unwrap(), b"of");
        // An order of an old leader is not heard.
        let mut stale = target.make_command(CONTAINER, DatanodeAction::DeleteReplica);
        (stale.generation, stale.term) = (COPY, 0);
        target.scm.command(vec![stale, slow.clone()]);
        condition(&target, ReplicaCondition::CopyVerified).await;
        holds_all(&target, &blocks).await;
        assert_eq!(target.datanode.report().1.len(), 1);
        assert_eq!(target.read(&old, 0, 2).await.unwrap_err().status, Status::NotFound);
        // Dropping an earlier generation keeps it; the repeat of the order changes nothing.
        target.command(CONTAINER, DatanodeAction::DeleteReplica).await;
        target.scm.command(vec![slow]);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        holds_all(&target, &blocks).await;

        // A copy that is given up ends, and SCM hears that nothing is left.
        let other = target_of(&service(&source)).await;
        other.scm.command(vec![copy_command(&other, COPY, 100_000)]);
        other.until(|rig| rig.report_of(CONTAINER).is_some()).await;
        let mut drop = other.make_command(CONTAINER, DatanodeAction::DeleteReplica);
        drop.generation = COPY;
        other
            .until_async(async |rig| {
                rig.scm.command(vec![drop.clone()]);
                answers(rig).contains(&ReplicaCondition::Dropped)
            })
            .await;
        assert!(leftovers(&other).is_empty());
        assert!(other.report_of(CONTAINER).is_none());
    });
}

#[test]
fn a_repeated_order_changes_the_share_of_the_bandwidth() {
    simulated(12, async {
        let (source, blocks) = source().await;
        let target = target_of(&service(&source)).await;
        // At this pace it would take hours.
        target.scm.command(vec![copy_command(&target, COPY, 100)]);
        target
            .until(|rig| {
                let report = rig.report_of(CONTAINER);
                let is_under_way = |condition| matches!(condition, ReplicaCondition::Copying { .. });
                report.is_some_and(|report| is_under_way(report.condition))
            })
            .await;
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert!(answers(&target).iter().all(|answer| *answer != ReplicaCondition::CopyVerified));
        let begun = tokio::time::Instant::now();
        target.scm.command(vec![copy_command(&target, COPY, 0)]);
        condition(&target, ReplicaCondition::CopyVerified).await;
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
        holds_all(&target, &blocks).await;
    });
}

#[test]
fn a_source_that_falls_silent_fails_the_copy() {
    simulated(11, async {
        let (source, _) = source().await;
        let meddled = Meddled { source: service(&source), meddle: Arc::new(|_, piece| Some(piece)) };
        struct Silent(Meddled);
        #[async_trait]
        impl DatanodeService for Silent {
            async fn write_block(
                &self,
                request: WriteBlock,
                body: ChunkStream,
            ) -> Result<BlockReceipt, Failure> {
                self.0.write_block(request, body).await
            }
            async fn write_small_block(
                &self,
                request: WriteBlock,
                body: ChunkRun,
            ) -> Result<BlockReceipt, Failure> {
                self.0.write_small_block(request, body).await
            }
            async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure> {
                self.0.read_block(request).await
            }
            async fn fetch_replica(&self, request: FetchReplica) -> Result<ReplicaStream, Failure> {
                let pieces = self.0.fetch_replica(request).await?;
                Ok(Box::pin(pieces.take(7).chain(futures_util::stream::pending())))
            }
        }
        let silent: Arc<dyn DatanodeService> = Arc::new(Silent(meddled));
        let target = target_of(&silent).await;
        target.scm.command(vec![copy_command(&target, COPY, 0)]);
        target.until(|rig| rig.report_of(CONTAINER).is_some()).await;
        tokio::time::sleep(std::time::Duration::from_secs(31)).await;
        condition(&target, ReplicaCondition::CopyFailed).await;
        assert!(leftovers(&target).is_empty());
    });
}

#[test]
fn the_same_seed_gives_the_same_operations() {
    let run = |seed| {
        let traces = Arc::new(Mutex::new(Vec::new()));
        let noted = traces.clone();
        simulated(seed, async move {
            let (source, _) = source().await;
            let mut target = target_of(&service(&source)).await;
            copy(&target).await;
            target.restart(false).await;
            source.datanode.shutdown().await;
            target.datanode.shutdown().await;
            noted.lock().extend([source.disk.trace_hash(), target.disk.trace_hash()]);
        });
        std::mem::take(&mut *traces.lock())
    };
    assert_eq!(run(12), run(12));
    assert_ne!(run(12), run(13));
}
