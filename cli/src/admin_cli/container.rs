//! `ferrozone admin container`: the unit of repair, with its replicas and the keys in it.

use admin::view::Page;
use clap::Subcommand;
use serde_json::{Value, json};
use wire::clock::{self, UnixMs};
use wire::operator::{
    ContainerDetails, ContainerHealth, ContainerKey, LivenessInfo, PAGE_MAX, Raised, ReplicaInfo,
};

use super::{Screen, with_query, word};
use crate::reach::read;
use crate::show::{ago, count, fields, replica_count, short, size, table};

/// Keys shown where no number is named.
const KEYS_DEFAULT: u32 = 100;

#[derive(Debug, Subcommand)]
pub(super) enum ContainerCommand {
    /// Containers, with what is wrong with each.
    List {
        /// Only those with this trouble: missing, under_replicated, over_replicated, unhealthy, mis_placed; or healthy.
        #[arg(long)]
        health: Option<String>,
        /// Only those in this state: Open, Closing, Closed, Deleting, Deleted.
        #[arg(long)]
        state: Option<String>,
        /// Only those with a replica on this datanode: its node's name, or its id or the beginning of it.
        #[arg(long)]
        datanode: Option<String>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// A container with its replicas.
    Show {
        /// Its id.
        id: u64,
    },
    /// Which keys lie in a container, by OM's block table.
    Keys {
        /// Its id.
        id: u64,
        /// Also blocks that were freed and wait for their deletion.
        #[arg(long)]
        freed: bool,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Close an open container: nothing more is written to it.
    Close {
        /// Its id.
        id: u64,
    },
    /// Raise containers of one replica to three: for a cluster that grew. The copies are made by repair.
    Raise,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PageArgs {
    /// Only those after this one.
    #[arg(long)]
    pub(crate) after: Option<String>,
    /// At most so many, up to 1000 [default: 100].
    #[arg(long)]
    pub(crate) max: Option<u32>,
}

impl PageArgs {
    /// As query parameters.
    pub(crate) fn query(&self) -> [(&'static str, Option<String>); 2] {
        [("after", self.after.clone()), ("max", self.max.map(|max| max.to_string()))]
    }
}

/// Says how to see the rest of a list.
pub(crate) fn more(next: &Option<String>) -> String {
    next.as_ref()
        .map_or_else(String::new, |next| format!("There is more: --after {}\n", crate::show::printable(next)))
}

pub(super) async fn run(screen: &Screen, command: ContainerCommand) -> anyhow::Result<()> {
    match command {
        ContainerCommand::List { health, state, datanode, page } => {
            let datanode = match datanode {
                Some(datanode) => Some(datanode_id(screen, &datanode).await?),
                None => None,
            };
            let state = state.map(|state| capitalised(&state));
            let health = health.map(|health| health.replace('-', "_").to_lowercase());
            let [after, max] = page.query();
            let query = [("health", health), ("state", state), ("datanode", datanode), after, max];
            let now_ms = clock::now_ms();
            screen
                .show(&with_query("/api/v1/containers", &query), |page: Page<ContainerDetails>| {
                    format!("{}{}", list_text(&page.items, now_ms), more(&page.next))
                })
                .await
        }
        ContainerCommand::Show { id } => {
            let now_ms = clock::now_ms();
            screen
                .show(&format!("/api/v1/containers/{id}"), |container: ContainerDetails| {
                    show_text(&container, now_ms)
                })
                .await
        }
        ContainerCommand::Keys { id, freed, page } => {
            let found = keys(screen, id, freed, page).await?;
            screen.print(serde_json::to_value(&found)?, |_| {
                Ok(format!("{}{}", keys_text(&found.items), more(&found.next)))
            })
        }
        ContainerCommand::Close { id } => {
            let answer = screen.api.ask("POST", &format!("/api/v1/containers/{id}/close"), None).await?;
            screen.done(
                &answer,
                &format!("Container {id} is closing or closed: nothing more is written to it."),
            )
        }
        ContainerCommand::Raise => raise(screen).await,
    }
}

/// A page of keys. Freed blocks may be many between two that live: pages are asked for until this one is full.
async fn keys(screen: &Screen, id: u64, freed: bool, page: PageArgs) -> anyhow::Result<Page<ContainerKey>> {
    let max = page.max.unwrap_or(KEYS_DEFAULT) as usize;
    let mut found: Page<ContainerKey> = Page { items: Vec::new(), next: page.after };
    loop {
        let query = [("after", found.next.take()), ("max", Some(PAGE_MAX.to_string()))];
        let path = with_query(&format!("/api/v1/containers/{id}/keys"), &query);
        let part: Page<ContainerKey> = screen.api.get(&path).await?;
        found.items.extend(part.items.into_iter().filter(|key| freed || !key.is_freed));
        if found.items.len() > max {
            found.items.truncate(max);
            found.next = found.items.last().map(|last| last.local.to_string());
            return Ok(found);
        }
        if part.next.is_none() {
            return Ok(found);
        }
        found.next = part.next;
    }
}

/// `closed` and `CLOSED` as the API writes it.
fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters.flat_map(char::to_lowercase)).collect()
}

/// Page by page, until all are raised.
async fn raise(screen: &Screen) -> anyhow::Result<()> {
    let mut raised = 0;
    let mut after = json!(0);
    loop {
        let body = json!({ "after": after });
        let answer = screen.api.ask("POST", "/api/v1/containers/raise", Some(body)).await?;
        let page: Raised = read(answer)?;
        raised += page.containers;
        match page.next {
            Some(next) => after = json!(next),
            None => break,
        }
    }
    let text = format!(
        "{} raised to three replicas. Repair makes the copies: `ferrozone admin repair` shows how far it is.",
        count(raised, "container")
    );
    screen.done(&json!({ "containers": raised }), &text)
}

/// A datanode's whole id.
async fn datanode_id(screen: &Screen, datanode: &str) -> anyhow::Result<String> {
    let path = format!("/api/v1/datanodes/{}", super::escape(datanode));
    let answer: Value = screen.api.ask("GET", &path, None).await?;
    Ok(answer.pointer("/datanode/id").and_then(Value::as_str).unwrap_or(datanode).to_owned())
}

/// What is wrong, in words; the worst first.
pub(super) fn health_text(health: &[ContainerHealth]) -> String {
    let words = health.iter().map(|health| match health {
        ContainerHealth::Healthy => "healthy".to_owned(),
        ContainerHealth::Missing => "MISSING".to_owned(),
        other => word(other),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn node(replica: &ReplicaInfo) -> String {
    if replica.node.is_empty() { short(&replica.datanode) } else { replica.node.clone() }
}

/// `d1, d2 (copying), d3 (dead)`.
pub(super) fn replicas_text(replicas: &[ReplicaInfo]) -> String {
    let words = replicas.iter().map(|replica| {
        let trouble = trouble(replica);
        if trouble.is_empty() { node(replica) } else { format!("{} ({trouble})", node(replica)) }
    });
    words.collect::<Vec<_>>().join(", ")
}

/// What keeps a replica from being a good one; empty if it is one.
fn trouble(replica: &ReplicaInfo) -> String {
    let mut words = Vec::new();
    if replica.state != "valid" {
        words.push(replica.state.clone());
    }
    if replica.is_unhealthy {
        words.push("damaged".to_owned());
    }
    if replica.liveness != LivenessInfo::Live {
        words.push(word(&replica.liveness));
    } else if !replica.is_reported {
        words.push("not reported".to_owned());
    }
    words.join(", ")
}

fn list_text(containers: &[ContainerDetails], now_ms: UnixMs) -> String {
    let rows = containers.iter().map(|container| {
        let used = container.replicas.iter().map(|replica| replica.used_bytes).max().unwrap_or(0);
        vec![
            container.container.to_string(),
            word(&container.state),
            format!("{} of {}", sound(container), replica_count(container.replication)),
            size(used),
            ago(container.created_ms, now_ms),
            health_text(&container.health),
            replicas_text(&container.replicas),
        ]
    });
    table(&[">id", "state", ">replicas", ">used", "opened", "health", "datanodes"], rows)
}

/// Replicas that count.
fn sound(container: &ContainerDetails) -> usize {
    container.replicas.iter().filter(|replica| replica.state == "valid" && !replica.is_unhealthy).count()
}

fn show_text(container: &ContainerDetails, now_ms: UnixMs) -> String {
    let head = fields(&[
        ("container", container.container.to_string()),
        ("state", word(&container.state)),
        ("health", health_text(&container.health)),
        ("replicas", format!("{} of {}", sound(container), replica_count(container.replication))),
        ("pipeline", container.pipeline.to_string()),
        ("opened", ago(container.created_ms, now_ms)),
    ]);
    format!("{head}\n{}", replica_table(&container.replicas))
}

/// Replicas with disk and health.
pub(super) fn replica_table(replicas: &[ReplicaInfo]) -> String {
    let rows = replicas.iter().map(|replica| {
        let trouble = trouble(replica);
        let sealed = if replica.is_sealed { "sealed" } else { "open" };
        vec![
            node(replica),
            short(&replica.datanode),
            replica.disk.clone(),
            if trouble.is_empty() { "good".to_owned() } else { trouble },
            sealed.to_owned(),
            replica.generation.to_string(),
            replica.block_count.to_string(),
            size(replica.used_bytes),
        ]
    });
    table(&["datanode", "id", "disk", "health", "state", ">generation", ">blocks", ">used"], rows)
}

fn keys_text(keys: &[ContainerKey]) -> String {
    let rows = keys.iter().map(|key| {
        let state = if key.is_freed { "freed" } else { "live" };
        vec![
            key.local.to_string(),
            size(key.length),
            state.to_owned(),
            key.bucket.clone().unwrap_or_else(|| "-".to_owned()),
            key.key.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    table(&[">block", ">size", "state", "bucket", "key"], rows)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wire::block::Replication;
    use wire::ids::{ContainerId, DatanodeId, Generation, LocalId, PipelineId, WriteId};
    use wire::scm::ContainerState;

    use super::*;

    fn replica(node: &str, state: &str, liveness: LivenessInfo) -> ReplicaInfo {
        ReplicaInfo {
            datanode: DatanodeId(Uuid::from_u128(0xd1 << 96)),
            node: node.to_owned(),
            disk: "disk1".to_owned(),
            generation: Generation(2),
            state: state.to_owned(),
            liveness,
            is_reported: liveness == LivenessInfo::Live,
            is_sealed: true,
            is_unhealthy: false,
            used_bytes: 3 << 30,
            block_count: 12,
            deletion_done: 0,
        }
    }

    fn container() -> ContainerDetails {
        ContainerDetails {
            container: ContainerId(17),
            state: ContainerState::Closed,
            replication: Replication::Three,
            pipeline: PipelineId(4),
            created_ms: 0,
            health: vec![ContainerHealth::UnderReplicated],
            replicas: vec![
                replica("d1", "valid", LivenessInfo::Live),
                replica("d2", "copying", LivenessInfo::Live),
                replica("", "valid", LivenessInfo::Dead),
            ],
        }
    }

    #[test]
    fn list_says_what_is_wrong_and_where() {
        assert_eq!(
            list_text(&[container()], 7_200_000),
            "ID  STATE   REPLICAS     USED  OPENED   HEALTH            DATANODES\n\
             17  closed    2 of 3  3.0 GiB  2 h ago  under replicated  d1, d2 (copying), 000000d1 (dead)\n"
        );
    }

    #[test]
    fn container_is_shown_with_its_replicas() {
        let mut container = container();
        container.replicas.truncate(1);
        assert_eq!(
            show_text(&container, 60_000),
            "container  17\nstate      closed\nhealth     under replicated\nreplicas   1 of 3\npipeline   4\n\
             opened     60 s ago\n\n\
             DATANODE  ID        DISK   HEALTH  STATE   GENERATION  BLOCKS     USED\n\
             d1        000000d1  disk1  good    sealed           2      12  3.0 GiB\n"
        );
    }

    #[test]
    fn keys_are_shown_with_those_that_wait_for_deletion() {
        let key = |local: u64, key: Option<&str>| ContainerKey {
            local: LocalId(local),
            length: 1024,
            is_freed: key.is_none(),
            write_id: WriteId::default(),
            bucket: key.map(|_| "photos".to_owned()),
            key: key.map(str::to_owned),
        };
        assert_eq!(
            keys_text(&[key(1, Some("a/b")), key(200, None)]),
            "BLOCK     SIZE  STATE  BUCKET  KEY\n    1  1.0 KiB  live   photos  a/b\n  200  1.0 KiB  freed  -       -\n"
        );
        assert_eq!(more(&Some("200".to_owned())), "There is more: --after 200\n");
        assert_eq!(
            (capitalised("closed"), capitalised("CLOSED")),
            ("Closed".to_owned(), "Closed".to_owned())
        );
    }
}
