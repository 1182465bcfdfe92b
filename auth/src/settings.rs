//! What the operator may choose about verification.

/// S3: a request may be signed at most 15 minutes before or after it arrives.
pub const MAX_SKEW_MS: u64 = 15 * 60 * 1000;
/// S3: a presigned SigV4 URL lives at most seven days.
pub const PRESIGN_EXPIRES_S_MAX: u64 = 7 * 24 * 3600;

/// Settings of request verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The region of this service. Named in errors and required under `strict_region`.
    pub region: String,
    /// Refuse credential scopes of another region. Off by default: clients guess regions, and here there is only one.
    pub strict_region: bool,
    /// Accept presigned SigV2 query URLs, which `aws s3 presign` and boto3 still make in us-east-1. On by default.
    pub sigv2_presign: bool,
    /// How far the signing time may lie from ours, in milliseconds.
    pub max_skew_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            region: "us-east-1".to_owned(),
            strict_region: false,
            sigv2_presign: true,
            max_skew_ms: MAX_SKEW_MS,
        }
    }
}
