//! Ozone's namespace: volumes, and the buckets and links in them.

use serde::Deserialize;
use wire::names::BucketName;
use wire::om::UserId;
use wire::operator::{
    CreateNamespaceBucket, CreateVolume, DeleteNamespaceBucket, DeleteVolume, ListNamespaceBuckets,
    ListVolumes, Quota, SetBucketQuota, SetVolume,
};

use crate::api::{Answer, Call, Operators, json};
use crate::error::ApiError;
use crate::view::Page;

pub(crate) async fn list_volumes(operators: &Operators, call: &Call) -> Answer {
    let max = call.max()?;
    let owner = call.text("owner").map(|owner| UserId(owner.to_owned()));
    let after = call.text("after").unwrap_or("").to_owned();
    let items = operators.om(ListVolumes { owner, after, max }).await?;
    let next = items.last().map(|last| last.name.clone()).filter(|_| items.len() >= max as usize);
    json(Page { items, next })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewVolume {
    name: BucketName,
    #[serde(default)]
    owner: Option<UserId>,
    #[serde(default)]
    quota: Quota,
}

pub(crate) async fn create_volume(operators: &Operators, call: &Call) -> Answer {
    let NewVolume { name, owner, quota } = call.body()?;
    let owner = owner.unwrap_or_else(|| operators.root_user.clone());
    json(operators.om(CreateVolume { name, owner, quota }).await?)
}

pub(crate) async fn get_volume(operators: &Operators, call: &Call) -> Answer {
    let name: BucketName = call.path_as("volume")?;
    let page = operators.om(ListVolumes { owner: None, after: just_before(&name), max: 1 }).await?;
    let found = page.into_iter().find(|volume| volume.name == name.as_str());
    json(found.ok_or_else(|| ApiError::NotFound(format!("volume {name}")))?)
}

/// The greatest text below `name` in a list of names: a list after it begins with `name`, if that exists. No name holds a
/// tilde, nor a byte above it.
fn just_before(name: &BucketName) -> String {
    let mut bytes = name.as_str().as_bytes().to_vec();
    if let Some(last) = bytes.last_mut() {
        *last -= 1;
    }
    bytes.push(b'~');
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeChange {
    #[serde(default)]
    owner: Option<UserId>,
    #[serde(default)]
    quota: Option<Quota>,
}

pub(crate) async fn set_volume(operators: &Operators, call: &Call) -> Answer {
    let VolumeChange { owner, quota } = call.body()?;
    json(operators.om(SetVolume { name: call.path_as("volume")?, owner, quota }).await?)
}

pub(crate) async fn delete_volume(operators: &Operators, call: &Call) -> Answer {
    json(operators.om(DeleteVolume { name: call.path_as("volume")? }).await?)
}

pub(crate) async fn list_buckets(operators: &Operators, call: &Call) -> Answer {
    let max = call.max()?;
    let volume = call.path_as("volume")?;
    let after = call.text("after").unwrap_or("").to_owned();
    let items = operators.om(ListNamespaceBuckets { volume, after, max }).await?;
    let next = items.last().map(|last| last.name.to_string()).filter(|_| items.len() >= max as usize);
    json(Page { items, next })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBucket {
    name: BucketName,
    #[serde(default)]
    owner: Option<UserId>,
    #[serde(default)]
    quota: Quota,
    #[serde(default)]
    source: Option<(BucketName, BucketName)>,
}

pub(crate) async fn create_bucket(operators: &Operators, call: &Call) -> Answer {
    let NewBucket { name, owner, quota, source } = call.body()?;
    let owner = owner.unwrap_or_else(|| operators.root_user.clone());
    let volume = call.path_as("volume")?;
    json(operators.om(CreateNamespaceBucket { volume, name, owner, quota, source }).await?)
}

pub(crate) async fn get_bucket(operators: &Operators, call: &Call) -> Answer {
    let volume: BucketName = call.path_as("volume")?;
    let name: BucketName = call.path_as("bucket")?;
    let request = ListNamespaceBuckets { volume: volume.clone(), after: just_before(&name), max: 1 };
    let found = operators.om(request).await?.into_iter().find(|bucket| bucket.name == name);
    json(found.ok_or_else(|| ApiError::NotFound(format!("bucket {name} in volume {volume}")))?)
}

pub(crate) async fn set_quota(operators: &Operators, call: &Call) -> Answer {
    let request = SetBucketQuota {
        volume: call.path_as("volume")?,
        name: call.path_as("bucket")?,
        quota: call.body()?,
    };
    json(operators.om(request).await?)
}

pub(crate) async fn delete_bucket(operators: &Operators, call: &Call) -> Answer {
    let request = DeleteNamespaceBucket { volume: call.path_as("volume")?, name: call.path_as("bucket")? };
    json(operators.om(request).await?)
}
