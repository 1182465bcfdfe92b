//! Where the server is: `http://host[:port]` or `https://host[:port]`.
//!
//! Invariants: the authority is exactly what goes into the `Host` header, since the signature covers it.

use std::fmt;
use std::str::FromStr;

use http::{HeaderValue, Uri};

use crate::error::Error;

/// The port of plain HTTP.
const HTTP_PORT: u16 = 80;
/// The port of HTTP within TLS.
const HTTPS_PORT: u16 = 443;

/// A parsed endpoint URL.
#[derive(Debug, Clone)]
pub struct Endpoint {
    is_https: bool,
    host: String,
    port: u16,
    authority: HeaderValue,
}

impl Endpoint {
    /// Host name or address, without the brackets of IPv6.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the server is reached within TLS.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// The value of the `Host` header.
    pub(crate) fn authority(&self) -> &HeaderValue {
        &self.authority
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The authority came out of a `Uri`, so it is ASCII.
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority.to_str().unwrap_or("?"))
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::Endpoint { endpoint: text.to_owned(), reason };
        let uri: Uri = text.trim().parse().map_err(|_| refuse("is not a URL"))?;
        let (is_https, default_port) = match uri.scheme_str() {
            Some("http") => (false, HTTP_PORT),
            Some("https") => (true, HTTPS_PORT),
            _ => return Err(refuse("must begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| refuse("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("must not contain a user name"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(refuse("must not have a path or a query"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(refuse("names no host"));
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => default_port,
            Some(rest) => rest
                .strip_prefix(':')
                .and_then(|digits| digits.parse().ok())
                .filter(|port| *port != 0)
                .ok_or_else(|| refuse("has no usable port"))?,
            None => return Err(refuse("is not a URL")),
        };
        // HTTP clients leave the default port out of `Host`, and servers sign what they see.
        let shown = if port == default_port { authority.host() } else { authority.as_str() };
        let authority = HeaderValue::from_str(shown).map_err(|_| refuse("is not a URL"))?;
        Ok(Self { is_https, host, port, authority })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_found() {
        let endpoint: Endpoint = "http://127.0.0.1:9000".parse().unwrap();
        assert_eq!((endpoint.host(), endpoint.port()), ("127.0.0.1", 9000));
        assert_eq!(endpoint.authority(), "127.0.0.1:9000");
        let endpoint: Endpoint = "http://[::1]:9000/".parse().unwrap();
        assert_eq!((endpoint.host(), endpoint.port()), ("::1", 9000));
        assert_eq!(endpoint.authority(), "[::1]:9000");
        assert_eq!(endpoint.to_string(), "http://[::1]:9000");
    }

    #[test]
    fn default_port_is_left_out_of_host() {
        let endpoint: Endpoint = "http://s3.example:80".parse().unwrap();
        assert_eq!((endpoint.port(), endpoint.authority().to_str().unwrap()), (80, "s3.example"));
        let endpoint: Endpoint = "https://s3.example".parse().unwrap();
        assert_eq!((endpoint.port(), endpoint.is_https()), (443, true));
        assert_eq!(endpoint.to_string(), "https://s3.example");
        let endpoint: Endpoint = "https://s3.example:80".parse().unwrap();
        assert_eq!(endpoint.authority(), "s3.example:80");
    }

    #[test]
    fn unusable_endpoints_are_refused_with_the_reason() {
        for (text, reason) in [
            ("localhost:9000", "http://"),
            ("ftp://x", "http://"),
            ("http://user:pw@x", "user name"),
            ("http://x/bucket", "path"),
            ("http://x:0", "port"),
            ("http://x:99999", "port"),
            ("http://x:", "port"),
            ("", "URL"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
