//! Query parameters, decoded exactly once. A `+` is a space, as forms write it and as clients mean it: those that send one
//! (object_store does) sign `%20`. In a path a plus is a plus.
//!
//! Invariant: names and values are UTF-8; a query that is not is refused before any work.
//!
//! Not here: which parameters route (see `operation`), signatures (auth reads the raw query).

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::error::S3Error;

/// Parameters of one request at most: AWS documents no limit; no operation takes more than a dozen.
const PARAMETERS_MAX: usize = 128;

/// A request's query.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    parameters: Vec<Parameter>,
}

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameter {
    /// Its name, decoded.
    pub(crate) name: String,
    /// Its value, decoded; empty for `?name`.
    pub(crate) value: String,
}

impl Query {
    /// Decodes the raw query.
    pub(crate) fn parse(raw: Option<&str>) -> Result<Self, S3Error> {
        let mut parameters = Vec::new();
        for piece in raw.unwrap_or("").split('&').filter(|piece| !piece.is_empty()) {
            let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
            if parameters.len() == PARAMETERS_MAX {
                return Err(S3Error::invalid_argument("The query has too many parameters.", "query", ""));
            }
            parameters.push(Parameter { name: decode(name)?, value: decode(value)? });
        }
        Ok(Self { parameters })
    }

    /// The first value of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|parameter| parameter.name == name)
            .map(|parameter| parameter.value.as_str())
    }

    /// As [`Self::get`], but an empty value counts as absent: S3 treats most parameters so.
    pub(crate) fn get_set(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Whether `name` stands there, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All parameters in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter()
    }
}

fn decode(text: &str) -> Result<String, S3Error> {
    let spaced = if text.contains('+') { Cow::Owned(text.replace('+', " ")) } else { Cow::Borrowed(text) };
    match percent_decode_str(&spaced).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(S3Error::invalid_uri()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_once_and_takes_plus_for_a_space() {
        let query = Query::parse(Some("prefix=a%2520b+c%2B&&delete&empty=&x=1&x=2&eq=a=b")).unwrap();
        assert_eq!(query.get("prefix"), Some("a%20b c+"));
        assert_eq!(query.get("delete"), Some(""));
        assert_eq!(query.get_set("empty"), None);
        assert_eq!(query.get("x"), Some("1"));
        assert_eq!(query.get("eq"), Some("a=b"));
        assert!(query.has("empty") && !query.has("absent"));
    }

    #[test]
    fn refuses_what_is_not_utf8_or_too_much() {
        assert_eq!(Query::parse(Some("prefix=%ff")).unwrap_err().code, "InvalidURI");
        assert!(Query::parse(Some(&"a&".repeat(PARAMETERS_MAX + 1))).is_err());
        assert_eq!(Query::parse(None).unwrap(), Query::default());
    }
}
