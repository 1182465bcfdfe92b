//! Scenarios in `testscripts/`, one command a line; the trace shows replies and the rows that matter.

use std::error::Error;
use std::fmt::Write as _;

use consensus::Rows;
use goldenscript::{Command as Line, Context, Runner};
use wire::ids::ContainerId;

use super::{
    Core, Reply, add_token_key, begin_copy, close, decommission, degrade, delete, delete_replicas, end_copy,
    forget_datanode, forget_replicas, give_back, grant, invalidate, pass, raise, register, retire, seal,
};
use crate::schema::{LEASE, ReplicaState};
use crate::state::{live_keys, locate};

struct ScriptRunner(Core);

/// A command line as the runner takes it: arguments are read one by one.
struct Words(Line);

impl TryFrom<&Line> for Words {
    type Error = Box<dyn Error>;

    fn try_from(line: &Line) -> Result<Self, Self::Error> {
        Ok(Self(line.clone()))
    }
}

impl Words {
    fn list(&self, key: &str) -> Vec<u64> {
        let mut args = self.0.consume_args();
        let text = args.take_key(key).unwrap_or_default();
        text.split('-').filter(|word| !word.is_empty()).map(|word| word.parse().unwrap()).collect()
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.list(key).first().copied()
    }

    /// `3g1-4g2`: the first replica of node 3 and one of generation 2 of node 4.
    fn lives(&self, key: &str) -> Vec<(u64, u64)> {
        let mut args = self.0.consume_args();
        let text = args.take_key(key).unwrap_or_default();
        let words = text.split('-').filter(|word| !word.is_empty());
        words
            .map(|word| {
                let (node, generation) = word.split_once('g').unwrap();
                (node.parse().unwrap(), generation.parse().unwrap())
            })
            .collect()
    }

    fn need(&self, key: &str) -> u64 {
        self.number(key).unwrap_or_else(|| panic!("{} needs {key}=", self.0.name))
    }
}

impl Runner for ScriptRunner {
    type Command = Words;

    fn run(&mut self, words: &Words, _: &Context) -> Result<String, Box<dyn Error>> {
        let core = &mut self.0;
        let now_ms = words.number("at").unwrap_or(1000);
        let reply = match words.0.name.as_str() {
            "register" => core.apply(&register(words.need("node"))),
            "grant" => {
                let members = words.list("members");
                core.apply_twice(&grant(words.need("request"), words.number("container"), &members, now_ms))
            }
            "return" => core.apply_twice(&give_back(&words.list("leases"))),
            "close" => core.apply_twice(&close(words.need("container"), now_ms)),
            "seal" => core.apply_twice(&seal(words.need("container"), &words.list("members"))),
            "delete" => {
                let part = words.number("part").unwrap_or(0) as u32;
                core.apply(&delete(words.need("batch"), part, words.need("container"), &words.list("blocks")))
            }
            "pass" => {
                let through = words.list("through");
                let done: Vec<_> = words.list("members").into_iter().zip(through).collect();
                core.apply_twice(&pass(words.need("container"), &done))
            }
            "degrade" => {
                let generation = words.number("generation").unwrap_or(1);
                let acknowledged = words.list("acknowledged");
                core.apply_twice(&degrade(words.need("container"), generation, &acknowledged, now_ms))
            }
            "retire" => core.apply_twice(&retire(words.need("container"))),
            "raise" => core.apply_twice(&raise(&[words.need("container")], now_ms)),
            "invalidate" => {
                core.apply_twice(&invalidate(words.need("container"), &words.lives("replicas"), now_ms))
            }
            "begin-copy" => {
                let source = words.lives("source")[0];
                core.apply(&begin_copy(words.need("container"), source, words.need("target")))
            }
            "end-copy" => {
                let done = words.number("done").unwrap_or(0);
                core.apply_twice(&end_copy(words.need("container"), words.lives("replica")[0], done))
            }
            "drop" => core.apply_twice(&delete_replicas(words.need("container"), &words.lives("replicas"))),
            "dropped" => {
                core.apply_twice(&forget_replicas(words.need("container"), &words.lives("replicas")))
            }
            "forget-datanode" => {
                core.apply_twice(&forget_datanode(words.need("node"), &words.list("containers"), true))
            }
            "decommission" => core.apply_twice(&decommission(words.need("node"), words.need("others"))),
            "add-key" => core.apply_twice(&add_token_key(words.need("after") as u32, now_ms)),
            "show-container" => return Ok(show_container(core, words.need("container"))),
            "show-leases" => return Ok(show_leases(core)),
            "show-deletions" => return Ok(show_deletions(core)),
            "show-keys" => {
                let keys = live_keys(&core.store.view(), now_ms)?;
                let lines = keys.iter().map(|(key, made_ms)| {
                    format!("key {} made {made_ms} expires {}\n", key.id, key.expires_ms)
                });
                return Ok(lines.collect());
            }
            other => return Err(format!("no command {other}").into()),
        };
        Ok(match reply {
            Reply::Done => "done\n".to_owned(),
            Reply::NoContainer => "no container\n".to_owned(),
            Reply::OutOfOrder => "out of order\n".to_owned(),
            Reply::Degraded(degraded) => format!("{degraded:?}\n").to_lowercase(),
            Reply::Refused(why) => format!("refused: {why}\n"),
            Reply::Lease(lease) => {
                let last = lease.first.0 + lease.count - 1;
                let members: Vec<_> =
                    lease.pipeline.members.iter().map(|member| member.id.0.as_u128()).collect();
                format!(
                    "lease {}: container {} ids {}..={last} pipeline {} on {members:?}\n",
                    lease.id, lease.container, lease.first, lease.pipeline.id
                )
            }
        })
    }
}

fn show_container(core: &Core, id: u64) -> String {
    let row = core.container(id);
    let mut text = format!(
        "{:?} next id {} deletions {} passed {} created {} closing {}\n",
        row.state, row.next_local, row.last_deletion, row.purged_deletion, row.created_ms, row.closing_ms
    );
    for replica in &row.replicas {
        let (node, generation) = (replica.datanode.0.as_u128(), replica.generation);
        let _ = write!(text, "  replica on {node} generation {generation}");
        let _ = match (replica.state, replica.source) {
            (ReplicaState::Valid, _) => writeln!(text),
            (state, Some((source, _))) => {
                writeln!(text, " {} of {}", format!("{state:?}").to_uppercase(), source.0.as_u128())
            }
            (state, None) => writeln!(text, " {}", format!("{state:?}").to_uppercase()),
        };
    }
    let readable =
        locate(&core.store.view(), ContainerId(id)).unwrap().map(|location| location.replicas.len());
    let _ = match readable {
        Some(nodes) => writeln!(text, "  readable at {nodes} nodes"),
        None => writeln!(text, "  gone"),
    };
    text
}

fn show_leases(core: &Core) -> String {
    let mut text = String::new();
    core.store
        .view()
        .scan(LEASE, &[], None, &mut |row_key, value| {
            let row: crate::schema::LeaseRow = crate::schema::decode(LEASE, row_key, value).unwrap();
            let id = crate::schema::parse_number(LEASE, row_key).unwrap();
            let _ = writeln!(text, "lease {id} of container {} for request {}", row.container, row.request);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    text
}

fn show_deletions(core: &Core) -> String {
    let lines = core.deletions().into_iter().map(|((container, transaction), blocks)| {
        format!("container {container} transaction {transaction}: {blocks:?}\n")
    });
    lines.collect()
}

fn run(name: &str) {
    let path = format!("{}/testscripts/{name}", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(&mut ScriptRunner(Core::new()), path).unwrap();
}

#[test]
fn container_goes_from_open_to_closed() {
    run("container/open_closing_closed");
}

#[test]
fn lease_is_granted_once_per_request() {
    run("lease/grant_repeat_return");
}

#[test]
fn deletion_waits_for_every_replica() {
    run("deletion/until_all_have_passed");
}

#[test]
fn deletion_batch_is_logged_once() {
    run("deletion/batches");
}

#[test]
fn token_keys_rotate() {
    run("token_key/rotation");
}

#[test]
fn writers_leave_out_who_did_not_acknowledge() {
    run("container/degrade");
}

#[test]
fn empty_containers_are_dropped_for_good() {
    run("container/retire");
}

#[test]
fn copies_come_from_sealed_replicas_alone() {
    run("replica/copy");
}

#[test]
fn last_valid_replica_stays() {
    run("replica/last_valid");
}

#[test]
fn datanodes_taken_out_at_once_leave_as_many_as_was_counted_on() {
    run("datanode/taken_out_at_once");
}

#[test]
fn containers_of_one_replica_are_raised() {
    run("container/raise");
}
