//! `ferrozone admin where s3://bucket/key`: the key's blocks, their containers, and the datanodes and disks with each.

use admin::view::{BlockLocation, KeyLocation};
use anyhow::bail;
use wire::clock::{self, UnixMs};

use super::container::{health_text, replicas_text};
use super::{Screen, with_query, word};
use crate::reach::read;
use crate::show::{ago, fields, replicas, short, size, table};

pub(super) async fn run(screen: &Screen, key: &str) -> anyhow::Result<()> {
    let split = key.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
    let Some((bucket, key)) = split.filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty()) else {
        bail!("{key:?} names no key: write s3://BUCKET/KEY")
    };
    let path = |from: u64| {
        let query = [
            ("bucket", Some(bucket.to_owned())),
            ("key", Some(key.to_owned())),
            ("from", Some(from.to_string())),
        ];
        with_query("/api/v1/where", &query)
    };
    let mut whole: KeyLocation = screen.api.get(&path(0)).await?;
    // A large key's list comes in pages.
    while let Some(from) = whole.next_from {
        let page: KeyLocation = screen.api.get(&path(from)).await?;
        whole.next_from = page.next_from.filter(|next| *next > from);
        whole.blocks.extend(page.blocks);
    }
    let answer = serde_json::to_value(&whole)?;
    screen.print(answer, |answer| Ok(text(&read(answer)?, clock::now_ms())))
}

fn text(key: &KeyLocation, now_ms: UnixMs) -> String {
    let head = fields(&[
        ("key", format!("s3://{}/{}", key.bucket, key.key)),
        ("size", size(key.size)),
        ("etag", key.etag.clone()),
        ("written", ago(key.modified_ms, now_ms)),
        ("replication", replicas(key.replication)),
    ]);
    if key.blocks.is_empty() {
        return format!("{head}\nIt has no blocks: it is empty.\n");
    }
    let rows = key.blocks.iter().flat_map(block_rows);
    let header = [">from byte", ">length", "block", "container", "health", "datanode", "disk", "replica"];
    format!("{head}\n{}", table(&header, rows))
}

/// A line for each replica; what they share stands on the first.
fn block_rows(block: &BlockLocation) -> Vec<Vec<String>> {
    let state = match &block.state {
        Some(state) => word(state),
        None => "unknown to scm".to_owned(),
    };
    let shared = [
        block.start.to_string(),
        size(block.length),
        format!("{}/{}", block.container, block.local),
        state,
        health_text(&block.health),
    ];
    let blank = || shared.iter().map(|_| String::new());
    if block.replicas.is_empty() {
        return vec![shared.iter().cloned().chain(["none", "", ""].map(str::to_owned)).collect()];
    }
    let lines = block.replicas.iter().enumerate().map(|(index, replica)| {
        let first: Vec<String> = if index == 0 { shared.to_vec() } else { blank().collect() };
        let node = if replica.node.is_empty() { short(&replica.datanode) } else { replica.node.clone() };
        let standing = replicas_text(std::slice::from_ref(replica));
        // `d1 (dead)`: what stands behind the name.
        let trouble =
            standing.strip_prefix(&node).unwrap_or_default().trim().trim_matches(['(', ')']).to_owned();
        let health = if trouble.is_empty() { "good".to_owned() } else { trouble };
        first.into_iter().chain([node, replica.disk.clone(), health]).collect()
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wire::block::Replication;
    use wire::ids::{ContainerId, DatanodeId, Generation, LocalId};
    use wire::operator::{ContainerHealth, LivenessInfo, ReplicaInfo};
    use wire::scm::ContainerState;

    use super::*;

    #[test]
    fn every_replica_has_its_datanode_disk_and_health() {
        let replica = |node: &str, liveness| ReplicaInfo {
            datanode: DatanodeId(Uuid::nil()),
            node: node.to_owned(),
            disk: "disk1".to_owned(),
            generation: Generation(1),
            state: "valid".to_owned(),
            liveness,
            is_reported: true,
            is_sealed: false,
            is_unhealthy: false,
            used_bytes: 0,
            block_count: 0,
            deletion_done: 0,
        };
        let block = |start, state, replicas| BlockLocation {
            start,
            length: 1 << 20,
            container: ContainerId(3),
            local: LocalId(7),
            state,
            health: vec![ContainerHealth::Healthy],
            replicas,
        };
        let replicas = vec![replica("d1", LivenessInfo::Live), replica("d2", LivenessInfo::Dead)];
        let key = KeyLocation {
            bucket: "b".to_owned(),
            key: "a/k".to_owned(),
            size: 2 << 20,
            etag: "ab".to_owned(),
            modified_ms: 0,
            replication: Replication::Three,
            blocks: vec![block(0, Some(ContainerState::Open), replicas), block(1 << 20, None, Vec::new())],
            next_from: None,
        };
        assert_eq!(
            text(&key, 5000),
            "key          s3://b/a/k\nsize         2.0 MiB\netag         ab\nwritten      5 s ago\nreplication  3 datanodes\n\n\
             FROM BYTE   LENGTH  BLOCK  CONTAINER       HEALTH   DATANODE  DISK   REPLICA\n\
             \x20       0  1.0 MiB  3/7    open            healthy  d1        disk1  good\n\
             \x20                                                   d2        disk1  dead\n\
             \x20 1048576  1.0 MiB  3/7    unknown to scm  healthy  none\n"
        );
    }
}
