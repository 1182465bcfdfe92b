//! Which cells a run has, and what it refuses.

use std::time::Duration;

use anyhow::{bail, ensure};
use bytesize::ByteSize;
use clap::ValueEnum;

use super::BenchArgs;

/// S3 takes no more in one PUT.
const SIZE_BYTES_MAX: u64 = 5 << 30;

/// More connections than a process may have open files is nonsense.
const CONNECTIONS_MAX: usize = 10_000;

/// More threads than this is a slip of the keyboard.
const THREADS_MAX: usize = 256;

/// Objects of one size, unless asked otherwise: making them must not take longer than measuring.
const OBJECTS_DEFAULT_MAX: u64 = 10_000;

/// More objects than this is a test of another kind.
const OBJECTS_MAX: u64 = 100_000_000;

const DURATION_DEFAULT: Duration = Duration::from_secs(10);

/// An operation as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OperationArg {
    /// Store objects.
    Put,
    /// Read objects.
    Get,
    /// Ask for objects' metadata.
    Head,
    /// List pages of up to 1,000 keys.
    List,
    /// 45% get, 30% head, 15% put, 10% delete.
    Mixed,
    /// Remove objects.
    Delete,
    /// Each of them.
    All,
}

/// An operation that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Put,
    Get,
    Head,
    List,
    Mixed,
    Delete,
}

impl Operation {
    /// In an order in which objects need to be made least often.
    const ALL: [Self; 6] = [Self::Put, Self::Get, Self::Head, Self::List, Self::Mixed, Self::Delete];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Mixed => "mixed",
            Self::Delete => "delete",
        }
    }

    pub(super) fn needs_objects(self) -> bool {
        self != Self::Put
    }

    pub(super) fn removes_objects(self) -> bool {
        matches!(self, Self::Mixed | Self::Delete)
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) operation: Operation,
    pub(super) size: u64,
    pub(super) connections: usize,
    /// Distinct keys.
    pub(super) objects: u64,
    pub(super) duration: Option<Duration>,
    pub(super) requests: Option<u64>,
}

impl Cell {
    pub(super) fn describe(&self) -> String {
        format!("{} {} x{}", self.operation.name(), show_size(self.size), self.connections)
    }
}

/// Sizes as we write them: `4 KiB`.
pub(super) fn show_size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string().replace(".0 ", " ")
}

/// The cells that the arguments ask for.
pub(super) fn plan(args: &BenchArgs) -> anyhow::Result<Vec<Cell>> {
    check(args)?;
    let operations = operations(args)?;
    let requests = args.requests;
    let duration = match args.duration {
        Some(duration) => Some(Duration::try_from(duration)?),
        None => requests.is_none().then_some(DURATION_DEFAULT),
    };
    let connections_max = args.connections.iter().copied().max().unwrap_or(1) as u64;
    // A few requests do not touch many objects; more need not be made.
    let useful = requests.map_or(OBJECTS_DEFAULT_MAX, |requests| requests.max(connections_max));
    let mut cells = Vec::new();
    for (index, size) in args.sizes.iter().enumerate() {
        let size = size.as_u64();
        let fitting = (args.space.as_u64() / size.max(1)).clamp(1, OBJECTS_DEFAULT_MAX.min(useful));
        let objects = args.objects.unwrap_or(fitting);
        for connections in args.connections.iter().copied() {
            for operation in operations.iter().copied() {
                if operation == Operation::List && index > 0 {
                    // A listing does not depend on what the objects weigh.
                    continue;
                }
                if operation == Operation::Mixed && objects < connections as u64 {
                    bail!(
                        "mixed needs an object of its own for each connection: {connections} of {}, \
                         but --space or --objects allow {objects}",
                        show_size(size)
                    );
                }
                cells.push(Cell { operation, size, connections, objects, duration, requests });
            }
        }
    }
    Ok(cells)
}

fn operations(args: &BenchArgs) -> anyhow::Result<Vec<Operation>> {
    let all = args.operations.contains(&OperationArg::All);
    let asked =
        |operation: &Operation| all || args.operations.iter().any(|arg| arg.measured() == Some(*operation));
    let mut chosen: Vec<Operation> = Operation::ALL.into_iter().filter(asked).collect();
    if args.webdav {
        ensure!(all || !chosen.contains(&Operation::List), "list is an operation of S3; --webdav has none");
        chosen.retain(|operation| *operation != Operation::List);
    }
    Ok(chosen)
}

impl OperationArg {
    fn measured(self) -> Option<Operation> {
        match self {
            Self::Put => Some(Operation::Put),
            Self::Get => Some(Operation::Get),
            Self::Head => Some(Operation::Head),
            Self::List => Some(Operation::List),
            Self::Mixed => Some(Operation::Mixed),
            Self::Delete => Some(Operation::Delete),
            Self::All => None,
        }
    }
}

fn check(args: &BenchArgs) -> anyhow::Result<()> {
    for size in &args.sizes {
        ensure!(
            size.as_u64() <= SIZE_BYTES_MAX,
            "--sizes {}: S3 takes at most {} in one PUT",
            show_size(size.as_u64()),
            show_size(SIZE_BYTES_MAX)
        );
    }
    for connections in &args.connections {
        ensure!(
            (1..=CONNECTIONS_MAX).contains(connections),
            "--connections {connections}: must be from 1 to {CONNECTIONS_MAX}"
        );
    }
    if let Some(duration) = args.duration {
        ensure!(duration.is_positive(), "--duration {duration}: must be more than nothing");
    }
    ensure!(args.timeout.is_positive(), "--timeout {}: must be more than nothing", args.timeout);
    ensure!(args.requests != Some(0), "--requests 0: nothing to measure");
    if let Some(objects) = args.objects {
        ensure!((1..=OBJECTS_MAX).contains(&objects), "--objects {objects}: must be from 1 to {OBJECTS_MAX}");
    }
    if let Some(threads) = args.threads {
        ensure!((1..=THREADS_MAX).contains(&threads), "--threads {threads}: must be from 1 to {THREADS_MAX}");
    }
    ensure!(!args.bucket.is_empty(), "--bucket must not be empty");
    super::check_pids(&args.server_pid)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn plan_of(line: &str) -> anyhow::Result<Vec<Cell>> {
        plan(&Command::try_parse_from(line.split(' '))?.args)
    }

    #[test]
    fn cells_are_the_product_but_list_comes_once_a_connection_count() {
        let cells = plan_of("bench put list --sizes 4KiB,1MiB --connections 1,8").unwrap();
        let names: Vec<String> = cells.iter().map(Cell::describe).collect();
        assert_eq!(
            names,
            [
                "put 4 KiB x1",
                "list 4 KiB x1",
                "put 4 KiB x8",
                "list 4 KiB x8",
                "put 1 MiB x1",
                "put 1 MiB x8"
            ]
        );
        assert_eq!(cells[0].duration, Some(DURATION_DEFAULT));
    }

    #[test]
    fn objects_stay_within_the_space() {
        let cells =
            plan_of("bench put --sizes 256MiB,4KiB,0 --connections 1 --space 1GiB --requests 5").unwrap();
        let objects: Vec<u64> = cells.iter().map(|cell| cell.objects).collect();
        assert_eq!(objects, [4, 5, 5]);
        assert_eq!((cells[0].duration, cells[0].requests), (None, Some(5)));
        let cells = plan_of("bench put --sizes 4KiB,0 --connections 1").unwrap();
        assert!(cells.iter().all(|cell| cell.objects == OBJECTS_DEFAULT_MAX));
    }

    #[test]
    fn webdav_has_no_list() {
        assert_eq!(plan_of("bench --webdav --sizes 4KiB --connections 1").unwrap().len(), 5);
        assert!(plan_of("bench list --webdav").is_err());
    }

    #[test]
    fn nonsense_is_refused_with_the_argument_named() {
        for (line, word) in [
            ("bench --connections 0", "--connections 0"),
            ("bench --connections 1,99999", "--connections 99999"),
            ("bench --sizes 6GiB", "--sizes"),
            ("bench --sizes tiny", "--sizes"),
            ("bench --duration 0s", "--duration"),
            ("bench --duration=-1s", "--duration"),
            ("bench --requests 0", "--requests"),
            ("bench --objects 0", "--objects"),
            ("bench --threads 0", "--threads"),
            ("bench --server-pid 4294967295", "--server-pid"),
            ("bench mixed --sizes 256MiB --connections 64", "mixed"),
            ("bench fly", "fly"),
        ] {
            let error = plan_of(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
