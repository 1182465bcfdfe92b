//! Processor time of the server under test and of this process, from /proc.
//!
//! Counted in the kernel's ticks of 10 ms, all threads of the named processes, children not included. Over a cell of
//! seconds that is exact enough; over a handful of requests it is not.

use std::fs;

/// Processor time so far, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    server_ms: Option<f64>,
    client_ms: f64,
}

/// Processor time of a cell, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    /// `None` if nobody named the server's processes or one of them ended.
    pub(super) server_ms: Option<f64>,
    pub(super) client_ms: f64,
}

impl Usage {
    pub(super) fn read(server: &[u32]) -> Self {
        let known: Option<Vec<f64>> = server.iter().map(|pid| milliseconds(&pid.to_string())).collect();
        Self {
            server_ms: known.filter(|times| !times.is_empty()).map(|times| times.iter().sum()),
            client_ms: milliseconds("self").unwrap_or(0.0),
        }
    }

    pub(super) fn until_now(self, server: &[u32]) -> Option<Spent> {
        let now = Self::read(server);
        let server_ms = now.server_ms.zip(self.server_ms).map(|(after, before)| after - before);
        Some(Spent { server_ms, client_ms: now.client_ms - self.client_ms })
    }
}

fn milliseconds(process: &str) -> Option<f64> {
    let ticks = ticks(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)?;
    Some(ticks as f64 * 1000.0 / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time. The command, the second field, may contain spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_an_odd_command() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Some(12));
        assert_eq!(ticks(""), None);
        assert_eq!(ticks("42 (a) S 1"), None);
    }

    #[test]
    fn absent_process_gives_no_figure() {
        assert!(Usage::read(&[u32::MAX]).until_now(&[u32::MAX]).unwrap().server_ms.is_none());
        assert!(Usage::read(&[]).until_now(&[]).unwrap().server_ms.is_none());
        assert!(
            Usage::read(&[std::process::id()]).until_now(&[std::process::id()]).unwrap().server_ms.is_some()
        );
    }
}
