//! Processor time of the server under test and of this process, from /proc.
//!
//! Counted in the kernel's ticks of 10 ms, all threads of the named processes, children not included. Over a cell of
//! seconds that is exact enough; over a handful of requests it is not.

use std::collections::BTreeMap;
use std::fs;
use std::num::ParseIntError;
use std::str::FromStr;

/// A process of the server, and what it counts as: a cluster's roles are told apart by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerPid {
    pub(super) name: String,
    pub(super) pid: u32,
}

impl FromStr for ServerPid {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, pid) = text.split_once('=').unwrap_or(("server", text));
        Ok(Self { name: name.to_owned(), pid: pid.parse()? })
    }
}

/// Processor time so far, in milliseconds.
#[derive(Debug, Clone)]
pub(super) struct Usage {
    /// By name.
    server_ms: Option<BTreeMap<String, f64>>,
    client_ms: f64,
}

/// Processor time of a cell, in milliseconds.
#[derive(Debug, Clone)]
pub(super) struct Spent {
    /// By name. `None` if nobody named the server's processes or one of them ended.
    pub(super) server_ms: Option<BTreeMap<String, f64>>,
    pub(super) client_ms: f64,
}

impl Usage {
    pub(super) fn read(server: &[ServerPid]) -> Self {
        let mut server_ms = (!server.is_empty()).then(BTreeMap::new);
        for ServerPid { name, pid } in server {
            match (&mut server_ms, milliseconds(&pid.to_string())) {
                (Some(times), Some(time)) => *times.entry(name.clone()).or_default() += time,
                _ => server_ms = None,
            }
        }
        Self { server_ms, client_ms: milliseconds("self").unwrap_or(0.0) }
    }

    pub(super) fn until_now(&self, server: &[ServerPid]) -> Spent {
        let now = Self::read(server);
        let mut server_ms = now.server_ms;
        match (&mut server_ms, &self.server_ms) {
            (Some(after), Some(before)) => after.iter_mut().for_each(|(name, time)| *time -= before[name]),
            _ => server_ms = None,
        }
        Spent { server_ms, client_ms: now.client_ms - self.client_ms }
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
        let spent = |pids: &[ServerPid]| Usage::read(pids).until_now(pids).server_ms;
        let own: ServerPid = std::process::id().to_string().parse().unwrap();
        let absent: ServerPid = format!("om={}", u32::MAX).parse().unwrap();
        assert_eq!(spent(std::slice::from_ref(&absent)), None);
        assert_eq!(spent(&[own.clone(), absent]), None);
        assert_eq!(spent(&[]), None);
        let named = ServerPid { name: "om".to_owned(), ..own.clone() };
        let names: Vec<String> = spent(&[own, named]).unwrap().into_keys().collect();
        assert_eq!(names, ["om", "server"]);
    }

    #[test]
    fn a_name_without_a_process_is_refused() {
        assert!("om=".parse::<ServerPid>().is_err());
        assert!("om".parse::<ServerPid>().is_err());
    }
}
