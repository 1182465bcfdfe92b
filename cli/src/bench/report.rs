//! Results: a table for people, one JSON document for programs.

use std::collections::BTreeMap;

use anyhow::Context;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::cpu::Spent;
use super::plan::{Cell, Operation, show_size};
use super::stats::Stats;
use super::target::Settings;
use super::{BenchArgs, PayloadArg};

const MIB: f64 = (1 << 20) as f64;

/// All results of a run, in the form of the JSON document.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    endpoint: String,
    protocol: &'static str,
    payload: &'static str,
    bucket: String,
    prefix: String,
    seed: u64,
    verified: bool,
    /// Ended by the user before the last cell.
    pub(super) interrupted: bool,
    /// What could not be removed, and why.
    pub(super) cleanup_error: Option<String>,
    cells: Vec<Row>,
}

/// One cell, or one kind of operation in a mixed one.
#[derive(Debug, Serialize)]
struct Row {
    operation: &'static str,
    /// The mixed cell it is a part of.
    part_of: Option<&'static str>,
    /// Objects could not be made, so nothing was measured.
    skipped: bool,
    size_bytes: u64,
    connections: usize,
    objects: u64,
    /// Successes.
    operations: u64,
    failures: u64,
    failures_by_kind: BTreeMap<String, u64>,
    first_failure: Option<String>,
    elapsed_s: f64,
    operations_per_s: f64,
    mib_per_s: f64,
    keys_listed: u64,
    latency_ms: Latency,
    server_cpu_ms_per_operation: Option<f64>,
    /// Its parts, by the names the processes were given.
    server_cpu_ms_per_operation_by_name: BTreeMap<String, f64>,
    client_cpu_ms_per_operation: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Report {
    pub(super) fn new(args: &BenchArgs, settings: &Settings) -> Self {
        Self {
            endpoint: args.endpoint.join(","),
            protocol: if settings.webdav { "webdav" } else { "s3" },
            payload: match args.payload {
                _ if settings.webdav => "plain",
                PayloadArg::Signed => "signed",
                PayloadArg::Unsigned => "unsigned",
            },
            bucket: settings.bucket.clone(),
            prefix: settings.prefix.clone(),
            seed: settings.seed,
            verified: settings.verify,
            interrupted: false,
            cleanup_error: None,
            cells: Vec::new(),
        }
    }

    /// Adds a cell: its sum, and its parts if it has several.
    pub(super) fn add(&mut self, cell: &Cell, results: &[Stats], spent: Option<&Spent>, skipped: bool) {
        let mut sum = Stats::new(cell.operation);
        results.iter().for_each(|stats| sum.merge(stats));
        let mut row = Row::new(cell, cell.operation, &sum);
        row.skipped = skipped;
        if let Some(spent) = spent.filter(|_| row.operations > 0) {
            let each = |time: f64| time / row.operations as f64;
            row.client_cpu_ms_per_operation = Some(each(spent.client_ms));
            if let Some(times) = &spent.server_ms {
                row.server_cpu_ms_per_operation = Some(each(times.values().sum()));
                row.server_cpu_ms_per_operation_by_name =
                    times.iter().map(|(name, time)| (name.clone(), each(*time))).collect();
            }
        }
        self.cells.push(row);
        if cell.operation == Operation::Mixed && !skipped {
            for stats in results {
                // All parts share the time of the whole, so that their rates add up.
                let mut part = Row::new(cell, stats.operation, stats).over(sum.elapsed.as_secs_f64());
                part.part_of = Some(cell.operation.name());
                self.cells.push(part);
            }
        }
    }

    /// Whether anything went wrong.
    pub(super) fn failed(&self) -> bool {
        self.cleanup_error.is_some() || self.cells.iter().any(|row| row.failures > 0 || row.skipped)
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self).context("write JSON")?);
        } else {
            println!("{}", self.table());
        }
        // Failures of a mixed cell are in its sum already.
        for row in self.cells.iter().filter(|row| row.part_of.is_none() && row.failures > 0) {
            eprintln!(
                "{} {} x{}: {} failed {:?}; first: {}",
                row.operation,
                show_size(row.size_bytes),
                row.connections,
                row.failures,
                row.failures_by_kind,
                row.first_failure.as_deref().unwrap_or("unknown")
            );
        }
        if self.interrupted {
            eprintln!("interrupted: the last cell is cut short and later ones are missing");
        }
        if let Some(error) = &self.cleanup_error {
            eprintln!("not all objects under {}/{} were removed: {error}", self.bucket, self.prefix);
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let with_cpu = self.cells.iter().any(|row| row.server_cpu_ms_per_operation.is_some());
        let mut header = vec![
            "operation",
            "size",
            "conns",
            "ops",
            "ops/s",
            "MiB/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "failed",
        ];
        if with_cpu {
            header.push("server CPU ms/op");
        }
        let mut table = Table::new();
        table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
        let columns = header.len();
        table.set_header(header);
        for row in &self.cells {
            let mut cells = row.cells();
            if with_cpu {
                cells.push(row.server_cpu_ms_per_operation.map_or("-".into(), |time| format!("{time:.3}")));
            }
            table.add_row(cells);
        }
        for column in 1..columns {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

impl Row {
    fn new(cell: &Cell, operation: Operation, stats: &Stats) -> Self {
        let milliseconds = |nanoseconds: u64| nanoseconds as f64 / 1e6;
        let quantile = |share| milliseconds(stats.latency.value_at_quantile(share));
        let row = Self {
            operation: operation.name(),
            part_of: None,
            skipped: false,
            size_bytes: cell.size,
            connections: cell.connections,
            objects: cell.objects,
            operations: stats.operations(),
            failures: stats.failures(),
            failures_by_kind: stats.failures.clone(),
            first_failure: stats.first_failure.clone(),
            elapsed_s: 0.0,
            operations_per_s: 0.0,
            mib_per_s: stats.bytes as f64 / MIB,
            keys_listed: stats.entries,
            latency_ms: Latency {
                mean: stats.latency.mean() / 1e6,
                p50: quantile(0.5),
                p99: quantile(0.99),
                p999: quantile(0.999),
                max: milliseconds(stats.latency.max()),
            },
            server_cpu_ms_per_operation: None,
            server_cpu_ms_per_operation_by_name: BTreeMap::new(),
            client_cpu_ms_per_operation: None,
        };
        row.over(stats.elapsed.as_secs_f64())
    }

    /// The same counts as rates over another time.
    fn over(mut self, seconds: f64) -> Self {
        let mib = if self.elapsed_s > 0.0 { self.mib_per_s * self.elapsed_s } else { self.mib_per_s };
        let rate = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        self.operations_per_s = rate(self.operations as f64);
        self.mib_per_s = rate(mib);
        self.elapsed_s = seconds;
        self
    }

    fn cells(&self) -> Vec<String> {
        let name = match self.part_of {
            Some(_) => format!("  {}", self.operation),
            None if self.skipped => format!("{} (skipped)", self.operation),
            None => self.operation.to_owned(),
        };
        vec![
            name,
            if self.operation == "list" { "-".into() } else { show_size(self.size_bytes) },
            self.connections.to_string(),
            self.operations.to_string(),
            format!("{:.1}", self.operations_per_s),
            format!("{:.1}", self.mib_per_s),
            format!("{:.3}", self.latency_ms.p50),
            format!("{:.3}", self.latency_ms.p99),
            format!("{:.3}", self.latency_ms.p999),
            self.failures.to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::stats::Done;
    use super::*;

    fn cell(operation: Operation) -> Cell {
        Cell { operation, size: 1 << 20, connections: 2, objects: 4, duration: None, requests: None }
    }

    fn stats(operation: Operation, count: u64, seconds: u64) -> Stats {
        let mut stats = Stats::new(operation);
        for _ in 0..count {
            stats.record(Duration::from_millis(10), Ok(Done { bytes: 1 << 20, entries: 0 }));
        }
        stats.elapsed = Duration::from_secs(seconds);
        stats
    }

    fn report() -> Report {
        Report {
            endpoint: "http://h".into(),
            protocol: "s3",
            payload: "signed",
            bucket: "b".into(),
            prefix: "p/".into(),
            seed: 1,
            verified: false,
            interrupted: false,
            cleanup_error: None,
            cells: Vec::new(),
        }
    }

    #[test]
    fn parts_of_a_mixed_cell_add_up_to_it() {
        let mut report = report();
        let results = [stats(Operation::Get, 30, 2), stats(Operation::Put, 10, 4)];
        let server_ms = [("om".to_owned(), 20.0), ("datanode".to_owned(), 60.0)];
        let spent = Spent { server_ms: Some(server_ms.into()), client_ms: 40.0 };
        report.add(&cell(Operation::Mixed), &results, Some(&spent), false);
        let rates: Vec<f64> = report.cells.iter().map(|row| row.mib_per_s).collect();
        assert_eq!(rates, [10.0, 7.5, 2.5]);
        assert_eq!(report.cells[0].server_cpu_ms_per_operation, Some(2.0));
        assert_eq!(report.cells[0].server_cpu_ms_per_operation_by_name["om"], 0.5);
        assert!((report.cells[0].latency_ms.p99 - 10.0).abs() < 0.1);
        assert!(!report.failed());
        assert!(report.table().to_string().contains("server CPU"));
    }

    #[test]
    fn empty_cell_has_rates_of_zero_and_valid_json() {
        let mut report = report();
        report.add(&cell(Operation::Get), &[], None, true);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["cells"][0]["operations_per_s"], 0.0);
        assert_eq!(json["cells"][0]["latency_ms"]["p50"], 0.0);
        assert!(report.failed());
    }
}
