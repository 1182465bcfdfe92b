//! UploadPart and UploadPartCopy: as PutObject, but what becomes visible is a part of an upload.
//!
//! Not here: the other operations of uploads (see `multipart`).

use std::ops::Range;
use std::sync::Arc;

use auth::Action;
use http::StatusCode;
use http::header::ETAG;
use wire::checksum::{Checksum, ChecksumAlgorithm, Etag};
use wire::ids::WriteId;
use wire::limits::{PARTS_MAX, PUT_BYTES_MAX};
use wire::om::{CommitPart, GetUpload, UploadInfo};

use crate::access::Bucket;
use crate::checksum::{self, Claims};
use crate::commit_object::finished;
use crate::copy_object::{Source as CopySource, read_source};
use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::get_object::open_stream;
use crate::object_body::{self, StoredBody};
use crate::put_object::set_checksum;
use crate::range::ByteRange;
use crate::request::RequestContext;
use crate::request_body::Source;
use crate::response::{self, set, xml};
use crate::xml::XmlWriter;

/// UploadPart.
pub(crate) async fn upload_part(context: &Arc<RequestContext>, source: Source) -> Outcome {
    let (upload_id, part) = part_of(context)?;
    object_body::check_length(context)?;
    let claims = Claims::of(context.headers())?;
    let upload = get_upload(context, upload_id).await?;
    let asked = upload.checksum.map(|(algorithm, _)| algorithm);
    check_algorithm(&claims, asked)?;

    let body = object_body::store(context, source, &claims, asked, upload.replication, None).await?;
    let etag = Etag::whole(body.md5);
    let (checksums, algorithm) = commit_part(context.clone(), upload_id, part, body).await?;

    let mut answer = response::empty(StatusCode::OK);
    set(answer.headers_mut(), ETAG, &format!("\"{etag}\""));
    let checksum = checksum::answered(checksums, algorithm.or(asked));
    set_checksum(answer.headers_mut(), checksum.as_ref());
    Ok(answer)
}

/// UploadPartCopy: a part from a range of an object. The bytes are copied, since a part needs its own MD5.
pub(crate) async fn upload_part_copy(context: &Arc<RequestContext>) -> Outcome {
    let (upload_id, part) = part_of(context)?;
    let source = CopySource::of(context)?;
    let range = context.header(SOURCE_RANGE).map(source_range).transpose()?;
    let upload = get_upload(context, upload_id).await?;
    let asked = upload.checksum.map(|(algorithm, _)| algorithm);

    let from = range.as_ref().map_or(0, |range| range.start);
    let (bucket, found) = read_source(context, &source, Some(from)).await?;
    let size = found.info.head.size;
    let bytes = match range {
        None => 0..size,
        Some(range) if range.end <= size => range,
        Some(_) => {
            return Err(S3Error::new(
                "InvalidRange",
                StatusCode::RANGE_NOT_SATISFIABLE,
                format!("Range specified is not valid for source object of size: {size}"),
            ));
        }
    };
    if bytes.end - bytes.start > PUT_BYTES_MAX {
        return Err(S3Error::entity_too_large(bytes.end - bytes.start, PUT_BYTES_MAX));
    }
    let length = bytes.end - bytes.start;
    let stream = open_stream(context, bucket, found, bytes);
    let body = object_body::store_copy(context, stream, length, asked, upload.replication).await?;
    let etag = Etag::whole(body.md5);
    let (checksums, _) = commit_part(context.clone(), upload_id, part, body).await?;

    let mut writer = XmlWriter::of("CopyPartResult");
    writer.text("LastModified", &response::iso_date(wire::clock::now_ms()));
    writer.text("ETag", &format!("\"{etag}\""));
    if let Some(checksum) = checksums.iter().find(|checksum| Some(checksum.algorithm) == asked) {
        writer.text(&format!("Checksum{}", checksum.algorithm.name()), &checksum::encode(checksum));
    }
    writer.close("CopyPartResult");
    Ok(xml(writer))
}

const SOURCE_RANGE: &str = "x-amz-copy-source-range";

/// `bytes=first-last`, and nothing else.
fn source_range(text: &str) -> Result<Range<u64>, S3Error> {
    match ByteRange::parse(text) {
        Some(ByteRange::Span(first, last)) if text.starts_with("bytes=") && last < u64::MAX => {
            Ok(first..last + 1)
        }
        _ => {
            let message = "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy";
            Err(S3Error::invalid_argument(message, SOURCE_RANGE, text))
        }
    }
}

/// `uploadId` and `partNumber`. An id that cannot be one is no upload.
pub(crate) fn part_of(context: &RequestContext) -> Result<(WriteId, u32), S3Error> {
    let upload = context.query.get("uploadId").unwrap_or("");
    let number = context.query.get("partNumber").unwrap_or("");
    let part = number.parse().ok().filter(|part| (1..=PARTS_MAX).contains(part)).ok_or_else(|| {
        let message = "Part number must be an integer between 1 and 10000, inclusive";
        S3Error::invalid_argument(message, "partNumber", number)
    })?;
    let upload = upload.parse().map_err(|_| S3Error::no_such_upload(upload))?;
    Ok((upload, part))
}

/// The upload, before anything of the body is read.
pub(crate) async fn get_upload(context: &RequestContext, upload: WriteId) -> Result<UploadInfo, S3Error> {
    let (key, session) = (context.key()?, &context.gateway.session);
    let work = |bucket: Bucket| async move {
        session.call(GetUpload { bucket: bucket.reference, key: key.clone(), upload }).await
    };
    context.with_bucket(Action::PutObject, work).await
}

/// A part must not carry another checksum than its upload was created for.
fn check_algorithm(claims: &Claims, asked: Option<ChecksumAlgorithm>) -> Result<(), S3Error> {
    match (&claims.checksum, asked) {
        (Some((given, _)), Some(asked)) if *given != asked => Err(S3Error::invalid_request(format!(
            "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
            asked.name().to_lowercase(),
            given.name().to_lowercase()
        ))),
        _ => Ok(()),
    }
}

/// Makes the part visible in a task of its own; answers its checksums and the algorithm it claimed.
pub(crate) async fn commit_part(
    context: Arc<RequestContext>,
    upload: WriteId,
    part: u32,
    body: StoredBody,
) -> Result<(Vec<Checksum>, Option<ChecksumAlgorithm>), S3Error> {
    let commit = platform::task::spawn(async move {
        let (key, body_ref, session) = (context.key()?, &body, &context.gateway.session);
        let work = |bucket: Bucket| async move {
            let make = |write| CommitPart {
                context: write,
                bucket: bucket.reference.clone(),
                key: key.clone(),
                upload,
                part,
                size: body_ref.size,
                etag: Etag::whole(body_ref.md5),
                checksums: body_ref.checksums.clone(),
                blocks: body_ref.blocks.entries().to_vec(),
            };
            session.command(make).await
        };
        let committed = context.with_bucket(Action::PutObject, work).await?;
        context.witness(committed.version.index);
        let StoredBody { blocks, checksums, algorithm, .. } = body;
        blocks.committed();
        Ok::<_, S3Error>((checksums, algorithm))
    });
    finished(commit).await
}
