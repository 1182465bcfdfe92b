//! Operations on buckets.

use http::Method;

use crate::body::Payload;
use crate::client::{Call, S3Client};
use crate::error::Error;
use crate::xml;

/// The region that must not be named in a location constraint.
const REGION_UNNAMED: &str = "us-east-1";

/// A bucket in the caller's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketEntry {
    /// Its name.
    pub name: String,
    /// When it was made, as the server wrote it.
    pub creation_date: String,
}

impl S3Client {
    /// Makes a bucket, in `region` if one other than Amazon's first is given.
    pub async fn create_bucket(&self, bucket: &str, region: Option<&str>) -> Result<(), Error> {
        let payload = match region.filter(|region| *region != REGION_UNNAMED) {
            Some(region) => Payload::from(xml::location_request(region).into_bytes()),
            None => Payload::empty(),
        };
        self.call(Call::bucket(Method::PUT, bucket)?.payload(payload)).await.map(drop)
    }

    /// Removes an empty bucket.
    pub async fn delete_bucket(&self, bucket: &str) -> Result<(), Error> {
        self.call(Call::bucket(Method::DELETE, bucket)?).await.map(drop)
    }

    /// Succeeds if the bucket exists and the caller may use it.
    pub async fn head_bucket(&self, bucket: &str) -> Result<(), Error> {
        self.call(Call::bucket(Method::HEAD, bucket)?).await.map(drop)
    }

    /// The caller's buckets.
    pub async fn list_buckets(&self) -> Result<Vec<BucketEntry>, Error> {
        let call = Call { bucket: "", ..Call::bucket(Method::GET, "-")? };
        let document: xml::ListAllMyBucketsResult =
            xml::read("ListAllMyBucketsResult", &self.call(call).await?)?;
        let entries = document.buckets.bucket.into_iter();
        Ok(entries
            .map(|bucket| BucketEntry { name: bucket.name, creation_date: bucket.creation_date })
            .collect())
    }
}
