//! Amounts as people write them.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

use crate::controller::History;
use crate::error::{Context, Fault};
use crate::ids::NodeId;
use crate::limits::LEASE_TTL_MAX;

/// An amount in a file: a text as on the command line, or a bare number.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Amount {
    /// `2`
    Whole(u64),
    /// `0.5`
    Fraction(f64),
    /// `"500m"`
    Text(String),
}

impl Amount {
    /// What stands under `key`, if anything does.
    ///
    /// # Errors
    /// It is no such amount.
    pub fn read<T>(key: &str, amount: Option<&Self>, parse: fn(&str) -> Result<T, String>) -> Result<Option<T>, Fault> {
        let text = |amount: &Self| match amount {
            Self::Whole(number) => number.to_string(),
            Self::Fraction(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        };
        amount.map(|amount| parse(&text(amount))).transpose().context(|| format!("read {key}"))
    }
}

/// Processors: `2`, `0.5` or `500m`, in thousandths.
pub fn cpu(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None => {
            text.parse::<f64>().ok().filter(|cpus| (0.0..1e6).contains(cpus)).map(|cpus| (cpus * 1000.0).round() as u64)
        }
    };
    parsed.ok_or_else(|| format!("{text:?} is no number of processors: write 2, 0.5 or 500m"))
}

/// Bytes: `1048576`, `64Mi`, `2Gi`, `512Ki` or `1Ti`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    let parsed = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(1 << shift));
    parsed.ok_or_else(|| format!("{text:?} is no number of bytes: write 1048576, 64Mi or 2Gi"))
}

/// A span: `250ms`, `30s`, `5m` or `2h`; a bare number is seconds.
pub fn span(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let unit = units.iter().find_map(|(unit, millis)| Some((text.strip_suffix(unit)?, *millis)));
    let (digits, millis) = unit.unwrap_or((text, 1_000));
    let parsed = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(millis)).filter(|millis| *millis > 0);
    parsed
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is no span of time above zero: write 250ms, 30s, 5m or 2h"))
}

/// A whole number of `what` within its bounds.
pub fn whole<T: TryFrom<u64>>(
    what: &'static str,
    bounds: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        let (from, to) = (bounds.start(), bounds.end());
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| format!("{text:?} is no {what}: a whole number from {from} to {to}"))
    }
}

/// A revision of the store.
pub fn revision(text: &str) -> Result<i64, String> {
    whole("revision", 0..=i64::MAX.cast_unsigned())(text)
}

/// The id of a member or a worker.
pub fn member(text: &str) -> Result<NodeId, String> {
    whole("id of a member", 1..=u64::MAX)(text).map(NodeId)
}

/// How long a lease lasts: a span of whole seconds, no shorter than `least`.
pub fn ttl(least: Duration) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let given = span(text).ok().filter(|ttl| ttl.subsec_nanos() == 0 && (least..=LEASE_TTL_MAX).contains(ttl));
        let (from, to) = (least.as_secs(), LEASE_TTL_MAX.as_secs());
        given.ok_or_else(|| {
            format!(
                "{text:?} is no time for a lease: write 60, 90s, 5m or 2h; from {from} to {to} seconds, and whole ones"
            )
        })
    }
}

/// What keys may take: an amount of bytes above zero, or `none` for any.
pub fn quota(text: &str) -> Result<u64, String> {
    match (text, bytes(text)) {
        ("none", _) => Ok(u64::MAX),
        (_, Ok(0)) => Err("0 bytes would let nobody put anything: write 2Gi, or none for no bound".into()),
        (_, amount) => amount,
    }
}

/// How much of the past is kept: `all`, `10000` revisions, or `24h`.
pub fn history(text: &str) -> Result<History, String> {
    // None at all is more likely meant as etcd means it, as all.
    let revisions = || text.parse().ok().filter(|count| *count > 0).map(History::Revisions);
    let age = || span(text).ok().map(History::Age);
    let all = (text == "all").then_some(History::All);
    all.or_else(revisions)
        .or_else(age)
        .ok_or_else(|| format!("{text:?} says not how much of the past is kept: write all, 10000 (revisions) or 24h"))
}

/// Bytes for people to read.
pub fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes}"),
        1024..1_048_576 => format!("{}Ki", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{}Mi", bytes >> 20),
        _ => format!("{:.1}Gi", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        assert_eq!((cpu("2"), cpu("0.5"), cpu("250m")), (Ok(2000), Ok(500), Ok(250)));
        assert_eq!((bytes("7"), bytes("64Mi"), bytes("1Ti")), (Ok(7), Ok(64 << 20), Ok(1 << 40)));
        assert_eq!((span("9"), span("250ms")), (Ok(Duration::from_secs(9)), Ok(Duration::from_millis(250))));
        assert_eq!((span("5m"), span("2h")), (Ok(Duration::from_secs(300)), Ok(Duration::from_secs(7200))));
        assert!(span("0s").is_err());
        for text in ["", "m", "x", "-1", "1e400", "1.5.2"] {
            assert!(cpu(text).is_err() && bytes(text).is_err() && span(text).is_err(), "{text:?}");
        }
        assert!(bytes("99999999Ti").is_err(), "more than there can be");
        assert_eq!((quota("none"), quota("1Ki")), (Ok(u64::MAX), Ok(1024)));
        assert!(quota("0").is_err() && quota("0Mi").is_err() && quota("much").is_err());
        assert_eq!((history("all"), history("500")), (Ok(History::All), Ok(History::Revisions(500))));
        assert_eq!(history("24h"), Ok(History::Age(Duration::from_secs(86_400))));
        assert_eq!((revision("0"), member("7")), (Ok(0), Ok(NodeId(7))));
        assert!(revision("9223372036854775808").unwrap_err().ends_with("from 0 to 9223372036854775807"));
        assert!(revision("-1").is_err() && revision("x").is_err() && member("0").is_err());
        assert!(whole::<u8>("port", 0..=1000)("256").is_err(), "it has no room");
        let lease = ttl(Duration::from_secs(2));
        assert_eq!((lease("60"), lease("5m")), (Ok(Duration::from_secs(60)), Ok(Duration::from_secs(300))));
        assert!(lease("1").is_err() && lease("2500ms").is_err() && lease("9000000001").is_err());
        assert!(history("0").is_err() && history("0s").is_err() && history("a day").is_err());
    }
}
