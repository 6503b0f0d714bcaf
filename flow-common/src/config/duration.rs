//! Durations as people write them: "500ms", "5s", "1m30s". Takes text, gives a `Duration`, and back.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Nothing there.
    #[error("a duration is wanted, such as \"5s\" or \"1m30s\"")]
    Empty,
    /// A number alone.
    #[error("\"{0}\" has no unit; write \"{0}s\" for seconds (units: ns, us, ms, s, m, h)")]
    NoUnit(String),
    /// A unit that does not exist.
    #[error("\"{0}\" is no unit of time; the units are ns, us, ms, s, m and h")]
    UnknownUnit(String),
    /// No number before the unit.
    #[error("\"{0}\" is no duration; write a number and a unit, such as \"5s\" or \"1m30s\"")]
    NoNumber(String),
    /// More than 64 bits of nanoseconds.
    #[error("\"{0}\" is longer than 584 years")]
    TooLong(String),
}

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads numbers with units, as many as there are: "1h2m3.5s".
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let number = leading(rest, |c| c.is_ascii_digit() || c == '.');
        let after = rest.strip_prefix(number).unwrap_or(rest);
        let unit = leading(after, |c| !c.is_ascii_digit() && c != '.');
        if number.is_empty() {
            return Err(DurationError::NoNumber(text.to_owned()));
        }
        if unit.is_empty() {
            return Err(DurationError::NoUnit(text.to_owned()));
        }
        let (_, scale) =
            UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| DurationError::UnknownUnit(unit.to_owned()))?;
        let part = scaled(number, *scale).ok_or_else(|| match number.matches('.').count() {
            0 | 1 => DurationError::TooLong(text.to_owned()),
            _ => DurationError::NoNumber(text.to_owned()),
        })?;
        total = total.checked_add(part).ok_or_else(|| DurationError::TooLong(text.to_owned()))?;
        rest = after.strip_prefix(unit).unwrap_or_default();
    }
    Ok(Duration::from_nanos(total))
}

/// The shortest text that [`parse_duration`] reads back to the same value.
pub fn print_duration(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let (hours, minutes) = (nanos / 3_600_000_000_000, nanos / 60_000_000_000 % 60);
    let below = nanos % 60_000_000_000;
    let mut text = String::new();
    for (count, unit) in [(hours, "h"), (minutes, "m")] {
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    match below {
        0 if text.is_empty() => text.push_str("0s"),
        0 => {}
        _ if below % 1_000_000_000 == 0 => text.push_str(&format!("{}s", below / 1_000_000_000)),
        _ if below % 1_000_000 == 0 => text.push_str(&format!("{}ms", below / 1_000_000)),
        _ if below % 1_000 == 0 => text.push_str(&format!("{}us", below / 1_000)),
        _ => text.push_str(&format!("{below}ns")),
    }
    text
}

fn leading(text: &str, wanted: impl Fn(char) -> bool) -> &str {
    let end = text.find(|c| !wanted(c)).unwrap_or(text.len());
    text.split_at(end).0
}

/// A decimal number times `scale`, cut at a nanosecond; `None` if it is no number or too large.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut total = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.checked_mul(scale)? };
    let mut place = scale;
    for digit in fraction.chars() {
        place /= 10;
        total = total.checked_add(place.checked_mul(u64::from(digit.to_digit(10)?))?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn printed_durations_read_back(nanos in any::<u64>()) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&print_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_duration(&text);
        }
    }

    #[test]
    fn units_add_up_and_fractions_count() {
        for (text, millis) in [("500ms", 500), ("1m30s", 90_000), ("1.5h", 5_400_000), (".5s", 500), ("0", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(print_duration(Duration::from_secs(5_400)), "1h30m");
    }

    #[test]
    fn faults_say_what_to_write() {
        let said = |text: &str| parse_duration(text).unwrap_err().to_string();
        assert_eq!(said("5"), "\"5\" has no unit; write \"5s\" for seconds (units: ns, us, ms, s, m, h)");
        assert_eq!(said("5 s"), "\" s\" is no unit of time; the units are ns, us, ms, s, m and h");
        assert_eq!(said("5d"), "\"d\" is no unit of time; the units are ns, us, ms, s, m and h");
        assert_eq!(said("soon"), "\"soon\" is no duration; write a number and a unit, such as \"5s\" or \"1m30s\"");
        assert_eq!(said("1.2.3s"), "\"1.2.3s\" is no duration; write a number and a unit, such as \"5s\" or \"1m30s\"");
        assert_eq!(said("99999999999h"), "\"99999999999h\" is longer than 584 years");
    }
}
