//! Where a key's bytes are: OM's block list joined with SCM's containers.

use std::collections::{BTreeMap, BTreeSet};

use wire::ids::ContainerId;
use wire::names::{BucketName, KeyName};
use wire::operator::{ContainerDetails, GetContainers, KeyBlocks, WhereKey};

use crate::api::{Answer, Call, Operators, json};
use crate::error::ApiError;
use crate::view::{BlockLocation, KeyLocation};

pub(crate) async fn key(operators: &Operators, call: &Call) -> Answer {
    let missing = |name: &str| ApiError::BadRequest(format!("name the {name}"));
    let bucket: BucketName = call.query_as("bucket")?.ok_or_else(|| missing("bucket"))?;
    // Not through JSON: a key may read as a number.
    let key = KeyName::new(call.text("key").ok_or_else(|| missing("key"))?)
        .map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let from = call.query_as("from")?.unwrap_or(0);
    let request = WhereKey { bucket: bucket.clone(), key: key.clone(), from };
    let blocks = operators.om(request).await?;
    let containers: BTreeSet<ContainerId> =
        blocks.entries.iter().map(|entry| entry.block.container).collect();
    let details = if containers.is_empty() {
        Vec::new()
    } else {
        operators.scm(GetContainers { containers: containers.into_iter().collect() }).await?
    };
    json(join(bucket.as_str(), key.as_str(), blocks, details))
}

fn join(bucket: &str, key: &str, blocks: KeyBlocks, details: Vec<ContainerDetails>) -> KeyLocation {
    let details: BTreeMap<ContainerId, ContainerDetails> =
        details.into_iter().map(|container| (container.container, container)).collect();
    let mut start = blocks.start;
    let mut locations = Vec::new();
    for entry in &blocks.entries {
        let container = details.get(&entry.block.container);
        locations.push(BlockLocation {
            start,
            length: entry.length,
            container: entry.block.container,
            local: entry.block.local,
            state: container.map(|container| container.state),
            health: container.map(|container| container.health.clone()).unwrap_or_default(),
            replicas: container.map(|container| container.replicas.clone()).unwrap_or_default(),
        });
        start += entry.length;
    }
    let head = &blocks.info.head;
    KeyLocation {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        size: head.size,
        etag: head.etag.to_string(),
        modified_ms: head.modified_ms,
        replication: blocks.info.replication,
        next_from: (start < head.size && !locations.is_empty()).then_some(start),
        blocks: locations,
    }
}
