//! A record as one line of JSON: `{"@timestamp":"<RFC 3339>","ipfix":{"<element>":<value>,..}}`.

use std::io::Write as _;

use super::{Family, Field, Value};
use crate::time::Timestamp;

/// A line under construction.
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
    family: Family,
    first: bool,
}

impl<'a> Line<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>, at: Timestamp, family: Family) -> Line<'a> {
        write(out, format_args!("{{\"@timestamp\":\"{}\",\"ipfix\":{{", Rfc3339(at)));
        Line { out, family, first: true }
    }

    pub(super) fn field(&mut self, row: &Field, value: Value<'_>) {
        let comma = if std::mem::take(&mut self.first) { "" } else { "," };
        write(self.out, format_args!("{comma}\"{}\":", row.name(self.family)));
        match value {
            Value::Number(number) => write(self.out, format_args!("{number}")),
            Value::Addr(addr) => write(self.out, format_args!("\"{addr}\"")),
            Value::Text(text) => {
                serde_json::to_writer(&mut *self.out, text).expect("a string is JSON, and a vector takes every byte");
            }
        }
    }

    pub(super) fn end(self) {
        self.out.extend_from_slice(b"}}\n");
    }
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a vector takes every byte");
}

/// A moment in UTC, to the millisecond.
#[derive(Clone, Copy, Debug)]
pub struct Rfc3339(pub Timestamp);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, milliseconds) = (self.0.millis() / 1000, self.0.millis() % 1000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if milliseconds != 0 {
            write!(out, ".{milliseconds:03}")?;
        }
        out.write_str("Z")
    }
}

/// Year, month and day of a day since 1970, in years that begin in March so that a leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339() {
        let text = |milliseconds| Rfc3339(Timestamp::from_millis(milliseconds)).to_string();
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(951_782_399_007), "2000-02-28T23:59:59.007Z");
        assert_eq!(text(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(text(1_604_021_119_000), "2020-10-30T01:25:19Z");
        assert_eq!(text(4_107_542_399_999), "2100-02-28T23:59:59.999Z");
        assert_eq!(text(4_107_542_400_000), "2100-03-01T00:00:00Z");
    }
}
