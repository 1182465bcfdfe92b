//! `ferrozone admin repair | pipeline`: what the replication manager does, and which datanodes are written together.

use std::collections::BTreeMap;

use clap::Subcommand;
use wire::ids::DatanodeId;
use wire::operator::{CopyInfo, DatanodeInfo, PipelineInfo, RepairInfo};

use super::Screen;
use crate::reach::read;
use crate::show::{count, fields, replica_count, short, size, table};

#[derive(Debug, Subcommand)]
pub(super) enum PipelineCommand {
    /// Pipelines with open containers.
    List,
}

type Names = BTreeMap<DatanodeId, String>;

/// Names of the datanodes: answers name them by id.
async fn names(screen: &Screen) -> anyhow::Result<Names> {
    let all: Vec<DatanodeInfo> = screen.api.get("/api/v1/datanodes").await?;
    Ok(all.into_iter().map(|datanode| (datanode.datanode.id, datanode.node)).collect())
}

fn name(names: &Names, id: &DatanodeId) -> String {
    names.get(id).filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| short(id))
}

pub(super) async fn run_pipeline(screen: &Screen, command: PipelineCommand) -> anyhow::Result<()> {
    let PipelineCommand::List = command;
    let answer = screen.api.ask("GET", "/api/v1/pipelines", None).await?;
    let names = names(screen).await?;
    screen.print(answer, |answer| Ok(pipelines_text(&read::<Vec<PipelineInfo>>(answer)?, &names)))
}

fn pipelines_text(pipelines: &[PipelineInfo], names: &Names) -> String {
    let rows = pipelines.iter().map(|pipeline| {
        let members: Vec<String> = pipeline.members.iter().map(|id| name(names, id)).collect();
        let containers: Vec<String> = pipeline.containers.iter().map(ToString::to_string).collect();
        vec![
            pipeline.id.to_string(),
            format!("{} of {}", members.len(), replica_count(pipeline.replication)),
            members.join(", "),
            containers.join(", "),
        ]
    });
    table(&[">id", ">replicas", "datanodes", "open containers"], rows)
}

pub(super) async fn run(screen: &Screen) -> anyhow::Result<()> {
    let answer = screen.api.ask("GET", "/api/v1/repair", None).await?;
    let names = names(screen).await?;
    screen.print(answer, |answer| Ok(repair_text(&read(answer)?, &names)))
}

fn repair_text(repair: &RepairInfo, names: &Names) -> String {
    let limit = match repair.bytes_per_second {
        0 => "none".to_owned(),
        limit => format!("{}/s for all copies together", size(limit)),
    };
    let head = fields(&[
        ("missing", format!("{}: no whole replica can be reached", count(repair.missing, "container"))),
        ("under-replicated", count(repair.under_replicated, "container")),
        ("over-replicated", count(repair.over_replicated, "container")),
        ("unhealthy", format!("{} with a damaged replica", count(repair.unhealthy, "container"))),
        ("in one rack", format!("{}, though there are more racks", count(repair.mis_placed, "container"))),
        ("being dropped", count(repair.deleting, "replica")),
        ("bandwidth limit", limit),
    ]);
    if repair.copies.is_empty() {
        return format!("{head}\nNo copies are under way.\n");
    }
    let rows = repair.copies.iter().map(|copy| {
        vec![
            copy.container.to_string(),
            name(names, &copy.source),
            name(names, &copy.target),
            size(copy.received_bytes),
            size(copy.total_bytes),
            percent(copy),
        ]
    });
    format!("{head}\n{}", table(&[">container", "from", "to", ">copied", ">of", ">done"], rows))
}

fn percent(copy: &CopyInfo) -> String {
    match copy.total_bytes {
        0 => "?".to_owned(),
        total => format!("{}%", copy.received_bytes.min(total).saturating_mul(100) / total),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wire::block::Replication;
    use wire::ids::{ContainerId, PipelineId};

    use super::*;

    fn id(number: u128) -> DatanodeId {
        DatanodeId(Uuid::from_u128(number << 96))
    }

    #[test]
    fn copies_are_shown_with_how_far_they_are() {
        let names = Names::from([(id(1), "d1".to_owned())]);
        let copy = CopyInfo {
            container: ContainerId(5),
            source: id(1),
            target: id(2),
            received_bytes: 1 << 30,
            total_bytes: 4 << 30,
        };
        let repair = RepairInfo {
            missing: 0,
            under_replicated: 1,
            over_replicated: 0,
            unhealthy: 0,
            deleting: 2,
            copies: vec![copy],
            bytes_per_second: 128 << 20,
            mis_placed: 1,
        };
        assert_eq!(
            repair_text(&repair, &names),
            "missing           0 containers: no whole replica can be reached\nunder-replicated  1 container\n\
             over-replicated   0 containers\nunhealthy         0 containers with a damaged replica\n\
             in one rack       1 container, though there are more racks\n\
             being dropped     2 replicas\nbandwidth limit   128.0 MiB/s for all copies together\n\n\
             CONTAINER  FROM  TO         COPIED       OF  DONE\n        5  d1    00000002  1.0 GiB  4.0 GiB   25%\n"
        );
    }

    #[test]
    fn pipelines_name_their_datanodes() {
        let names = Names::from([(id(1), "d1".to_owned()), (id(2), "d2".to_owned())]);
        let pipeline = PipelineInfo {
            id: PipelineId(3),
            replication: Replication::Three,
            members: vec![id(1), id(2)],
            containers: vec![ContainerId(5), ContainerId(6)],
        };
        assert_eq!(
            pipelines_text(&[pipeline], &names),
            "ID  REPLICAS  DATANODES  OPEN CONTAINERS\n 3    2 of 3  d1, d2     5, 6\n"
        );
    }
}
