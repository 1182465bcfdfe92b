//! When a cluster under test is whole again: every datanode live, every voter of both groups heard of by its leader and level
//! with it.
//!
//! It asks what an operator would ask (`ferrozone admin status --json`). What heals later, copies and closed containers,
//! is not waited for: the cluster must bear the next loss without it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::rig::{Rig, Role};
use crate::stopwatch::wait_until;

/// Entries that a follower under load may be behind and still count as level.
const LAG_MAX: u64 = 2000;

/// Waits until the cluster is whole.
///
/// # Errors
/// If it is not within `deadline`; says what is missing.
pub(crate) fn wait_whole(rig: &Rig, binary: &std::path::Path, deadline: Duration) -> Result<()> {
    let counts = [rig.names(Role::Meta).len(), rig.names(Role::Datanode).len()];
    let gateway = rig.names(Role::Gateway).pop().context("a rig has a gateway")?;
    let mut missing = String::new();
    let waited = wait_until("a whole cluster", deadline, || {
        let mut command = Command::new(binary);
        rig.admin(&mut command, &gateway, &["status", "--json"]);
        let output = command.output().context("run ferrozone admin status")?;
        missing = match serde_json::from_slice(&output.stdout) {
            Ok(status) => lacks(&status, counts).unwrap_or_default(),
            Err(_) => String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        Ok(missing.is_empty().then_some(()))
    });
    waited.with_context(|| format!("last seen: {missing}"))
}

fn lacks(status: &Value, [metas, datanodes]: [usize; 2]) -> Option<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for name in ["om_group", "scm_group"] {
        let group = &status[name];
        let Some(leader) = group["leader"].as_u64() else { return Some(format!("{name} has no leader")) };
        let commit = group["commit_index"].as_u64().unwrap_or(u64::MAX);
        let is_level = |member: &&Value| {
            let is_leader = member["member"]["raft_id"].as_u64() == Some(leader);
            let matched = member["match_index"].as_u64().unwrap_or(0);
            is_leader || member["is_active"] == Value::Bool(true) && matched + LAG_MAX >= commit
        };
        let level = list(&group["members"]).iter().filter(is_level).count();
        if level < metas {
            return Some(format!("{name}: {level} of {metas} voters are level"));
        }
    }
    let live = list(&status["datanodes"]).iter().filter(|datanode| datanode["liveness"] == "live").count();
    (live < datanodes).then(|| format!("{live} of {datanodes} datanodes live"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_missing() {
        let member = |raft_id: u64, matched: u64, is_active: bool| serde_json::json!({"member": {"raft_id": raft_id}, "match_index": matched, "is_active": is_active});
        let group = |matched: u64, is_active: bool| {
            serde_json::json!({
                "leader": 1, "commit_index": 9000, "members": [member(1, 0, true), member(2, matched, is_active)]
            })
        };
        let status = |group: Value, liveness: &str| serde_json::json!({"om_group": group, "scm_group": group, "datanodes": [{"liveness": liveness}]});
        assert_eq!(lacks(&status(group(8990, true), "live"), [2, 1]), None);
        for bad in [
            status(group(8990, false), "live"),
            status(group(10, true), "live"),
            status(group(8990, true), "silent"),
            serde_json::json!({"om_group": null}),
        ] {
            assert!(lacks(&bad, [2, 1]).is_some(), "{bad}");
        }
    }
}
