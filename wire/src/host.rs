//! Where a process answers: a host and a port, as configuration files and certificates name it.
//!
//! A name is kept, not an address: containers and virtual machines change theirs at every start.
//!
//! Not here: resolving it (the transport does, at each connection).

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `host:port`; the host is a DNS name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort(String);

/// A DNS name has at most so many bytes (RFC 1035); the port adds six.
const HOST_PORT_BYTES_MAX: usize = 253 + 6;

/// The text is no `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no host:port")]
pub struct NotAHostPort(String);

impl HostPort {
    /// Checks and keeps it.
    pub fn new(text: &str) -> Result<Self, NotAHostPort> {
        let refuse = || NotAHostPort(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
                !host.is_empty() && host.bytes().all(legal)
            }
        };
        let is_port = port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
        if is_host && is_port && text.len() <= HOST_PORT_BYTES_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(refuse())
        }
    }

    /// The host alone, an IPv6 address without its brackets: what a certificate names.
    pub fn host(&self) -> &str {
        let host = self.0.rsplit_once(':').map_or("", |(host, _)| host);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0)
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostPort {
    type Err = NotAHostPort;

    fn from_str(text: &str) -> Result<Self, NotAHostPort> {
        Self::new(text)
    }
}

impl TryFrom<String> for HostPort {
    type Error = NotAHostPort;

    fn try_from(text: String) -> Result<Self, NotAHostPort> {
        Self::new(&text)
    }
}

impl From<HostPort> for String {
    fn from(host_port: HostPort) -> String {
        host_port.0
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_from_nonsense() {
        for text in ["om1:9002", "10.0.0.1:80", "[::1]:9002", "a_b.example.org:1"] {
            assert_eq!(HostPort::new(text).unwrap().to_string(), text);
        }
        for text in
            ["", "om1", ":9002", "om1:", "om1:70000", "om1:+80", "::1:80", "a b:80", "a/b:80", "u@h:80"]
        {
            assert!(HostPort::new(text).is_err(), "{text}");
        }
        let address: SocketAddr = "[::1]:9002".parse().unwrap();
        assert_eq!((HostPort::from(address).host(), HostPort::from(address).port()), ("::1", 9002));
    }
}
