//! `ferrozone admin datanode`: list, empty, send away, take back, strike off.

use std::time::Duration;

use admin::view::Loss;
use clap::Subcommand;
use serde_json::{Value, json};
use wire::clock::{self, UnixMs};
use wire::operator::{DatanodeInfo, LivenessInfo, OperationalInfo, RepairInfo};

use super::{Screen, escape, word};
use crate::config::Span;
use crate::reach::Refusal;
use crate::show::{count, fields, short, size, span, table, until};

/// Between two looks at a datanode that is being emptied.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Leaders change in seconds: who has not answered for so long will not at once.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(super) enum DatanodeCommand {
    /// All datanodes.
    List,
    /// A datanode with its disks.
    Show {
        /// Its node's name, or its id or the beginning of it.
        id: String,
    },
    /// Copy what it holds to others, then let it go.
    Decommission {
        /// Its node's name, or its id or the beginning of it.
        id: String,
        #[command(flatten)]
        force: Force,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Let it be away for a while without replacing its replicas.
    Maintenance {
        /// Its node's name, or its id or the beginning of it.
        id: String,
        /// How long: 30m, 2h, 1d [default: until it is recommissioned].
        #[arg(long = "for", value_name = "SPAN", value_parser = parse_span)]
        duration: Option<Duration>,
        #[command(flatten)]
        force: Force,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Let it take part again.
    Recommission {
        /// Its node's name, or its id or the beginning of it.
        id: String,
    },
    /// Strike off one that is dead or decommissioned and will not return.
    Forget {
        /// Its node's name, or its id or the beginning of it.
        id: String,
        #[command(flatten)]
        force: Force,
    },
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Force {
    /// Even if data would be lost or stay below its number of replicas.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Waiting {
    /// Wait until it may be switched off, and say what is missing.
    #[arg(long)]
    wait: bool,
    /// The same, but so long at most: then exit code 6. It goes on without this command.
    #[arg(long, value_name = "SECONDS")]
    wait_seconds: Option<u64>,
}

impl Waiting {
    /// After one look: somebody has to say what has become of the wish.
    const NOT: Self = Self { wait: false, wait_seconds: None };

    fn is_wanted(self) -> bool {
        self.wait || self.wait_seconds.is_some()
    }
}

fn parse_span(text: &str) -> Result<Duration, String> {
    text.parse::<Span>().map(|span| span.0)
}

pub(super) async fn run(screen: &Screen, command: DatanodeCommand) -> anyhow::Result<()> {
    match command {
        DatanodeCommand::List => {
            screen.show("/api/v1/datanodes", |all: Vec<DatanodeInfo>| list_text(&all)).await
        }
        DatanodeCommand::Show { id } => {
            let now_ms = clock::now_ms();
            screen.show(&path(&id), |datanode: DatanodeInfo| show_text(&datanode, now_ms)).await
        }
        DatanodeCommand::Decommission { id, force, waiting } => {
            let body = json!({ "force": force.force });
            let answer = screen.api.ask("POST", &format!("{}/decommission", path(&id)), Some(body)).await?;
            settled(screen, &answer, waiting, OperationalInfo::Decommissioned).await
        }
        DatanodeCommand::Maintenance { id, duration, force, waiting } => {
            let until_ms = duration.map(|duration| clock::now_ms() + duration.as_millis() as u64);
            let body = json!({ "until_ms": until_ms, "force": force.force });
            let answer = screen.api.ask("POST", &format!("{}/maintenance", path(&id)), Some(body)).await?;
            settled(screen, &answer, waiting, OperationalInfo::Maintenance).await
        }
        DatanodeCommand::Recommission { id } => {
            let answer = screen.api.ask("POST", &format!("{}/recommission", path(&id)), None).await?;
            settled(screen, &answer, Waiting::NOT, OperationalInfo::InService).await
        }
        DatanodeCommand::Forget { id, force } => forget(screen, &id, force.force).await,
    }
}

fn path(id: &str) -> String {
    format!("/api/v1/datanodes/{}", escape(id))
}

/// The datanode that an answer is about.
fn id_of(answer: &Value) -> String {
    answer["datanode"].as_str().unwrap_or_default().to_owned()
}

/// Shows what has become of a wish; waits until it has come true, if that is wanted.
async fn settled(
    screen: &Screen,
    answer: &Value,
    waiting: Waiting,
    wanted: OperationalInfo,
) -> anyhow::Result<()> {
    let path = path(&id_of(answer));
    let mut told = String::new();
    let began = tokio::time::Instant::now();
    let mut answered = began;
    loop {
        match screen.api.ask("GET", &path, None).await {
            Ok(answer) => {
                answered = tokio::time::Instant::now();
                let datanode: DatanodeInfo = crate::reach::read(answer.clone())?;
                if !waiting.is_wanted() || datanode.operational == wanted {
                    return screen.done(&answer, &standing_text(&datanode));
                }
                if !is_on_its_way(&datanode) {
                    return Err(Refusal::conflict(standing_text(&datanode)).into());
                }
                let repair: Option<RepairInfo> = screen.api.get("/api/v1/repair").await.ok();
                let all: Vec<DatanodeInfo> = screen.api.get("/api/v1/datanodes").await.unwrap_or_default();
                let missing = missing_text(&datanode, repair.as_ref(), &all);
                if told != missing {
                    eprintln!("{} s: {missing}", began.elapsed().as_secs());
                    told = missing;
                }
            }
            // The leader may be another one in a moment.
            Err(error) if is_passing(&error) && answered.elapsed() < SILENCE_MAX => {
                let silence = format!("no answer: {error}");
                if told != silence {
                    eprintln!("{} s: {silence}", began.elapsed().as_secs());
                    told = silence;
                }
            }
            Err(error) => return Err(error),
        }
        if waiting.wait_seconds.is_some_and(|limit| began.elapsed() >= Duration::from_secs(limit)) {
            let message = format!(
                "not done after {} s, and it goes on: {told}. `ferrozone admin repair` shows the copies",
                began.elapsed().as_secs()
            );
            return Err(Refusal { code: "unavailable".to_owned(), message }.into());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether the same question may be answered in a moment.
fn is_passing(error: &anyhow::Error) -> bool {
    let codes = ["unavailable", "unreachable", "outcome_unknown"];
    error.downcast_ref::<Refusal>().is_some_and(|refusal| codes.contains(&refusal.code.as_str()))
}

fn is_on_its_way(datanode: &DatanodeInfo) -> bool {
    matches!(datanode.operational, OperationalInfo::Decommissioning | OperationalInfo::EnteringMaintenance)
}

/// What keeps a datanode from being let go.
fn missing_text(datanode: &DatanodeInfo, repair: Option<&RepairInfo>, all: &[DatanodeInfo]) -> String {
    let mut text = format!(
        "{} is {}: {} to be copied elsewhere",
        name(datanode),
        word(&datanode.operational),
        count(datanode.containers_needing_it, "container")
    );
    if datanode.containers_needing_it == 0 {
        text.push_str("; what is open on it is being closed");
        return text;
    }
    let Some(repair) = repair else { return text };
    text.push_str(&format!(
        ", {} under way",
        match repair.copies.len() {
            0 => "no copy".to_owned(),
            1 => "1 copy".to_owned(),
            copies => format!("{copies} copies"),
        }
    ));
    if datanode.liveness != LivenessInfo::Live {
        text.push_str(&format!("; it is {} itself", health(datanode)));
    }
    let takes = |other: &&DatanodeInfo| {
        other.datanode.id != datanode.datanode.id
            && other.liveness == LivenessInfo::Live
            && other.operational == OperationalInfo::InService
    };
    if repair.copies.is_empty() {
        text.push_str(&format!(
            "; {} in service could take them: each needs one without a replica of it and with room",
            count(all.iter().filter(takes).count() as u64, "other datanode")
        ));
    }
    if repair.missing > 0 {
        text.push_str(&format!(
            "; no whole replica of {} can be reached",
            count(repair.missing, "container")
        ));
    }
    text
}

/// What an operator must know after a wish.
fn standing_text(datanode: &DatanodeInfo) -> String {
    let name = name(datanode);
    let needing = count(datanode.containers_needing_it, "container");
    match datanode.operational {
        OperationalInfo::InService => format!("{name} is in service."),
        OperationalInfo::Decommissioning => format!(
            "{name} is being emptied: {needing} to be copied elsewhere. Leave it running until it is decommissioned."
        ),
        OperationalInfo::Decommissioned => {
            format!("{name} is decommissioned: switch it off, then `ferrozone admin datanode forget {name}`.")
        }
        OperationalInfo::EnteringMaintenance => {
            format!(
                "{name} enters maintenance: {needing} to be made safe without it. Leave it running until then."
            )
        }
        OperationalInfo::Maintenance => {
            format!(
                "{name} is in maintenance: it may be switched off. Then `ferrozone admin datanode recommission {name}`."
            )
        }
    }
}

/// Strikes a datanode off. A refusal says what would be lost, down to some keys.
async fn forget(screen: &Screen, id: &str, force: bool) -> anyhow::Result<()> {
    let loss: Loss = screen.api.get(&format!("{}/loss", path(id))).await?;
    let body = json!({ "force": force });
    let forgotten = screen.api.ask("POST", &format!("{}/forget", path(id)), Some(body)).await;
    match forgotten {
        Ok(answer) => {
            let lost = if loss.containers == 0 { String::new() } else { format!(" {}", loss_text(&loss)) };
            screen.done(&answer, &format!("{id} is forgotten.{lost}"))
        }
        Err(error) => match error.downcast_ref::<Refusal>() {
            Some(refusal) if refusal.is_conflict() && loss.containers > 0 => {
                let message = format!("{}\n{}", refusal.message, loss_text(&loss));
                Err(Refusal { code: refusal.code.clone(), message }.into())
            }
            _ => Err(error),
        },
    }
}

/// Containers and keys that would be lost.
pub(super) fn loss_text(loss: &Loss) -> String {
    let ids: Vec<String> = loss.named.iter().map(ToString::to_string).collect();
    let more = if loss.containers > ids.len() as u64 { ", ..." } else { "" };
    let mut text = format!(
        "Nowhere else: {} ({}{more}), with {}{}:",
        count(loss.containers, "container"),
        ids.join(", "),
        if loss.more_keys { "more than " } else { "" },
        count(loss.keys.len() as u64, "key"),
    );
    for key in &loss.keys {
        text.push_str(&format!("\n  {}", crate::show::printable(key)));
    }
    text
}

fn name(datanode: &DatanodeInfo) -> String {
    if datanode.node.is_empty() { short(&datanode.datanode.id) } else { datanode.node.clone() }
}

fn health(datanode: &DatanodeInfo) -> String {
    let since = datanode.silent_ms.map(|ms| format!(" {}", span(ms))).unwrap_or_default();
    match datanode.liveness {
        LivenessInfo::Live => "live".to_owned(),
        LivenessInfo::Silent => format!("silent{since}"),
        LivenessInfo::Stale => format!("STALE{since}"),
        LivenessInfo::Dead => format!("DEAD{since}"),
        LivenessInfo::Unknown => "unknown".to_owned(),
    }
}

fn list_text(all: &[DatanodeInfo]) -> String {
    let mut all: Vec<&DatanodeInfo> = all.iter().collect();
    all.sort_by(|a, b| (&a.node, a.datanode.id).cmp(&(&b.node, b.datanode.id)));
    let rows = all.iter().map(|datanode| {
        let disks = &datanode.disks;
        let failed = disks.iter().filter(|disk| disk.is_failed).count();
        let disk_count = match failed {
            0 => disks.len().to_string(),
            failed => format!("{}, {failed} FAILED", disks.len()),
        };
        vec![
            datanode.node.clone(),
            short(&datanode.datanode.id),
            datanode.rack.clone(),
            health(datanode),
            word(&datanode.operational),
            disk_count,
            size(disks.iter().map(|disk| disk.available_bytes).sum()),
            size(disks.iter().map(|disk| disk.capacity_bytes).sum()),
            datanode.containers.to_string(),
            datanode.containers_needing_it.to_string(),
        ]
    });
    table(
        &["node", "id", "rack", "health", "state", ">disks", ">free", ">of", ">containers", ">needing it"],
        rows,
    )
}

fn show_text(datanode: &DatanodeInfo, now_ms: UnixMs) -> String {
    let address =
        datanode.datanode.address.as_ref().map_or_else(|| "in process".to_owned(), ToString::to_string);
    let mut lines = vec![
        ("node", datanode.node.clone()),
        ("id", datanode.datanode.id.to_string()),
        ("address", address),
        ("rack", datanode.rack.clone()),
        ("health", health(datanode)),
        ("state", word(&datanode.operational)),
    ];
    if let Some(until_ms) = datanode.maintenance_until_ms {
        lines.push(("maintenance ends", until(until_ms, now_ms)));
    }
    let needing = datanode.containers_needing_it;
    lines.push((
        "containers",
        format!("{}; {needing} would fall below their replicas without it", datanode.containers),
    ));
    let rows = datanode.disks.iter().map(|disk| {
        let health = if disk.is_failed { "FAILED" } else { "good" };
        vec![disk.path.clone(), health.to_owned(), size(disk.available_bytes), size(disk.capacity_bytes)]
    });
    format!("{}\n{}", fields(&lines), table(&["disk", "health", ">free", ">of"], rows))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wire::block::DatanodeAddress;
    use wire::ids::{ContainerId, DatanodeId};
    use wire::operator::CopyInfo;
    use wire::scm::DiskReport;

    use super::*;

    fn datanode() -> DatanodeInfo {
        let id = DatanodeId(Uuid::from_u128(0xd1 << 96));
        DatanodeInfo {
            datanode: DatanodeAddress { id, address: Some("d1:9002".parse().unwrap()) },
            node: "d1".to_owned(),
            rack: "r1".to_owned(),
            liveness: LivenessInfo::Dead,
            silent_ms: Some(240_000),
            operational: OperationalInfo::EnteringMaintenance,
            maintenance_until_ms: Some(7_200_000),
            disks: vec![DiskReport {
                path: "/disk1".into(),
                capacity_bytes: 4 << 40,
                available_bytes: 1 << 40,
                is_failed: true,
            }],
            containers: 1200,
            containers_needing_it: 3,
        }
    }

    #[test]
    fn list_fits_a_screen_and_shows_what_is_wrong() {
        let text = list_text(&[datanode()]);
        assert_eq!(
            text,
            "NODE  ID        RACK  HEALTH      STATE                       DISKS     FREE       OF  CONTAINERS  NEEDING IT\n\
             d1    000000d1  r1    DEAD 4 min  entering maintenance  1, 1 FAILED  1.0 TiB  4.0 TiB        1200           3\n"
        );
    }

    #[test]
    fn datanode_is_shown_with_its_disks() {
        assert_eq!(
            show_text(&datanode(), 3_600_000),
            "node              d1\nid                000000d1-0000-0000-0000-000000000000\naddress           d1:9002\n\
             rack              r1\nhealth            DEAD 4 min\nstate             entering maintenance\n\
             maintenance ends  in 60 min\n\
             containers        1200; 3 would fall below their replicas without it\n\n\
             DISK    HEALTH     FREE       OF\n/disk1  FAILED  1.0 TiB  4.0 TiB\n"
        );
    }

    #[test]
    fn what_is_missing_is_said_with_its_cause() {
        let mut leaving = datanode();
        (leaving.operational, leaving.liveness) = (OperationalInfo::Decommissioning, LivenessInfo::Live);
        let mut other = datanode();
        other.datanode.id = DatanodeId(Uuid::from_u128(2));
        (other.operational, other.liveness) = (OperationalInfo::InService, LivenessInfo::Live);
        let mut repair = RepairInfo {
            missing: 0,
            under_replicated: 3,
            over_replicated: 0,
            unhealthy: 0,
            deleting: 0,
            copies: Vec::new(),
            bytes_per_second: 0,
            mis_placed: 0,
        };
        let all = [leaving.clone(), other];
        assert_eq!(
            missing_text(&leaving, Some(&repair), &all),
            "d1 is decommissioning: 3 containers to be copied elsewhere, no copy under way; 1 other datanode in service \
             could take them: each needs one without a replica of it and with room"
        );
        repair.missing = 1;
        repair.copies = vec![CopyInfo {
            container: ContainerId(1),
            source: leaving.datanode.id,
            target: all[1].datanode.id,
            received_bytes: 1,
            total_bytes: 2,
        }];
        assert_eq!(
            missing_text(&leaving, Some(&repair), &all),
            "d1 is decommissioning: 3 containers to be copied elsewhere, 1 copy under way; no whole replica of 1 container \
             can be reached"
        );
        assert!(missing_text(&leaving, None, &[]).ends_with("copied elsewhere"));
        leaving.containers_needing_it = 0;
        assert!(missing_text(&leaving, Some(&repair), &all).ends_with("is being closed"));
    }

    #[test]
    fn wait_outlives_a_change_of_leaders_and_no_refusal() {
        let error = |code: &str| Refusal { code: code.to_owned(), message: String::new() }.into();
        assert!(["unavailable", "unreachable", "outcome_unknown"].map(error).iter().all(is_passing));
        assert!(!["conflict", "not_found", "unauthenticated"].map(error).iter().any(is_passing));
        let mut gone = datanode();
        assert!(is_on_its_way(&gone));
        gone.operational = OperationalInfo::InService;
        assert!(!is_on_its_way(&gone), "called back by somebody else");
    }

    #[test]
    fn loss_names_containers_and_keys() {
        let loss = Loss {
            containers: 7,
            named: vec![ContainerId(3), ContainerId(9)],
            keys: vec!["photos/a".to_owned(), "logs/b\n".to_owned()],
            more_keys: true,
        };
        assert_eq!(
            loss_text(&loss),
            "Nowhere else: 7 containers (3, 9, ...), with more than 2 keys:\n  photos/a\n  logs/b\\n"
        );
    }
}
