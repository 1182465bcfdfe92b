//! Answers: their bodies, common headers, and the XML of errors.
//!
//! Invariants:
//! * Every answer carries `x-amz-request-id`, `x-amz-id-2`, `Server`, `Date` and a Content-Length.
//! * A body that cannot be finished breaks the connection: it never ends as if it were whole.
//!
//! Not here: which errors there are (see `error`).

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use client::key_reader::KeyStream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use wire::clock::UnixMs;
use wire::status::{Failure, Status};

use crate::error::S3Error;
use crate::gateway::RequestId;
use crate::xml::XmlWriter;

/// An answer.
pub(crate) type Response = http::Response<ResponseBody>;

/// `x-amz-request-id`.
pub(crate) const X_AMZ_REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
/// `x-amz-id-2`.
pub(crate) const X_AMZ_ID_2: HeaderName = HeaderName::from_static("x-amz-id-2");
/// `x-amz-bucket-region`.
pub(crate) const X_AMZ_BUCKET_REGION: HeaderName = HeaderName::from_static("x-amz-bucket-region");

/// Clients only print it; a constant says nothing of the machine.
const HOST_ID: HeaderValue = HeaderValue::from_static("ZmVycm96b25l");
const SERVER_NAME: HeaderValue = HeaderValue::from_static("ferrozone");
pub(crate) const APPLICATION_XML: HeaderValue = HeaderValue::from_static("application/xml");

/// The body of an answer.
pub(crate) enum ResponseBody {
    /// All of it is here: head and body leave in one write.
    Whole(Bytes),
    /// It streams; exactly so many bytes are still to come.
    Stream(KeyStream, u64),
}

impl ResponseBody {
    /// No body.
    pub(crate) const fn empty() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl From<Bytes> for ResponseBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(_, 0) => Poll::Ready(None),
            Self::Stream(stream, left) => match stream.as_mut().poll_next(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(data))) if data.len() as u64 <= *left => {
                    *left -= data.len() as u64;
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Poll::Ready(Some(Ok(_))) => {
                    Poll::Ready(Some(Err(Failure::new(Status::Internal, "more bytes than the object has"))))
                }
                Poll::Ready(Some(Err(failure))) => {
                    tracing::error!(%failure, "an object could not be read to its end; breaking the connection");
                    Poll::Ready(Some(Err(failure)))
                }
                Poll::Ready(None) => {
                    tracing::error!(left = *left, "an object ended early; breaking the connection");
                    Poll::Ready(Some(Err(Failure::new(Status::Internal, "fewer bytes than the object has"))))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(_, left) => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Stream(_, left) => *left,
        })
    }
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}

/// 200 with an XML body.
pub(crate) fn xml(writer: XmlWriter) -> Response {
    let mut response = Response::new(ResponseBody::Whole(writer.finish()));
    response.headers_mut().insert(CONTENT_TYPE, APPLICATION_XML);
    response
}

/// Adds a header whose value we made ourselves.
pub(crate) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => tracing::warn!(header = name.as_str(), "a header's value cannot be sent and was left out"),
    }
}

/// Last-Modified's form of a time. HTTP dates have seconds only.
pub(crate) fn http_date(ms: UnixMs) -> String {
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms))
}

/// XML's form of a time: `2026-01-02T03:04:05.678Z`.
pub(crate) fn iso_date(ms: UnixMs) -> String {
    let timestamp = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", timestamp.unwrap_or(jiff::Timestamp::MAX))
}

/// The answer to a refusal. `resource` is the raw path.
pub(crate) fn error(refusal: &S3Error, method: &Method, resource: &str, id: RequestId) -> Response {
    let has_body = method != Method::HEAD && refusal.status != StatusCode::NOT_MODIFIED;
    let body = if has_body { error_body(refusal, resource, id) } else { Bytes::new() };
    let length = body.len();
    let mut response = Response::new(ResponseBody::Whole(body));
    *response.status_mut() = refusal.status;
    let headers = response.headers_mut();
    if has_body {
        headers.insert(CONTENT_TYPE, APPLICATION_XML);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    for (name, value) in &refusal.headers {
        set(headers, HeaderName::from_static(name), value);
    }
    response
}

fn error_body(refusal: &S3Error, resource: &str, id: RequestId) -> Bytes {
    let mut xml = XmlWriter::new();
    xml.open("Error");
    xml.text("Code", refusal.code);
    xml.echo("Message", &refusal.message);
    for (name, value) in &refusal.details {
        xml.echo(name, value);
    }
    xml.text("Resource", resource);
    xml.text("RequestId", id.as_str());
    xml.text("HostId", HOST_ID.to_str().unwrap_or_default());
    xml.close("Error");
    xml.finish()
}

/// Adds what every answer carries.
pub(crate) fn stamp(response: &mut Response, id: RequestId) {
    let headers = response.headers_mut();
    let digits = HeaderValue::from_str(id.as_str()).expect("hexadecimal digits are a header value");
    headers.insert(X_AMZ_REQUEST_ID, digits);
    headers.insert(X_AMZ_ID_2, HOST_ID);
    headers.insert(SERVER, SERVER_NAME);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_their_forms() {
        assert_eq!(iso_date(1_767_322_645_678), "2026-01-02T02:57:25.678Z");
        assert_eq!(iso_date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
