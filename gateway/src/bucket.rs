//! CreateBucket, HeadBucket, DeleteBucket, GetBucketLocation.

use std::sync::Arc;

use auth::Action;
use client::service::CallError;
use http::StatusCode;
use http::header::LOCATION;
use tokio::time::Instant;
use wire::om::{CreateBucket, DeleteBucket, Rejection};

use crate::dispatch::{Outcome, detached};
use crate::error::S3Error;
use crate::request::RequestContext;
use crate::request_body::{Source, read_whole};
use crate::response;
use crate::xml::{self, XML_BYTES_MAX, XmlWriter};

/// The region whose buckets have no LocationConstraint, and where an owner may create a bucket again.
const CLASSIC_REGION: &str = "us-east-1";
/// Bytes of a LocationConstraint at most: AWS's longest is 14.
const LOCATION_BYTES_MAX: usize = 64;

/// Creates a bucket in the caller's name.
pub(crate) async fn create_bucket(context: &Arc<RequestContext>, body: Source) -> Outcome {
    context.authorize_service(Action::CreateBucket)?;
    let given = context.target.bucket.as_deref().unwrap_or("");
    let name = wire::names::BucketName::new(given)?;
    let owner = context.owner()?;
    let body = read_whole(context, body, XML_BYTES_MAX).await?;
    let location = location(context, &body)?;
    let work = context.clone();
    let (name_again, id) = (name.clone(), owner.id.clone());
    let asked = Instant::now();
    let outcome = detached(async move {
        let make = |context| CreateBucket {
            context,
            name: name.clone(),
            owner: owner.clone(),
            location: location.clone(),
        };
        work.gateway.session.command(make).await
    })
    .await?;
    match outcome {
        Ok(info) => drop(context.gateway.access.learn_bucket(info, asked)),
        Err(CallError::Rejected(Rejection::BucketExists { owner })) if owner == id => {
            if context.gateway.config.region != CLASSIC_REGION {
                let message =
                    "Your previous request to create the named bucket succeeded and you already own it.";
                return Err(S3Error::new("BucketAlreadyOwnedByYou", StatusCode::CONFLICT, message)
                    .with("BucketName", name_again.as_str()));
            }
        }
        Err(error) => return Err(S3Error::from(error).with("BucketName", name_again.as_str())),
    }
    let mut response = response::empty(StatusCode::OK);
    response::set(response.headers_mut(), LOCATION, &format!("/{name_again}"));
    Ok(response)
}

/// The LocationConstraint of a CreateBucketConfiguration. Where none is given: the region's own.
fn location(context: &RequestContext, body: &[u8]) -> Result<String, S3Error> {
    let region = context.gateway.config.region.as_str();
    let default = || if region == CLASSIC_REGION { String::new() } else { region.to_owned() };
    if body.trim_ascii().is_empty() {
        return Ok(default());
    }
    let root = xml::read(body, "CreateBucketConfiguration")?;
    for element in &root.children {
        match element.name.as_str() {
            "LocationConstraint" => {}
            "Tags" | "Bucket" | "Location" => {
                return Err(S3Error::not_implemented(&format!(
                    "{} in CreateBucketConfiguration",
                    element.name
                )));
            }
            _ => return Err(S3Error::malformed_xml()),
        }
    }
    let Some(constraint) =
        root.child_text("LocationConstraint").map(str::trim).filter(|text| !text.is_empty())
    else {
        return Ok(default());
    };
    let is_name = constraint.len() <= LOCATION_BYTES_MAX
        && constraint.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if !is_name {
        return Err(S3Error::bad_request(
            "InvalidLocationConstraint",
            "The specified location-constraint is not valid",
        )
        .with("LocationConstraint", crate::error::clip(constraint)));
    }
    if context.gateway.config.strict_region && constraint != region {
        let message = format!(
            "The {constraint} location constraint is incompatible for the region specific endpoint this request was sent to."
        );
        return Err(S3Error::bad_request("IllegalLocationConstraintException", message));
    }
    Ok(constraint.to_owned())
}

/// Whether a bucket is there and the caller's.
pub(crate) async fn head_bucket(context: &RequestContext) -> Outcome {
    context.fresh_bucket(Action::ListBucket).await?;
    Ok(response::empty(StatusCode::OK))
}

/// Deletes an empty bucket; unfinished uploads go with it.
pub(crate) async fn delete_bucket(context: &Arc<RequestContext>) -> Outcome {
    let work = context.clone();
    detached(async move {
        let delete = |bucket: crate::access::Bucket| {
            let work = work.clone();
            async move {
                let make = |context| DeleteBucket { context, bucket: bucket.reference.clone() };
                work.gateway.session.command(make).await
            }
        };
        work.with_bucket(Action::DeleteBucket, delete).await?;
        work.gateway.access.forget_bucket(work.bucket_name()?);
        Ok::<_, S3Error>(())
    })
    .await??;
    Ok(response::empty(StatusCode::NO_CONTENT))
}

/// Where a bucket is.
pub(crate) async fn get_bucket_location(context: &RequestContext) -> Outcome {
    let bucket = context.fresh_bucket(Action::GetBucketLocation).await?;
    let mut xml = XmlWriter::new();
    xml.root("LocationConstraint");
    xml.escaped(&bucket.info.location);
    xml.close("LocationConstraint");
    Ok(response::xml(xml))
}
