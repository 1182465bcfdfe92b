//! Health and metrics.
//!
//! * `GET /healthz/live`: the process answers.
//! * `GET /healthz/ready`: it serves; else 503 with what is awaited.
//! * `GET /metrics`: Prometheus text.
//!
//! MinIO's paths of the two checks are answered as well, since many compose files and charts ask there.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::RwLock;

/// Bounds of duration histograms, in seconds: from a cached read to a stalled disk.
const SECONDS_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Why the metrics could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be recorded: {0}")]
pub struct MetricsError(String);

/// Installs the process's metrics recorder. Once a process.
pub fn record_metrics() -> Result<PrometheusHandle, MetricsError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| MetricsError(error.to_string()))
}

/// Whether the process serves, and if not, what it waits for.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<RwLock<Option<String>>>);

impl Readiness {
    /// Not ready: waiting for `what`.
    pub fn waiting(what: &str) -> Self {
        Self(Arc::new(RwLock::new(Some(what.to_owned()))))
    }

    /// Now waits for `what`.
    pub fn wait_for(&self, what: &str) {
        *self.0.write() = Some(what.to_owned());
    }

    /// Serves now.
    pub fn set_ready(&self) {
        *self.0.write() = None;
    }
}

#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    metrics: PrometheusHandle,
}

/// The operators' routes.
pub fn router(readiness: Readiness, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/healthz/live", get(live))
        .route("/minio/health/live", get(live))
        .route("/healthz/ready", get(ready))
        .route("/healthz/cluster", get(ready))
        .route("/minio/health/ready", get(ready))
        .route("/minio/health/cluster", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(Shared { readiness, metrics })
}

async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.readiness.0.read().as_ref() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {what}\n")),
    }
}

async fn metrics_text(State(shared): State<Shared>) -> impl IntoResponse {
    shared.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shared.metrics.render())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn get_text(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_says_what_it_waits_for() {
        let readiness = Readiness::waiting("om");
        let recorder = PrometheusBuilder::new().build_recorder();
        let router = router(readiness.clone(), recorder.handle());
        assert_eq!(get_text(&router, "/healthz/live").await.0, StatusCode::OK);
        let (status, text) = get_text(&router, "/healthz/ready").await;
        assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "waiting for om\n"));
        readiness.set_ready();
        assert_eq!(get_text(&router, "/minio/health/ready").await.0, StatusCode::OK);
        metrics::with_local_recorder(&recorder, || metrics::counter!("test_requests_total").increment(3));
        assert!(get_text(&router, "/metrics").await.1.contains("test_requests_total 3"));
    }
}
