//! `ferrozone bench`: measures any S3 endpoint, or a plain HTTP server with PUT, from the outside.
//!
//! A run is a list of *cells*: one operation, one object size, one number of connections. Before a cell its objects
//! are made (untimed), its connections are opened (untimed); then every connection performs one operation after the
//! other until the time or the number of requests is used up. Nothing is retried and nothing is left out: an
//! operation that fails is counted, shown, and makes the exit code 1. Afterwards all objects are removed, and the
//! bucket too if this run made it.
//!
//! Code map: `plan` (which cells, and what is refused), `content` (bodies and their check), `target` (operations on
//! the server), `load` (threads and connections), `stats` (what is counted), `cpu` (the server's processor time),
//! `report` (table and JSON).
//!
//! Invariants:
//! * Keys lie under a prefix of this run alone; no object of anybody else is touched.
//! * The same seed gives the same bodies and the same sequence of choices a connection.
//!
//! Exit codes: 0 all well; 1 an operation or the cleaning failed; 2 the arguments make no sense or the endpoint cannot
//! be used; 130 interrupted, what was measured is shown.

mod content;
mod cpu;
mod load;
mod plan;
mod report;
mod stats;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use platform::watch;

use self::cpu::ServerPid;
use self::load::{CellRun, Progress};
use self::plan::{Cell, Operation};
use self::report::Report;
use self::target::Target;

/// How often the progress bar moves.
const TICK: Duration = Duration::from_millis(200);

/// Connections that make objects before a cell: enough for a server that batches syncs.
const FILL_CONNECTIONS: usize = 64;

/// Exit code of an interrupted program, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

/// Whether bodies are covered by the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PayloadArg {
    /// SHA-256 of the body in the signature.
    Signed,
    /// `UNSIGNED-PAYLOAD`.
    Unsigned,
}

/// What `--help` says at its end; the module comment says the same.
const EXIT_CODES: &str = "Exit codes: 0 all well; 1 an operation or the cleaning failed; 2 the arguments make no sense \
                          or the endpoint cannot be used; 130 interrupted, what was measured is shown.";

/// Arguments of `ferrozone bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct BenchArgs {
    /// Operations to measure; `mixed` is 45% get, 30% head, 15% put, 10% delete.
    #[arg(value_enum, default_value = "all")]
    operations: Vec<plan::OperationArg>,

    /// Object sizes.
    #[arg(long, value_delimiter = ',', default_value = "4KiB,64KiB,1MiB")]
    sizes: Vec<ByteSize>,

    /// Numbers of connections, each with one request at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    connections: Vec<usize>,

    /// Time a cell takes; operations begun by then are finished and counted. 10s unless --requests is given.
    #[arg(long)]
    duration: Option<jiff::SignedDuration>,

    /// Operations a cell takes; with --duration, whichever is reached first.
    #[arg(long)]
    requests: Option<u64>,

    /// Distinct objects of each size; as many as fit --space unless given.
    #[arg(long)]
    objects: Option<u64>,

    /// Bytes that the objects of one size may take; keys are overwritten beyond it.
    #[arg(long, default_value = "1GiB")]
    space: ByteSize,

    /// The server; several of one cluster share the connections.
    #[arg(long, env = "AWS_ENDPOINT_URL", value_delimiter = ',', default_value = "http://127.0.0.1:9000")]
    endpoint: Vec<String>,

    /// Authorities that signed the certificates of https endpoints [default: the machine's].
    #[arg(long, value_name = "PEM", env = "AWS_CA_BUNDLE")]
    ca: Option<PathBuf>,

    /// Access key.
    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    access_key: Option<String>,

    /// Secret key; the environment is the better place, as other users see arguments.
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    secret_key: Option<String>,

    /// Session token of temporary credentials.
    #[arg(long, env = "AWS_SESSION_TOKEN", hide_env_values = true)]
    session_token: Option<String>,

    /// Region; AWS_DEFAULT_REGION, else us-east-1 unless given.
    #[arg(long, env = "AWS_REGION")]
    region: Option<String>,

    /// Bucket to work in: made if absent, and then removed at the end.
    #[arg(long, default_value = "ferrozone-bench")]
    bucket: String,

    /// Whether bodies are covered by the signature.
    #[arg(long, value_enum, default_value = "signed")]
    payload: PayloadArg,

    /// Plain HTTP PUT, GET, HEAD and DELETE without signatures, as a WebDAV server takes them.
    #[arg(long)]
    webdav: bool,

    /// Check every byte of each GET, not only the length.
    #[arg(long)]
    verify: bool,

    /// Print one JSON document instead of a table.
    #[arg(long)]
    json: bool,

    /// Process ids of the server, to report its processor time an operation; the JSON document has the sum of each name.
    #[arg(long, value_delimiter = ',', value_name = "[NAME=]PID")]
    server_pid: Vec<ServerPid>,

    /// Threads of the load generator; half of the processors unless given.
    #[arg(long)]
    threads: Option<usize>,

    /// Seed of bodies and choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Time after which a silent server counts as failed.
    #[arg(long, default_value = "5m")]
    timeout: jiff::SignedDuration,
}

/// Runs the benchmark and prints its results to standard output.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let (cells, settings) = match plan::plan(&args).and_then(|cells| Ok((cells, target::settings(&args)?))) {
        Ok(planned) => planned,
        Err(error) => {
            eprintln!("ferrozone bench: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    let mut report = Report::new(&args, &settings);
    let target = Target::connect(settings, FILL_CONNECTIONS);
    let created = match target.prepare().await {
        Ok(created) => created,
        Err(error) => {
            eprintln!("ferrozone bench: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };

    let (stop, stopped) = watch::channel(false);
    let interrupt = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.send_replace(true);
        }
        // The sender lives as long as this task, or every receiver would take its end for a stop.
        std::future::pending::<()>().await;
    });
    let outcome = measure(&args, &cells, &target, &stopped, &mut report).await;
    report.interrupted = *stopped.borrow();

    // Once interrupted, a second Ctrl-C leaves the objects where they are.
    let cleaned = tokio::select! {
        cleaned = target.clean(created) => cleaned,
        () = second_interrupt(report.interrupted) => Err(anyhow::anyhow!("cleaning was interrupted")),
    };
    interrupt.abort();
    if let Err(error) = cleaned {
        report.cleanup_error = Some(format!("{error:#}"));
    }
    outcome?;
    report.print(args.json)?;
    Ok(if report.interrupted {
        ExitCode::from(EXIT_INTERRUPTED)
    } else if report.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn second_interrupt(interrupted: bool) {
    if !interrupted || tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Runs the cells one after the other until the last or an interrupt.
async fn measure(
    args: &BenchArgs,
    cells: &[Cell],
    target: &Target,
    stopped: &watch::Receiver<bool>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let threads = args.threads.unwrap_or_else(default_threads);
    // The size whose objects are all there, if any.
    let mut filled = None;
    for cell in cells {
        let content = target.content(cell.size);
        if cell.operation.needs_objects() && filled != Some(cell.size) {
            let fill = Cell {
                operation: Operation::Put,
                connections: FILL_CONNECTIONS.min(cell.objects as usize),
                requests: Some(cell.objects),
                duration: None,
                ..cell.clone()
            };
            let run = CellRun::new(fill, target, &content, threads, stopped.clone());
            let results = supervise(run, "prepare", args.json).await?;
            if *stopped.borrow() {
                return Ok(());
            }
            let failed = results.iter().map(|stats| stats.failures()).sum::<u64>();
            if failed > 0 {
                report.add(cell, &results, None, true);
                eprintln!(
                    "ferrozone bench: {failed} objects could not be made; {} is skipped",
                    cell.describe()
                );
                continue;
            }
            filled = Some(cell.size);
        }
        let before = cpu::Usage::read(&args.server_pid);
        let run = CellRun::new(cell.clone(), target, &content, threads, stopped.clone());
        let results = supervise(run, &cell.describe(), args.json).await?;
        let spent = before.until_now(&args.server_pid);
        report.add(cell, &results, Some(&spent), false);
        if cell.operation.removes_objects() {
            filled = None;
        }
        if *stopped.borrow() {
            return Ok(());
        }
    }
    Ok(())
}

/// Runs one cell on its own threads and shows how far it is.
async fn supervise(run: CellRun, name: &str, quiet: bool) -> anyhow::Result<Vec<stats::Stats>> {
    let progress = Arc::clone(&run.progress);
    let bar = bar(&run, name, quiet);
    let mut cell = tokio::task::spawn_blocking(move || run.execute());
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            results = &mut cell => {
                bar.finish_and_clear();
                return results.context("run the load threads")?;
            }
            _ = tick.tick() => show(&bar, &progress),
        }
    }
}

/// A bar on standard error; indicatif hides it where that is no terminal.
fn bar(run: &CellRun, name: &str, quiet: bool) -> ProgressBar {
    let length = match (run.cell.requests, run.cell.duration) {
        (_, Some(duration)) => duration.as_millis() as u64,
        (Some(requests), None) => requests,
        (None, None) => 1,
    };
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(length) };
    if let Ok(style) = ProgressStyle::with_template("{prefix:28} {bar:30} {percent:>3}%  {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(name.to_owned());
    bar
}

fn show(bar: &ProgressBar, progress: &Progress) {
    let (operations, bytes, failures, elapsed) = progress.read();
    bar.set_position(match progress.by_time {
        true => elapsed.as_millis() as u64,
        false => operations + failures,
    });
    let seconds = elapsed.as_secs_f64().max(0.001);
    let mut text = format!(
        "{:.0} ops/s  {:.1} MiB/s",
        operations as f64 / seconds,
        bytes as f64 / seconds / (1 << 20) as f64
    );
    if failures > 0 {
        text.push_str(&format!("  {failures} FAILED"));
    }
    bar.set_message(text);
}

/// Half of the processors: the server under test needs the others.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| (count.get() / 2).max(1))
}

/// Refuses process ids that are not there, before anything is measured.
fn check_pids(pids: &[ServerPid]) -> anyhow::Result<()> {
    for ServerPid { pid, .. } in pids {
        if !PathBuf::from(format!("/proc/{pid}/stat")).exists() {
            bail!("--server-pid {pid}: no such process");
        }
    }
    Ok(())
}
