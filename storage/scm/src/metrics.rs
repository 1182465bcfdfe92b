//! Every metric of SCM, with its meaning.

use metrics::{counter, gauge};

/// Leases granted, repeats included.
pub(crate) fn lease_granted() {
    counter!("scm_lease_grants_total").increment(1);
}

/// Requests for a lease that had to wait for datanodes.
pub(crate) fn lease_refused() {
    counter!("scm_lease_refusals_total").increment(1);
}

/// Blocks whose deletion is logged, repeats included.
pub(crate) fn deletions_logged(blocks: usize) {
    counter!("scm_deletion_blocks_total").increment(blocks as u64);
}

/// Heartbeats answered.
pub(crate) fn heartbeat() {
    counter!("scm_heartbeats_total").increment(1);
}

/// Datanodes that may be written to now.
pub(crate) fn live_datanodes(count: usize) {
    gauge!("scm_datanodes_live_count").set(count as f64);
}

/// Containers that are OPEN or CLOSING.
pub(crate) fn active_containers(count: usize) {
    gauge!("scm_containers_active_count").set(count as f64);
}

/// What the last pass over all containers found.
pub(crate) fn repair(findings: &crate::replication::Findings) {
    gauge!("scm_containers_missing_count").set(findings.missing as f64);
    gauge!("scm_containers_under_replicated_count").set(findings.under_replicated as f64);
    gauge!("scm_containers_over_replicated_count").set(findings.over_replicated as f64);
    gauge!("scm_containers_unhealthy_count").set(findings.unhealthy as f64);
    gauge!("scm_replicas_deleting_count").set(findings.deleting as f64);
}

/// Writers that asked to leave out datanodes, by outcome.
pub(crate) fn degraded(is_accepted: bool) {
    let outcome = if is_accepted { "accepted" } else { "refused" };
    counter!("scm_degrades_total", "outcome" => outcome).increment(1);
}
