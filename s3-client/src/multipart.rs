//! Multipart uploads: create, parts, complete, abort.

use http::header::ETAG;
use http::{HeaderMap, Method};

use crate::body::Payload;
use crate::client::{Call, S3Client};
use crate::error::Error;
use crate::xml;

/// A part as Complete must name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedPart {
    /// Its number, from 1.
    pub number: u16,
    /// Its entity tag, quotes included.
    pub etag: String,
}

impl S3Client {
    /// Begins an upload; `headers` carry content type and metadata of the object to be.
    pub async fn create_multipart_upload(
        &self,
        bucket: &str,
        key: &str,
        headers: HeaderMap,
    ) -> Result<String, Error> {
        let call = Call { headers, ..Call::object(Method::POST, bucket, key)?.query(&[("uploads", "")]) };
        let document: xml::InitiateMultipartUploadResult =
            xml::read("InitiateMultipartUploadResult", &self.call(call).await?)?;
        Ok(document.upload_id)
    }

    /// Stores one part.
    pub async fn upload_part(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
        number: u16,
        payload: Payload,
    ) -> Result<UploadedPart, Error> {
        let number_text = number.to_string();
        let query = [("partNumber", number_text.as_str()), ("uploadId", upload_id)];
        let response =
            self.send(Call::object(Method::PUT, bucket, key)?.query(&query).payload(payload)).await?;
        let etag = response.head.headers.get(ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let etag = etag.ok_or_else(|| Error::Response("a part was stored without an ETag".into()))?;
        response.collect(xml::DOCUMENT_BYTES_MAX).await?;
        Ok(UploadedPart { number, etag })
    }

    /// Makes the object of its parts, which must be in order, and returns its entity tag.
    pub async fn complete_multipart_upload(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
        parts: &[UploadedPart],
    ) -> Result<String, Error> {
        let query = [("uploadId", upload_id)];
        let payload = Payload::from(xml::complete_request(parts).into_bytes());
        let call = Call::object(Method::POST, bucket, key)?.query(&query).payload(payload);
        let document: xml::CompleteMultipartUploadResult =
            xml::read("CompleteMultipartUploadResult", &self.call(call).await?)?;
        Ok(document.etag)
    }

    /// Gives an upload up and frees its parts.
    pub async fn abort_multipart_upload(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
    ) -> Result<(), Error> {
        let query = [("uploadId", upload_id)];
        self.call(Call::object(Method::DELETE, bucket, key)?.query(&query)).await.map(drop)
    }
}
