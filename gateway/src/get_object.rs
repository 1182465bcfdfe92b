//! GetObject, HeadObject: conditions, one range or part, and the bytes as the datanodes' checksums vouch for them.
//!
//! Invariant: a 200 or 206 either carries exactly the bytes it announces, or its connection breaks.
//!
//! GetObjectAttributes stands here too: it shows the same version in XML.
//!
//! Not here: the reading of blocks (client).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use auth::Action;
use bytes::Bytes;
use client::key_reader::READ_AHEAD_BYTES;
use client::service::CallError;
use futures_util::{StreamExt, stream};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, EXPIRES, HeaderName, HeaderValue, LAST_MODIFIED,
};
use http::{HeaderMap, StatusCode};
use wire::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind};
use wire::limits::LIST_ENTRIES_MAX;
use wire::names::KeyName;
use wire::om::{
    BucketRef, KeyFound, KeyInfo, LayoutPage, ListItem, ListKeys, LookupKey, PartRun, Rejection, StorageClass,
};
use wire::status::{Failure, Status};

use crate::access::{Bucket, Caller};
use crate::checksum;
use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::headers::{sent_again, storage_class_name};
use crate::range::ByteRange;
use crate::read_conditions::{READ, Verdict};
use crate::request::RequestContext;
use crate::response::{self, Response, ResponseBody, set};
use crate::xml::XmlWriter;

/// S3's type of an object that was put without one.
const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";
/// Times a key is looked up that is there and not there by turns.
const LOOK_UPS_MAX: usize = 5;
/// Query parameters that override headers of the answer.
const OVERRIDES: [(&str, HeaderName); 6] = [
    ("response-content-type", CONTENT_TYPE),
    ("response-content-language", CONTENT_LANGUAGE),
    ("response-expires", EXPIRES),
    ("response-cache-control", CACHE_CONTROL),
    ("response-content-disposition", CONTENT_DISPOSITION),
    ("response-content-encoding", CONTENT_ENCODING),
];

/// GetObject.
pub(crate) async fn get_object(context: &Arc<RequestContext>) -> Outcome {
    let wanted = Wanted::of(context)?;
    let (bucket, found) = look_up(context, Some(wanted.first_byte())).await?;
    let info = &found.info;
    if let Some(answer) = judge(context, info)? {
        return Ok(answer);
    }
    let piece = wanted.resolve(info)?;
    let mut answer = describe(context, info, &piece)?;
    if !piece.bytes.is_empty() {
        *answer.body_mut() = open_body(context, bucket, found, piece.bytes.clone()).await?;
    }
    Ok(answer)
}

/// HeadObject.
pub(crate) async fn head_object(context: &Arc<RequestContext>) -> Outcome {
    let wanted = Wanted::of(context)?;
    let (_, found) = look_up(context, None).await?;
    if let Some(answer) = judge(context, &found.info)? {
        return Ok(answer);
    }
    let piece = wanted.resolve(&found.info)?;
    describe(context, &found.info, &piece)
}

/// GetObjectAttributes: only what `x-amz-object-attributes` asks for.
pub(crate) async fn get_object_attributes(context: &Arc<RequestContext>) -> Outcome {
    let asked = asked_attributes(context)?;
    let (_, found) = look_up(context, None).await?;
    let info = &found.info;
    if let Some(answer) = judge(context, info)? {
        return Ok(answer);
    }
    let asks = |name| asked.contains(&name);
    let mut xml = XmlWriter::of("GetObjectAttributesResponse");
    if asks("ETag") {
        xml.text("ETag", &info.head.etag.to_string());
    }
    if asks("Checksum")
        && let Some(checksum) = shown_checksum(info)
    {
        xml.open("Checksum");
        let element = format!("Checksum{}", checksum.algorithm.name());
        xml.text(&element, &printed(checksum, info.head.etag.parts));
        xml.text("ChecksumType", checksum.kind.name());
        xml.close("Checksum");
    }
    if asks("ObjectParts") && !info.parts.is_empty() {
        write_parts(context, info, &mut xml)?;
    }
    if asks("StorageClass") {
        xml.text("StorageClass", storage_class_name(info.head.storage_class));
    }
    if asks("ObjectSize") {
        xml.number("ObjectSize", info.head.size);
    }
    xml.close("GetObjectAttributesResponse");
    let mut answer = response::xml(xml);
    set(answer.headers_mut(), LAST_MODIFIED, &response::http_date(info.head.modified_ms));
    Ok(answer)
}

/// The names in `x-amz-object-attributes`, which may come in several headers.
fn asked_attributes(context: &RequestContext) -> Result<Vec<&'static str>, S3Error> {
    const KNOWN: [&str; 5] = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];
    const HEADER: &str = "x-amz-object-attributes";
    let mut asked = Vec::new();
    for value in context.headers().get_all(HEADER) {
        for name in value.to_str().unwrap_or("").split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let known = KNOWN.into_iter().find(|known| *known == name);
            asked.push(known.ok_or_else(|| {
                S3Error::invalid_argument("Invalid attribute name specified.", HEADER, name)
            })?);
        }
    }
    if asked.is_empty() {
        return Err(S3Error::invalid_request(
            "The x-amz-object-attributes header must name at least one attribute.",
        ));
    }
    Ok(asked)
}

/// A page of the parts of a multipart object: numbers and sizes.
fn write_parts(context: &RequestContext, info: &KeyInfo, xml: &mut XmlWriter) -> Result<(), S3Error> {
    let number = |name: &'static str, default: u32| match context.header(name) {
        None => Ok(default),
        Some(text) => text.trim().parse().map_err(|_| {
            S3Error::invalid_argument("Provided value is not a number from 0 to 2147483647.", name, text)
        }),
    };
    let after = number("x-amz-part-number-marker", 0)?;
    let max = number("x-amz-max-parts", LIST_ENTRIES_MAX)?.min(LIST_ENTRIES_MAX);
    let count = parts_count(info);
    let last = after.saturating_add(max).min(count);
    xml.open("ObjectParts");
    xml.number("PartsCount", count.into());
    xml.number("PartNumberMarker", after.into());
    xml.number("NextPartNumberMarker", last.into());
    xml.number("MaxParts", max.into());
    xml.boolean("IsTruncated", last < count);
    for part in after + 1..=last {
        let bytes = part_bytes(&info.parts, part).unwrap_or_default();
        xml.open("Part");
        xml.number("PartNumber", part.into());
        xml.number("Size", bytes.end - bytes.start);
        if let Some(checksum) = part_checksum(info, part) {
            xml.text(&format!("Checksum{}", checksum.algorithm.name()), &checksum::encode(&checksum));
        }
        xml.close("Part");
    }
    xml.close("ObjectParts");
    Ok(())
}

/// The current version; `layout_from` also asks for its blocks.
async fn look_up(
    context: &RequestContext,
    layout_from: Option<u64>,
) -> Result<(BucketRef, KeyFound), S3Error> {
    let key = context.key()?;
    check_version(context)?;
    let session = &context.gateway.session;
    let look_up = |bucket: Bucket| async move {
        let reference = bucket.reference;
        let request = LookupKey { bucket: reference.clone(), key: key.clone(), layout_from };
        match session.call(request).await {
            Ok(found) => Ok(Some((reference, found))),
            Err(error) if is_no_such_key(&error) && context.gateway.config.witness => {
                witness_absence(context, reference, key).await
            }
            Err(error) => Err(error),
        }
    };
    for _ in 0..LOOK_UPS_MAX {
        let outcome = context.with_bucket(Action::GetObject, look_up).await;
        if let Some((reference, found)) = outcome.map_err(|error| no_such_key(error, context))? {
            context.witness(found.read_index);
            context.version_witness.store(found.info.version.index, Ordering::Release);
            return Ok((reference, found));
        }
    }
    Err(S3Error::slow_down("the key comes and goes"))
}

/// A rejection carries no index, so in witness mode the key's absence is read again in a way that does: by a listing that
/// would begin with it. None: it is there by now.
async fn witness_absence(
    context: &RequestContext,
    bucket: BucketRef,
    key: &KeyName,
) -> Result<Option<(BucketRef, KeyFound)>, CallError> {
    let (prefix, nothing) = (key.as_str().to_owned(), String::new);
    let request = ListKeys { bucket, prefix, delimiter: nothing(), after: nothing(), max: 1 };
    let page = context.gateway.session.call(request).await?;
    match page.items.first() {
        Some(ListItem::Key(first, _)) if first == key => Ok(None),
        _ => {
            context.witness(page.read_index);
            Err(Rejection::NoSuchKey.into())
        }
    }
}

/// Names the key in `NoSuchKey`.
fn no_such_key(error: S3Error, context: &RequestContext) -> S3Error {
    match (error.code, context.key()) {
        ("NoSuchKey", Ok(key)) => S3Error::no_such_key(key.as_str()),
        _ => error,
    }
}

/// Buckets are unversioned: the one version there is has the id `null`.
pub(crate) fn check_version(context: &RequestContext) -> Result<(), S3Error> {
    match context.query.get("versionId") {
        None | Some("null") => Ok(()),
        Some("") => Err(S3Error::invalid_argument("Version id cannot be the empty string", "versionId", "")),
        Some(version) => {
            let key = context.key().map(|key| key.as_str().to_owned()).unwrap_or_default();
            Err(S3Error::no_such_version(&key, version))
        }
    }
}

/// 304 or 412, if a condition says so.
fn judge(context: &RequestContext, info: &KeyInfo) -> Result<Option<Response>, S3Error> {
    match READ.decide(context.headers(), info.head.etag, info.head.modified_ms) {
        Verdict::Holds => Ok(None),
        Verdict::Failed => Err(S3Error::precondition_failed("If-Match or If-Unmodified-Since")),
        Verdict::NotModified => {
            let mut answer = response::empty(StatusCode::NOT_MODIFIED);
            set(answer.headers_mut(), ETAG, &format!("\"{}\"", info.head.etag));
            set(answer.headers_mut(), LAST_MODIFIED, &response::http_date(info.head.modified_ms));
            if let Some(cache_control) = &info.attributes.cache_control {
                set(answer.headers_mut(), CACHE_CONTROL, cache_control);
            }
            Ok(Some(answer))
        }
    }
}

/// Which bytes a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Whole,
    Range(ByteRange),
    Part(u32),
}

/// Which bytes it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    bytes: Range<u64>,
    /// 206 with Content-Range; not so for a whole object, nor for an empty part of an empty object.
    is_partial: bool,
    /// `x-amz-mp-parts-count`, if a part of a multipart object was asked for.
    parts_count: Option<u32>,
    /// Which part, counted from 1 in the order of the object.
    part: Option<u32>,
}

impl Wanted {
    fn of(context: &RequestContext) -> Result<Self, S3Error> {
        let range = context.header("range").and_then(ByteRange::parse);
        let part = context.query.get("partNumber");
        match (part, range) {
            (None, None) => Ok(Self::Whole),
            (None, Some(range)) => Ok(Self::Range(range)),
            (Some(_), Some(_)) => Err(S3Error::invalid_request(
                "Cannot specify both Range header and partNumber query parameter",
            )),
            (Some(text), None) => {
                let number =
                    text.parse().ok().filter(|number| (1..=wire::limits::PARTS_MAX).contains(number));
                number.map(Self::Part).ok_or_else(|| {
                    let message = "Part number must be an integer between 1 and 10000, inclusive";
                    S3Error::invalid_argument(message, "partNumber", text)
                })
            }
        }
    }

    /// Where to begin looking for blocks, before the size is known.
    fn first_byte(self) -> u64 {
        match self {
            Self::Range(ByteRange::Span(first, _) | ByteRange::From(first)) => first,
            Self::Range(ByteRange::Last(_)) | Self::Whole | Self::Part(_) => 0,
        }
    }

    fn resolve(self, info: &KeyInfo) -> Result<Piece, S3Error> {
        let size = info.head.size;
        match self {
            Self::Whole => Ok(Piece { bytes: 0..size, is_partial: false, parts_count: None, part: None }),
            Self::Range(range) => match range.resolve(size) {
                Ok(bytes) => Ok(Piece { bytes, is_partial: true, parts_count: None, part: None }),
                Err(_) => Err(S3Error::new(
                    "InvalidRange",
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    "The requested range is not satisfiable",
                )
                .with("ActualObjectSize", size.to_string())
                .with_header("content-range", format!("bytes */{size}"))),
            },
            // An object put whole is its own first part.
            Self::Part(1) if info.parts.is_empty() => {
                Ok(Piece { bytes: 0..size, is_partial: size > 0, parts_count: None, part: None })
            }
            Self::Part(number) => {
                let bytes = part_bytes(&info.parts, number).ok_or_else(|| {
                    S3Error::new(
                        "InvalidPartNumber",
                        StatusCode::RANGE_NOT_SATISFIABLE,
                        "The requested partnumber is not satisfiable",
                    )
                    .with("PartNumberRequested", number.to_string())
                    .with("ActualPartCount", parts_count(info).max(1).to_string())
                })?;
                let is_partial = !bytes.is_empty();
                Ok(Piece { bytes, is_partial, parts_count: Some(parts_count(info)), part: Some(number) })
            }
        }
    }
}

/// Parts of a multipart object; 0 of one put whole.
pub(crate) fn parts_count(info: &KeyInfo) -> u32 {
    info.parts.iter().map(|run| run.count).sum()
}

/// Bytes of part `number` (from 1, in the order of the object).
fn part_bytes(runs: &[PartRun], number: u32) -> Option<Range<u64>> {
    let mut before = number.checked_sub(1)?;
    let mut start = 0u64;
    for run in runs {
        if before < run.count {
            let start = start + u64::from(before) * run.size;
            return Some(start..start + run.size);
        }
        before -= run.count;
        start += u64::from(run.count) * run.size;
    }
    None
}

/// Status and headers.
fn describe(context: &RequestContext, info: &KeyInfo, piece: &Piece) -> Result<Response, S3Error> {
    let status = if piece.is_partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut answer = response::empty(status);
    let headers = answer.headers_mut();
    headers.reserve(16);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(piece.bytes.end - piece.bytes.start));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set(headers, LAST_MODIFIED, &response::http_date(info.head.modified_ms));
    set(headers, ETAG, &format!("\"{}\"", info.head.etag));
    if piece.is_partial {
        let Range { start, end } = piece.bytes;
        set(headers, CONTENT_RANGE, &format!("bytes {start}-{}/{}", end - 1, info.head.size));
    }
    if let Some(count) = piece.parts_count {
        headers.insert("x-amz-mp-parts-count", HeaderValue::from(count));
    }
    set_attributes(headers, info);
    let is_whole = piece.bytes == (0..info.head.size);
    if let Some((part, kind)) = piece.part.and_then(|part| Some((part, info.head.checksum?.1))) {
        // S3 shows a part's own checksum unasked.
        if let Some(checksum) = part_checksum(info, part) {
            set(headers, HeaderName::from_static(checksum.algorithm.header()), &checksum::encode(&checksum));
            headers.insert("x-amz-checksum-type", HeaderValue::from_static(kind.name()));
        }
    } else if is_whole
        && context.header("x-amz-checksum-mode").is_some_and(|mode| mode.eq_ignore_ascii_case("ENABLED"))
    {
        set_checksum(headers, info);
    }
    override_headers(context, headers)?;
    Ok(answer)
}

/// Content headers, metadata and class, as they were given.
fn set_attributes(headers: &mut HeaderMap, info: &KeyInfo) {
    let attributes = &info.attributes;
    set_text(headers, CONTENT_TYPE, attributes.content_type.as_deref().unwrap_or(DEFAULT_CONTENT_TYPE));
    for (name, value) in [
        (CACHE_CONTROL, &attributes.cache_control),
        (CONTENT_DISPOSITION, &attributes.content_disposition),
        (CONTENT_ENCODING, &attributes.content_encoding),
        (CONTENT_LANGUAGE, &attributes.content_language),
        (EXPIRES, &attributes.expires),
        (HeaderName::from_static("x-amz-website-redirect-location"), &attributes.website_redirect),
    ] {
        if let Some(value) = value {
            set_text(headers, name, value);
        }
    }
    for (name, value) in &attributes.user_metadata {
        if let Ok(name) = HeaderName::from_bytes(format!("x-amz-meta-{name}").as_bytes()) {
            set_text(headers, name, value);
        }
    }
    // S3 leaves the header out for STANDARD.
    if info.head.storage_class != StorageClass::Standard {
        headers.insert(
            "x-amz-storage-class",
            HeaderValue::from_static(storage_class_name(info.head.storage_class)),
        );
    }
}

/// As `response::set`, for a client's own text, which may hold any bytes.
///
/// SDKs send UTF-8 but read headers as ISO-8859-1 (boto3, Java, Node), so text of that alphabet is answered in it and
/// comes back as it was given. Everything else is answered byte for byte.
fn set_text(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    let sent: Option<Vec<u8>> =
        value.chars().map(|character| u8::try_from(u32::from(character)).ok()).collect();
    let text = sent.and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some(value) = text.as_deref().and_then(sent_again).or_else(|| sent_again(value)) {
        headers.insert(name, value);
    }
}

/// The checksum that answers show: the one the client chose, else CRC64NVME.
pub(crate) fn shown_checksum(info: &KeyInfo) -> Option<&Checksum> {
    let algorithm = info.head.checksum.map_or(ChecksumAlgorithm::Crc64Nvme, |(algorithm, _)| algorithm);
    info.checksums.iter().find(|checksum| checksum.algorithm == algorithm)
}

/// The checksum of part `number`, if it was kept.
fn part_checksum(info: &KeyInfo, number: u32) -> Option<Checksum> {
    let (algorithm, _) = info.head.checksum?;
    let from = (number as usize).checked_sub(1)? * algorithm.value_bytes();
    let value = info.part_checksums.get(from..from + algorithm.value_bytes())?;
    Some(Checksum::full(algorithm, value))
}

/// A checksum as S3 prints it: a composite one with its number of parts.
pub(crate) fn printed(checksum: &Checksum, parts: u32) -> String {
    let text = checksum::encode(checksum);
    match checksum.kind {
        ChecksumKind::FullObject => text,
        ChecksumKind::Composite => format!("{text}-{parts}"),
    }
}

fn set_checksum(headers: &mut HeaderMap, info: &KeyInfo) {
    if let Some(checksum) = shown_checksum(info) {
        let name = HeaderName::from_static(checksum.algorithm.header());
        set(headers, name, &printed(checksum, info.head.etag.parts));
        headers.insert("x-amz-checksum-type", HeaderValue::from_static(checksum.kind.name()));
    }
}

/// `response-*` parameters, which only a signed request may use.
fn override_headers(context: &RequestContext, headers: &mut HeaderMap) -> Result<(), S3Error> {
    for (parameter, name) in OVERRIDES {
        let Some(value) = context.query.get(parameter) else { continue };
        if matches!(context.caller, Caller::Anonymous(_)) {
            return Err(S3Error::invalid_request(
                "Request specific response headers cannot be used for anonymous GET requests.",
            ));
        }
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| S3Error::invalid_argument("The header value cannot be sent.", parameter, value))?;
        headers.insert(name, value);
    }
    Ok(())
}

/// Opens the bytes and waits for the first of them, so that what fails at once is still answered as an error.
pub(crate) async fn open_body(
    context: &RequestContext,
    bucket: BucketRef,
    found: KeyFound,
    bytes: Range<u64>,
) -> Result<ResponseBody, S3Error> {
    let length = bytes.end - bytes.start;
    // What lies ready for a client that does not take it.
    let memory = READ_AHEAD_BYTES.min(usize::try_from(length).unwrap_or(usize::MAX));
    let memory = context.gateway.reserve_body_memory(memory).await?;
    let mut stream = open_stream(context, bucket, found, bytes);
    let first = match stream.next().await {
        Some(Ok(first)) => first,
        Some(Err(failure)) => return Err(CallError::Failed(failure).into()),
        None => return Err(Failure::new(Status::Internal, "the object has no bytes").into()),
    };
    if first.len() as u64 == length {
        return Ok(ResponseBody::Whole(first));
    }
    let rest = stream::iter([Ok::<Bytes, Failure>(first)]).chain(stream);
    let rest: client::key_reader::KeyStream = Box::pin(rest.inspect(move |_| {
        let _held = &memory;
    }));
    Ok(ResponseBody::Stream(rest, length))
}

/// The bytes of a version that was just looked up. Their read-ahead is the caller's to account for.
pub(crate) fn open_stream(
    context: &RequestContext,
    bucket: BucketRef,
    found: KeyFound,
    bytes: Range<u64>,
) -> client::key_reader::KeyStream {
    let nothing = LayoutPage { start: 0, entries: Vec::new(), tokens: Vec::new(), locations: Vec::new() };
    let page = found.layout.unwrap_or(nothing);
    context.gateway.reader.read(bucket, found.info.write_id, page, bytes)
}

/// A rejection of a look-up that means the key is not there.
pub(crate) fn is_no_such_key(error: &CallError) -> bool {
    matches!(error, CallError::Rejected(Rejection::NoSuchKey))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_in_runs() {
        let runs = [PartRun { count: 3, size: 10 }, PartRun { count: 1, size: 4 }];
        assert_eq!(part_bytes(&runs, 1), Some(0..10));
        assert_eq!(part_bytes(&runs, 3), Some(20..30));
        assert_eq!(part_bytes(&runs, 4), Some(30..34));
        assert_eq!(part_bytes(&runs, 5), None);
        assert_eq!(part_bytes(&runs, 0), None);
    }
}
