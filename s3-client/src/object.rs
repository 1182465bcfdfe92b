//! Operations on single objects, and DeleteObjects.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, ETAG, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use md5::{Digest, Md5};

use crate::body::Payload;
use crate::client::{Call, S3Client};
use crate::error::Error;
use crate::pool::Response;
use crate::xml;

/// A body nobody wants, such as a web server's page of thanks for a PUT, is read up to this.
const DISCARD_BYTES_MAX: usize = 64 << 10;

/// The most keys DeleteObjects takes.
const DELETE_KEYS_MAX: usize = 1000;

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

/// What a server says of an object it stored.
#[derive(Debug, Clone)]
pub struct PutOutcome {
    /// All response headers.
    pub headers: HeaderMap,
}

/// What a server says of an object.
#[derive(Debug, Clone)]
pub struct ObjectHead {
    /// All response headers.
    pub headers: HeaderMap,
}

/// An object on its way in.
pub struct GetObject {
    /// What precedes the body.
    pub head: ObjectHead,
    response: Response,
}

/// A key that DeleteObjects did not delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteFailure {
    /// The key.
    pub key: String,
    /// Why not, as S3 code.
    pub code: String,
    /// Why not, in words.
    pub message: String,
}

impl PutOutcome {
    /// The entity tag, quotes included.
    pub fn etag(&self) -> Option<&str> {
        text(&self.headers, ETAG)
    }
}

impl ObjectHead {
    /// The entity tag, quotes included.
    pub fn etag(&self) -> Option<&str> {
        text(&self.headers, ETAG)
    }

    /// Length of what was asked for.
    pub fn length(&self) -> Option<u64> {
        text(&self.headers, CONTENT_LENGTH).and_then(|value| value.parse().ok())
    }
}

impl GetObject {
    /// The next piece of the body; `None` at its end. A body that breaks off is an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.response.chunk().await
    }

    /// The whole body in memory, `limit` bytes at most.
    pub async fn bytes(self, limit: usize) -> Result<Bytes, Error> {
        self.response.collect(limit).await
    }

    /// Reads the body, keeps nothing, counts its bytes.
    pub async fn drain(mut self) -> Result<u64, Error> {
        let mut length = 0;
        while let Some(chunk) = self.chunk().await? {
            length += chunk.len() as u64;
        }
        Ok(length)
    }
}

impl S3Client {
    /// Stores an object.
    pub async fn put_object(&self, bucket: &str, key: &str, payload: Payload) -> Result<PutOutcome, Error> {
        self.put_object_with(bucket, key, payload, HeaderMap::new()).await
    }

    /// Stores an object with further request headers: content type, `x-amz-meta-*`, preconditions.
    pub async fn put_object_with(
        &self,
        bucket: &str,
        key: &str,
        payload: Payload,
        headers: HeaderMap,
    ) -> Result<PutOutcome, Error> {
        let call = Call { headers, ..Call::object(Method::PUT, bucket, key)?.payload(payload) };
        let mut response = self.send(call).await?;
        let headers = std::mem::take(&mut response.head.headers);
        response.discard(DISCARD_BYTES_MAX).await?;
        Ok(PutOutcome { headers })
    }

    /// Begins to read an object.
    pub async fn get_object(&self, bucket: &str, key: &str) -> Result<GetObject, Error> {
        self.get(Call::object(Method::GET, bucket, key)?).await
    }

    /// Begins to read the bytes from `first` to `last`, both included, or to the end.
    pub async fn get_object_range(
        &self,
        bucket: &str,
        key: &str,
        first: u64,
        last: Option<u64>,
    ) -> Result<GetObject, Error> {
        let range = match last {
            Some(last) => format!("bytes={first}-{last}"),
            None => format!("bytes={first}-"),
        };
        let mut call = Call::object(Method::GET, bucket, key)?;
        call.headers.insert(RANGE, HeaderValue::from_str(&range).expect("digits fit a header"));
        let object = self.get(call).await?;
        if object.response.head.status != http::StatusCode::PARTIAL_CONTENT {
            return Err(Error::Response("the server ignored the range".into()));
        }
        Ok(object)
    }

    async fn get(&self, call: Call<'_>) -> Result<GetObject, Error> {
        let mut response = self.send(call).await?;
        let headers = std::mem::take(&mut response.head.headers);
        Ok(GetObject { head: ObjectHead { headers }, response })
    }

    /// What is known of an object.
    pub async fn head_object(&self, bucket: &str, key: &str) -> Result<ObjectHead, Error> {
        let response = self.send(Call::object(Method::HEAD, bucket, key)?).await?;
        Ok(ObjectHead { headers: response.head.headers })
    }

    /// Removes an object; S3 does not mind if there is none. Answers the response's headers.
    pub async fn delete_object(&self, bucket: &str, key: &str) -> Result<HeaderMap, Error> {
        let mut response = self.send(Call::object(Method::DELETE, bucket, key)?).await?;
        let headers = std::mem::take(&mut response.head.headers);
        response.discard(DISCARD_BYTES_MAX).await?;
        Ok(headers)
    }

    /// Removes up to 1,000 objects in one request and says which of them remain.
    pub async fn delete_objects(&self, bucket: &str, keys: &[&str]) -> Result<Vec<DeleteFailure>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        if keys.len() > DELETE_KEYS_MAX {
            return Err(Error::Request(format!("{} keys are more than {DELETE_KEYS_MAX}", keys.len())));
        }
        let document = xml::delete_request(keys);
        let digest = STANDARD.encode(Md5::digest(document.as_bytes()));
        let mut call = Call::bucket(Method::POST, bucket)?
            .query(&[("delete", "")])
            .payload(document.into_bytes().into());
        call.headers.insert(CONTENT_MD5, HeaderValue::from_str(&digest).expect("base64 fits a header"));
        let result: xml::DeleteResult = xml::read("DeleteResult", &self.call(call).await?)?;
        let errors = result.errors.into_iter();
        Ok(errors
            .map(|error| DeleteFailure { key: error.key, code: error.code, message: error.message })
            .collect())
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
