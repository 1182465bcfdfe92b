//! What must hold over all rows after any command: checked by scripts and the model test.
//!
//! Holders of a block are found from the side of versions, parts and queued work, and compared with what the `block`
//! table says. Nothing is lent, owned or freed twice, and nothing that was lent is lost.

use std::collections::{BTreeMap, BTreeSet};

use consensus::{ReadView, Rows};
use serde::de::DeserializeOwned;
use wire::block::BlockEntry;
use wire::ids::{BlockId, BucketId, LocalId, WriteId};
use wire::names::KeyName;

use crate::schema::{
    BLOCK, BLOCK_REF, BUCKET, BUCKET_ID, BlockRefRow, BlockRow, BlockState, BucketRow, DELETED, Data,
    DeletedRow, KEY, KeyRow, LAYOUT, LOAN, LoanRow, PART, PartRow, SESSION, SESSION_NONCE, SessionRow, USAGE,
    UsageRow, VOLUME, VolumeRow, WORK, Work, WorkRow, bucket_of_row_key,
};
use crate::state::lease;
use crate::state::loan::first_of;
use crate::state::multipart::runs_contain;
use crate::state::usage::bucket_usage_key;
use crate::state::{RowsExt, end_of};

fn all<T: DeserializeOwned>(view: &ReadView, table: consensus::Table) -> Vec<(Vec<u8>, T)> {
    view.rows(table, &[], None, usize::MAX).unwrap()
}

fn layout_blocks(view: &ReadView, write_id: WriteId) -> Vec<BlockId> {
    let prefix = write_id.to_row_key();
    let rows = view.rows::<Vec<BlockEntry>>(LAYOUT, &prefix, Some(&end_of(&prefix)), usize::MAX).unwrap();
    rows.into_iter().flat_map(|(_, entries)| entries).map(|entry| entry.block).collect()
}

fn keys(view: &ReadView) -> Vec<(Vec<u8>, KeyRow)> {
    let mut rows = Vec::new();
    view.scan(KEY, &[], None, &mut |row_key, value| {
        rows.push((row_key.to_vec(), KeyRow::decode(row_key, value).unwrap()));
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

/// Who holds which block, as versions, parts and queued work say.
fn holders(view: &ReadView) -> BTreeMap<BlockId, BTreeSet<WriteId>> {
    let mut holders: BTreeMap<BlockId, BTreeSet<WriteId>> = BTreeMap::new();
    let mut hold = |block: BlockId, write_id: WriteId| {
        assert!(holders.entry(block).or_default().insert(write_id), "{block} is held twice by {write_id}");
    };
    for (_, row) in keys(view) {
        match row.rest.data {
            Data::Empty | Data::Inline(_) => {}
            Data::Blocks(entries) => entries.iter().for_each(|entry| hold(entry.block, row.rest.write_id)),
            Data::Layout { entries } => {
                let blocks = layout_blocks(view, row.rest.write_id);
                assert_eq!(blocks.len() as u64, entries, "a layout has its entries");
                blocks.into_iter().for_each(|block| hold(block, row.rest.write_id));
            }
        }
    }
    let mut used_parts: BTreeMap<WriteId, Vec<(u32, u32)>> = BTreeMap::new();
    for (_, row) in all::<WorkRow>(view, WORK) {
        match row.work {
            Work::Release { write_id, blocks } => blocks.into_iter().for_each(|block| hold(block, write_id)),
            Work::Layout { write_id } => {
                layout_blocks(view, write_id).into_iter().for_each(|block| hold(block, write_id));
            }
            Work::Parts { upload, used } => {
                used_parts.insert(upload, used);
            }
            Work::Free { .. } | Work::Uploads { .. } | Work::Session { .. } => {}
        }
    }
    for (row_key, row) in all::<PartRow>(view, PART) {
        let upload = WriteId::from_row_key(*row_key.first_chunk().unwrap());
        let part = u32::from_be_bytes(*row_key.last_chunk().unwrap());
        if !used_parts.get(&upload).is_some_and(|used| runs_contain(used, part)) {
            row.blocks.iter().for_each(|entry| hold(entry.block, upload));
        }
    }
    holders
}

/// Ids on loan, and ids on their way from a loan to the freed ones.
fn unowned(view: &ReadView) -> Vec<BlockId> {
    let mut ids = Vec::new();
    for (row_key, row) in all::<LoanRow>(view, LOAN) {
        let (container, first) = first_of(&row_key);
        for distance in 0..row.count {
            if row.left[usize::from(distance / 8)] & (1 << (distance % 8)) != 0 {
                ids.push(BlockId { container, local: LocalId(first.0 + u64::from(distance)) });
            }
        }
    }
    for (_, row) in all::<WorkRow>(view, WORK) {
        if let Work::Free { container, runs } = row.work {
            for (first, count) in runs {
                let locals = first.0..first.0 + u64::from(count);
                ids.extend(locals.map(|local| BlockId { container, local: LocalId(local) }));
            }
        }
    }
    ids
}

/// Queued ids of containers that were declared empty: they are dropped without a trace.
pub(crate) fn going_with_their_container(view: &ReadView) -> usize {
    let works = all::<WorkRow>(view, WORK).into_iter();
    let counts = works.map(|(_, row)| match row.work {
        Work::Free { container, runs } if lease::is_retired(view, container).unwrap() => {
            runs.iter().map(|(_, count)| usize::from(*count)).sum()
        }
        _ => 0,
    });
    counts.sum()
}

/// Checks everything. `lent` are all ids ever lent, `gone` those whose deletion SCM has logged.
pub(crate) fn check(view: &ReadView, lent: &BTreeSet<BlockId>, gone: usize) {
    let holders = holders(view);
    let names: BTreeMap<WriteId, (BucketId, KeyName)> = keys(view)
        .into_iter()
        .map(|(row_key, row)| {
            let (bucket, key) = row_key.split_first_chunk().unwrap();
            let key = KeyName::from_bytes(key).unwrap();
            (row.rest.write_id, (BucketId(u64::from_be_bytes(*bucket)), key))
        })
        .collect();
    check_names(view);
    let mut accounted = BTreeSet::new();
    for id in unowned(view) {
        assert!(accounted.insert(id), "{id} is on loan twice");
        assert!(!view.contains(BLOCK, &id.to_row_key()).unwrap(), "{id} is on loan and has a block row");
    }
    let mut queued: BTreeMap<BlockId, usize> = BTreeMap::new();
    for (_, row) in all::<DeletedRow>(view, DELETED) {
        *queued.entry(row.block).or_default() += 1;
    }
    for (row_key, row) in all::<BlockRow>(view, BLOCK) {
        let (container, local) = first_of(&row_key);
        let block = BlockId { container, local };
        assert!(accounted.insert(block), "{block} is owned or freed and on loan");
        let refs =
            view.rows::<BlockRefRow>(BLOCK_REF, &row_key, Some(&end_of(&row_key)), usize::MAX).unwrap();
        let held = holders.get(&block).cloned().unwrap_or_default();
        match row.state {
            BlockState::Owned => {
                let mut owners: BTreeSet<WriteId> =
                    refs.iter().map(|(key, _)| WriteId::from_row_key(*key.last_chunk().unwrap())).collect();
                assert!(owners.insert(row.owner), "{block}: the first owner stands in block_ref as well");
                assert_eq!(owners, held, "{block}: owners are exactly the holders");
                assert_eq!(row.references as usize, owners.len(), "{block}: references are exact");
                assert!(!queued.contains_key(&block), "{block} is owned and queued");
                let named = (row.owner, (row.bucket, row.key.clone().expect("an owner names its key")));
                let others = refs.into_iter().map(|(row_key, other)| {
                    (WriteId::from_row_key(*row_key.last_chunk().unwrap()), (other.bucket, other.key))
                });
                for (owner, name) in others.chain([named]) {
                    if let Some(live) = names.get(&owner) {
                        assert_eq!(name, *live, "{block}: its row names where {owner} is");
                    }
                }
            }
            BlockState::Freed => {
                assert!(held.is_empty() && refs.is_empty(), "{block} is freed and held by {held:?}");
                assert_eq!(row.key, None, "{block} is freed and names a key");
                assert_eq!(queued.remove(&block), Some(1), "{block} is queued once");
            }
        }
    }
    assert!(queued.is_empty(), "queued without a freed row: {queued:?}");
    assert!(holders.keys().all(|block| accounted.contains(block)), "a version names a block without a row");
    assert!(accounted.is_subset(lent), "a block lives that was never lent");
    assert_eq!(accounted.len() + gone, lent.len(), "every id lent is on loan, owned, freed or gone");
    check_usage(view);
}

/// Names lead to ids and back; volumes count their buckets; sessions have their nonce.
fn check_names(view: &ReadView) {
    let mut buckets: BTreeMap<String, u64> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (row_key, row) in all::<BucketRow>(view, BUCKET) {
        let (volume, _) = bucket_of_row_key(&row_key).unwrap();
        *buckets.entry(volume.to_owned()).or_default() += 1;
        let named = view.get(BUCKET_ID, &row.id.to_be_bytes()).unwrap();
        assert_eq!(named, row.source.is_none().then_some(row_key), "an id leads to its bucket");
        ids.insert(row.id);
    }
    view.scan(BUCKET_ID, &[], None, &mut |row_key, _| {
        assert!(ids.contains(&BucketId(u64::from_be_bytes(row_key.try_into().unwrap()))));
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    for (row_key, row) in all::<VolumeRow>(view, VOLUME) {
        let name = String::from_utf8(row_key).unwrap();
        assert_eq!(
            row.buckets,
            buckets.remove(&name).unwrap_or_default(),
            "volume {name} counts its buckets"
        );
    }
    assert!(buckets.is_empty(), "a bucket without a volume: {buckets:?}");
    for (row_key, row) in all::<SessionRow>(view, SESSION).into_iter().filter(|(_, row)| !row.is_ended) {
        assert_eq!(
            view.get(SESSION_NONCE, &row.nonce).unwrap().map(|id| !id.is_empty()),
            Some(true),
            "{row_key:?}"
        );
    }
}

fn check_usage(view: &ReadView) {
    let mut expected: BTreeMap<Vec<u8>, UsageRow> = BTreeMap::new();
    for (row_key, row) in keys(view) {
        let bucket = BucketId(u64::from_be_bytes(*row_key.first_chunk().unwrap()));
        let usage = expected.entry(bucket_usage_key(bucket)).or_default();
        usage.add(&UsageRow { keys: 1, bytes: row.head.size as i64 });
    }
    for (row_key, row) in all::<UsageRow>(view, USAGE) {
        if row_key[0] == b'b' {
            assert_eq!(row, expected.remove(&row_key).unwrap_or_default(), "counters are exact");
        }
    }
    assert!(expected.is_empty(), "a bucket with keys has counters");
}
