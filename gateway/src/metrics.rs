//! The gateway's metrics, each with its meaning. No label is chosen by a user.

use metrics::{counter, gauge, histogram};

/// Requests answered, by operation and class of status.
pub const REQUESTS: &str = "gateway_requests_total";
/// Seconds from a request's head to the head of its answer, by operation.
pub const REQUEST_SECONDS: &str = "gateway_request_seconds";
/// Connections open now.
pub const CONNECTIONS: &str = "gateway_connections";
/// Connections refused because too many were open.
pub const CONNECTIONS_REFUSED: &str = "gateway_connections_refused_total";
/// TLS handshakes that failed or took too long.
pub const HANDSHAKES_FAILED: &str = "gateway_handshakes_failed_total";

/// Describes the metrics to whoever collects them.
pub fn describe() {
    metrics::describe_counter!(REQUESTS, "Requests answered, by operation and class of status.");
    metrics::describe_histogram!(
        REQUEST_SECONDS,
        metrics::Unit::Seconds,
        "Seconds from a request's head to the head of its answer, by operation."
    );
    metrics::describe_gauge!(CONNECTIONS, "Connections open now.");
    metrics::describe_counter!(CONNECTIONS_REFUSED, "Connections refused because too many were open.");
    metrics::describe_counter!(HANDSHAKES_FAILED, "TLS handshakes that failed or took too long.");
}

pub(crate) fn request_answered(operation: &'static str, status: http::StatusCode, elapsed_ns: u64) {
    let class = match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    counter!(REQUESTS, "operation" => operation, "status" => class).increment(1);
    histogram!(REQUEST_SECONDS, "operation" => operation).record(elapsed_ns as f64 / 1e9);
}

pub(crate) fn connections_changed(by: f64) {
    gauge!(CONNECTIONS).increment(by);
}

pub(crate) fn connection_refused() {
    counter!(CONNECTIONS_REFUSED).increment(1);
}

pub(crate) fn handshake_failed() {
    counter!(HANDSHAKES_FAILED).increment(1);
}
