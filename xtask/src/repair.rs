//! A datanode that dies for good: how long until everything it held is on three datanodes again.
//!
//! ```text
//!   load through a gateway -> the fullest datanode gets SIGKILL -> given up -> its containers sealed and copied
//!     -> every container has three healthy replicas -> all others that had them are killed too -> every byte is read back
//! ```
//!
//! What is read at the end can come from the new replicas alone: they are compared, not believed.
//!
//! Not here: operators' part in replacing a node (`replace`).

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::RepairArguments;
use crate::containers::{Asker, bytes_by_datanode, node_of};
use crate::corpus::Corpus;
use crate::rig::{Rig, Role, Shape};
use crate::stopwatch::{Stopwatch, wait_until_every};
use crate::workspace::Workspace;

const BUCKET: &str = "repair";
const OBJECT_BYTES: u64 = 16 << 20;
const REPLICAS: usize = 3;
/// Time for 5 GiB at the slowest bandwidth that is worth measuring, and as much again.
const REPAIR_DEADLINE: Duration = Duration::from_secs(900);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Reports come with heartbeats, every second.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);

/// True if all was repaired and every byte is right.
pub(crate) fn run(workspace: &Workspace, arguments: &RepairArguments) -> Result<bool> {
    let binary = workspace.release_server(arguments.binary.as_deref())?;
    let directory = arguments.dir.clone().unwrap_or_else(|| workspace.target("repair"));
    if directory.exists() {
        std::fs::remove_dir_all(&directory).context("remove the last run")?;
    }
    // What dies is given up at once: the length of the wait is a setting, not a figure.
    let mut settings = vec![
        ("FERROZONE_SCM__STALE_AFTER", "3s"),
        ("FERROZONE_SCM__DEAD_AFTER", "6s"),
        ("FERROZONE_SCM__REPAIR_DELAY", "0s"),
        ("RUST_LOG", "info"),
    ];
    settings.extend(arguments.bandwidth.as_deref().map(|limit| ("FERROZONE_SCM__REPAIR_BANDWIDTH", limit)));
    let shape = Shape { metas: 3, datanodes: REPLICAS + 1, gateways: 1 };
    let mut rig = Rig::create(&binary, &directory, shape, &settings)?;
    rig.start_all()?;
    for name in rig.names(Role::Datanode) {
        rig.wait_ready(&name, REPORT_DEADLINE)?;
    }
    let outcome = measure(&mut rig, &Asker { binary: &binary }, arguments.bytes);
    drop(rig);
    if outcome.is_ok() {
        std::fs::remove_dir_all(&directory).context("remove the run's directory")?;
    }
    outcome?;
    println!("1 passed, 0 failed");
    Ok(true)
}

fn measure(rig: &mut Rig, asker: &Asker<'_>, bytes: u64) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start tokio")?;
    let gateway = rig.names(Role::Gateway)[0].clone();
    let client = rig.client(&gateway, 8)?;
    runtime.block_on(client.create_bucket(BUCKET, None)).context("create the bucket")?;
    // A little more than is asked for: the last container need not lie on the fullest datanode.
    let corpus = Corpus::new("object", bytes + bytes / 64, OBJECT_BYTES);
    let watch = Stopwatch::start();
    runtime.block_on(corpus.write(&client, BUCKET))?;
    let written = watch.elapsed();
    println!(
        "wrote {} in {:.1} s: {:.0} MiB/s, each byte to {REPLICAS} datanodes",
        gib(corpus.bytes()),
        written.as_secs_f64(),
        mib_per_second(corpus.bytes(), written)
    );

    let (victim, before) =
        wait_until_every(LOOK_INTERVAL, "a datanode with enough bytes", REPORT_DEADLINE, || {
            let containers = asker.containers(rig)?;
            let by_datanode = bytes_by_datanode(&containers);
            let fullest = by_datanode.into_iter().max_by_key(|(_, held)| *held);
            Ok(fullest.filter(|(_, held)| *held >= bytes).map(|(id, _)| (id, containers)))
        })?;
    let datanodes = asker.datanodes(rig)?;
    let name = node_of(&datanodes, &victim)?;
    let held: u64 =
        before.iter().filter_map(|container| container.on(&victim)).map(|replica| replica.used_bytes).sum();
    let count = before.iter().filter(|container| container.on(&victim).is_some()).count();
    rig.kill(&name)?;
    let watch = Stopwatch::start();
    rig.wipe(&name)?;
    println!("killed {name} for good: {count} containers, {}", gib(held));

    let dead = wait_until_every(LOOK_INTERVAL, "the datanode given up", REPORT_DEADLINE, || {
        let all = asker.datanodes(rig)?;
        let is_dead = all.iter().any(|datanode| datanode.id == victim && datanode.liveness == "dead");
        Ok(is_dead.then(|| watch.elapsed()))
    })?;
    println!("given up after {:.1} s", dead.as_secs_f64());
    let lost: BTreeSet<u64> = before
        .iter()
        .filter(|container| container.on(&victim).is_some())
        .map(|container| container.container)
        .collect();
    let mut begun = None;
    let after =
        wait_until_every(LOOK_INTERVAL, "three healthy replicas of everything", REPAIR_DEADLINE, || {
            let containers = asker.containers(rig)?;
            let is_copying = |container: &&crate::containers::Container| {
                container.replicas.iter().any(|replica| replica.state == "copying")
            };
            if begun.is_none() && containers.iter().any(|container| is_copying(&container)) {
                begun = Some(watch.elapsed());
            }
            let is_done =
                containers.iter().filter(|container| lost.contains(&container.container)).all(|container| {
                    let healthy = container.replicas.iter().filter(|replica| replica.is_sealed_healthy());
                    healthy.filter(|replica| replica.datanode != victim).count() >= REPLICAS
                });
            Ok(is_done.then_some(containers))
        })?;
    let done = watch.elapsed();
    let copying = done.saturating_sub(begun.unwrap_or(dead));
    println!(
        "{} again on {REPLICAS} datanodes after {:.1} s, of them {:.1} s of copying: {:.0} MiB/s, copied, read back and counted valid",
        gib(held),
        done.as_secs_f64(),
        copying.as_secs_f64(),
        mib_per_second(held, copying)
    );

    // The datanode that took the most: everything is there, or replicas were made up.
    let gained = |id: &String| {
        let lay =
            |container: u64| before.iter().any(|old| old.container == container && old.on(id).is_some());
        after.iter().filter(|container| container.on(id).is_some() && !lay(container.container)).count()
    };
    let living = datanodes.iter().filter(|datanode| datanode.id != victim).map(|datanode| &datanode.id);
    let heir = living.max_by_key(|id| gained(id)).context("a datanode is left")?;
    ensure!(gained(heir) > 0, "no datanode has gained a container");
    let heir = node_of(&datanodes, heir)?;
    for other in rig.names(Role::Datanode).into_iter().filter(|other| *other != heir) {
        rig.kill(&other)?;
    }
    let watch = Stopwatch::start();
    runtime.block_on(corpus.compare(&client, BUCKET))?;
    println!(
        "every byte read back from {heir} alone, which took {} copies: {:.0} MiB/s",
        lost.len(),
        mib_per_second(corpus.bytes(), watch.elapsed())
    );
    Ok(())
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn mib_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64().max(0.001)
}
