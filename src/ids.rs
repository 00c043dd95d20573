//! Names of things, as types: a bare `u64` crosses no module boundary.

use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A member of the cluster. Given by the cluster, counted from 1, never reused.
    NodeId
}
id! {
    /// A cluster. Drawn once when it is founded; 0 is no cluster.
    ClusterId
}
id! {
    /// A Raft term (Raft paper, §5.1). 0 is before the first.
    Term
}
id! {
    /// A position in the Raft log. The first entry is 1; 0 is before it.
    Index
}
id! {
    /// How often this member has started, counted from 1 and made durable before the node speaks. Tells the answers
    /// meant for an earlier life from those meant for this one.
    Incarnation
}
id! {
    /// A client session, see [`crate::state::session`]. Counted from 1 by the replicated state, never reused.
    SessionId
}
id! {
    /// A request within a session, counted from 1 by the client.
    Seq
}
id! {
    /// A task. Counted from 1 by the replicated state, never reused.
    TaskId
}
id! {
    /// An attempt to run a task, and its fencing token. Counted over all tasks from 1 by the replicated state, so a later
    /// attempt has a greater one.
    Token
}
id! {
    /// A version of the key-value store: it grows by one with every change.
    Revision
}

/// A lease on keys. Chosen by who grants it; 0 is no lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// Hexadecimal digits, as etcd's clients show it.
impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{:x}", self.0.unsigned_abs())
    }
}

impl FromStr for LeaseId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match i64::from_str_radix(text, 16) {
            Ok(id) if id != 0 && !text.starts_with('+') => Ok(Self(id)),
            _ => Err(format!("{text:?} is no lease: up to 16 hexadecimal digits, at most 7fffffffffffffff, and not 0")),
        }
    }
}

impl Index {
    /// The index after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl ClusterId {
    /// The id as 16 hexadecimal digits, the form in which people see it.
    pub fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// A `host:port` pair. The host is a name, an IPv4 address or a bracketed IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    text: String,
    colon: usize,
}

/// An address that is not `host:port`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("address {text:?}: {why}; expected host:port, for example 127.0.0.1:7400 or [::1]:7400")]
pub struct AddressError {
    text: String,
    why: &'static str,
}

impl Address {
    /// The host, without brackets.
    pub fn host(&self) -> &str {
        self.text[..self.colon].trim_start_matches('[').trim_end_matches(']')
    }

    /// The port; 0 asks the system for a free one.
    pub fn port(&self) -> u16 {
        self.text[self.colon + 1..].parse().expect("checked when the address was made")
    }

    /// The whole as `host:port`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The same host with another port.
    pub fn with_port(&self, port: u16) -> Self {
        Self { text: format!("{}:{port}", &self.text[..self.colon]), colon: self.colon }
    }

    /// Whether it stands for all addresses of a machine: one can listen there, not connect.
    pub fn is_unspecified(&self) -> bool {
        self.host().parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    /// Whether only this machine can reach the address.
    pub fn is_loopback(&self) -> bool {
        match self.host().parse::<std::net::IpAddr>() {
            Ok(ip) => ip.is_loopback(),
            Err(_) => self.host() == "localhost",
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = |why| AddressError { text: text.to_owned(), why };
        if text.contains("://") {
            return Err(bad("it is HOST:PORT alone, without what comes before \"://\" and with it"));
        }
        let colon = text.rfind(':').ok_or(bad("no port"))?;
        let (host, port) = (&text[..colon], &text[colon + 1..]);
        if port.parse::<u16>().is_err() || port.starts_with('+') {
            return Err(bad("the port is not a number from 0 to 65535"));
        }
        let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
        if host.is_empty() {
            return Err(bad("no host"));
        }
        if host.contains(':') && !bracketed {
            return Err(bad("an IPv6 host needs brackets"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !bracketed && !host.chars().all(plain) {
            return Err(bad("the host has a character that no host name has"));
        }
        if bracketed && host[1..host.len() - 1].parse::<std::net::Ipv6Addr>().is_err() {
            return Err(bad("the brackets hold no IPv6 address"));
        }
        Ok(Self { text: text.to_owned(), colon })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_read_as_they_are_shown() {
        for (id, text) in [(1, "1"), (i64::MAX, "7fffffffffffffff"), (-1, "-1"), (0x694d, "694d")] {
            assert_eq!((LeaseId(id).to_string(), text.parse()), (text.to_owned(), Ok(LeaseId(id))));
        }
        for text in ["", "0", "+1", "g", "8000000000000000"] {
            assert!(text.parse::<LeaseId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses() {
        let good = ["127.0.0.1:7400", "[::1]:1", "node-1.example:0", "localhost:65535"];
        for text in good {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.as_str(), text);
        }
        for text in ["", "host", ":1", "host:", "host:65536", "::1:7400", "[]:1", "[x]:1", "a b:1", "host:+1"] {
            assert!(text.parse::<Address>().is_err(), "{text:?} was taken");
        }
        let address: Address = "[::1]:7400".parse().unwrap();
        assert_eq!((address.host(), address.port(), address.is_loopback()), ("::1", 7400, true));
        assert_eq!(address.with_port(9).as_str(), "[::1]:9");
        assert!(!"10.0.0.1:1".parse::<Address>().unwrap().is_loopback());
    }
}
