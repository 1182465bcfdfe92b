//! The gateway's settings, each with the reason for its default.

use std::time::Duration;

/// What an operator may choose about the S3 port.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The region this service is in. Named by GetBucketLocation, HeadBucket and in errors.
    pub region: String,
    /// Refuse signatures scoped to another region. Off: clients guess regions, and here is only one.
    pub strict_region: bool,
    /// Accept presigned SigV2 URLs: the aws cli and boto3 still make them in us-east-1.
    pub sigv2_presign: bool,
    /// Domains under which `bucket.domain` names a bucket. `localhost`: resolvers send all its subdomains to loopback.
    pub domains: Vec<String>,
    /// Connections in all. Each costs some 10 KiB while idle.
    pub connections_max: usize,
    /// Connections of one address: one client must not take all of them.
    pub connections_per_ip_max: usize,
    /// A request head must be complete within this: slow-loris.
    pub header_timeout: Duration,
    /// An idle connection is closed after this: longer than most clients pause, shorter than many proxies' minute.
    pub idle_timeout: Duration,
    /// A body must bring so many bytes a second ...
    pub body_rate_min: u64,
    /// ... over this long, and a client must take something of an answer in it.
    pub body_rate_window: Duration,
    /// How long open requests may finish at shutdown: less than the 30 s most supervisors wait before they kill.
    pub shutdown_deadline: Duration,
    /// Bytes of bodies held at once, over all requests. Of the 256 MiB the process may take under 64 large uploads.
    pub body_memory_bytes: usize,
    /// For tests: answers carry `x-ferrozone-witness`, the OM Raft index at which the request took its place among all
    /// others, so that a checker can order what clients saw. Off: it tells strangers how busy the cluster is.
    pub witness: bool,
    /// hyper's buffer per connection; also bounds the request head. Measured: 64 KiB is enough for line rate.
    pub connection_buffer_bytes: usize,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            region: "us-east-1".to_owned(),
            strict_region: false,
            sigv2_presign: true,
            domains: vec!["localhost".to_owned()],
            connections_max: 8192,
            connections_per_ip_max: 4096,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_rate_min: 1024,
            body_rate_window: Duration::from_secs(30),
            shutdown_deadline: Duration::from_secs(25),
            body_memory_bytes: 96 << 20,
            witness: false,
            connection_buffer_bytes: 64 << 10,
        }
    }
}
