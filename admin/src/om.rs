//! OM's own resources: the overview, the default replication, the keys of a container.

use wire::ids::{ContainerId, LocalId};
use wire::limits::BUCKET_CURRENT;
use wire::operator::{ContainerKey, GetContainers, GetOmOverview, ListContainerKeys, SetDefaultReplication};

use crate::api::{Answer, Call, Operators, json};
use crate::error::ApiError;
use crate::view::Page;

pub(crate) async fn overview(operators: &Operators, _call: &Call) -> Answer {
    json(operators.om(GetOmOverview {}).await?)
}

/// Answers when it holds for whatever is written from now on.
pub(crate) async fn set_default_replication(operators: &Operators, call: &Call) -> Answer {
    operators.om(call.body::<SetDefaultReplication>()?).await?;
    // Clocks run at the same rate but for far less than this part.
    tokio::time::sleep(BUCKET_CURRENT + BUCKET_CURRENT / 10).await;
    json(())
}

pub(crate) async fn container_keys(operators: &Operators, call: &Call) -> Answer {
    let container = ContainerId(call.path("id")?);
    let after = call.query_as("after")?.unwrap_or(LocalId(0));
    let keys = operators.om(ListContainerKeys { container, after, max: call.max()? }).await?;
    // An empty page of a container that there is not would say that it hurts nobody. Where SCM cannot tell, OM's word stands.
    if keys.blocks.is_empty()
        && let Ok(found) = operators.scm(GetContainers { containers: vec![container] }).await
        && found.is_empty()
    {
        return Err(ApiError::NotFound(format!("container {container}")));
    }
    let last = keys.blocks.last().map(|block| block.local.0.to_string());
    json(Page::<ContainerKey> { next: last.filter(|_| keys.is_truncated), items: keys.blocks })
}
