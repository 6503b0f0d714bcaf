//! Numbers with units.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use super::error::{Code, Mistake};
use super::field::Units;
use crate::config::{DurationError, parse_duration, print_duration};

const BYTES: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
];
const RATES: &[(&str, u64)] =
    &[("bit/s", 1), ("kbit/s", 1_000), ("Mbit/s", 1_000_000), ("Gbit/s", 1_000_000_000), ("Tbit/s", 1_000_000_000_000)];
const DURATIONS: &[(&str, u64)] = &[("ns", 1), ("us", 1), ("µs", 1), ("ms", 1), ("s", 1), ("m", 1), ("h", 1)];

/// Ports that people know by name, for hints.
const PORTS: &[(&str, u16)] = &[
    ("ftp", 21),
    ("ssh", 22),
    ("smtp", 25),
    ("dns", 53),
    ("domain", 53),
    ("http", 80),
    ("kerberos", 88),
    ("ntp", 123),
    ("snmp", 161),
    ("ldap", 389),
    ("https", 443),
    ("syslog", 514),
    ("ldaps", 636),
    ("etcd", 2379),
    ("mysql", 3306),
    ("rdp", 3389),
    ("ipfix", 4739),
    ("postgres", 5432),
    ("postgresql", 5432),
    ("redis", 6379),
    ("kafka", 9092),
    ("kubelet", 10250),
    ("mongodb", 27017),
];

impl Units {
    /// The units and how many of the field's own they are; durations have theirs in another place.
    fn table(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Port | Self::None => &[],
            Self::Bytes => BYTES,
            Self::Rate => RATES,
            Self::Duration => DURATIONS,
        }
    }

    /// Their names.
    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        self.table().iter().map(|(name, _)| *name)
    }
}

/// Reads a number with what may follow it.
pub(super) fn parse(text: &str, units: Units, bytes: &Range<usize>) -> Result<u64, Mistake> {
    let wrong = |code| Mistake::new(code, bytes.clone()).expected(["number"]);
    match units {
        Units::Duration => parse_duration(text).map(nanos).map_err(|error| match error {
            DurationError::UnknownUnit(_) => wrong(Code::UnknownUnit).hint(error.to_string()),
            _ => wrong(Code::NotANumber).hint(error.to_string()),
        }),
        Units::Port => match text.parse::<u16>() {
            Ok(port) if plain(text) => Ok(port.into()),
            _ => Err(wrong(Code::NotANumber).hint(port_hint(text))),
        },
        Units::None | Units::Bytes | Units::Rate => {
            let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
            let (number, unit) = text.split_at(split);
            let scale = match units.table().iter().find(|(name, _)| *name == unit) {
                Some((_, scale)) => *scale,
                None if unit.is_empty() => 1,
                None if number.is_empty() => return Err(wrong(Code::NotANumber)),
                None => return Err(unknown_unit(unit, units, bytes)),
            };
            scaled(number, scale).ok_or_else(|| wrong(Code::NotANumber).hint("it must be a whole number below 2^64"))
        }
    }
}

/// Writes a number with the largest unit of which it is a whole multiple.
pub(super) fn print(number: u64, units: Units, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if units == Units::Duration {
        return f.write_str(&print_duration(Duration::from_nanos(number)));
    }
    let whole = |(_, scale): &&(&str, u64)| number != 0 && number.is_multiple_of(*scale) && *scale > 1;
    match units.table().iter().rev().find(whole) {
        Some((unit, scale)) => write!(f, "{}{unit}", number / scale),
        None => write!(f, "{number}"),
    }
}

fn unknown_unit(unit: &str, units: Units, bytes: &Range<usize>) -> Mistake {
    let mistake = Mistake::new(Code::UnknownUnit, bytes.clone()).expected(units.names());
    match units.names().find(|name| name.eq_ignore_ascii_case(unit)) {
        Some(name) => mistake.hint(format!("did you mean \"{name}\"?")),
        None if units == Units::None => mistake.hint("this field takes a number alone"),
        None => mistake.hint(format!("the units are {}", units.names().collect::<Vec<_>>().join(", "))),
    }
}

fn port_hint(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    match PORTS.iter().find(|(name, _)| *name == lower) {
        Some((_, port)) => format!("\"{text}\" is {port}"),
        None => "ports are 0 to 65535".to_owned(),
    }
}

fn plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `number` (digits, perhaps with a point) times `scale`, if that is a whole number of 64 bits.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 18 || !plain(whole) || !plain(fraction) {
        return None;
    }
    let divisor = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction = fraction.parse::<u128>().ok()? * u128::from(scale);
    if !fraction.is_multiple_of(divisor) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    whole.checked_add(u64::try_from(fraction / divisor).ok()?)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
