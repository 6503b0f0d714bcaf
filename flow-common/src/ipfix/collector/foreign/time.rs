//! When a foreign flow began and ended: out of whatever elements its sender has.

use super::{Context, Number, Values};

/// Seconds between 1900, where NTP's first era begins, and 1970.
const NTP_TO_UNIX: u64 = 2_208_988_800;

/// A point of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment {
    /// Milliseconds since 1970.
    pub(super) milliseconds: u64,
    /// Whether the sender told more than seconds.
    is_exact: bool,
}

/// First and last packet.
pub(super) struct Times {
    pub(super) start: Moment,
    pub(super) end: Moment,
}

impl Moment {
    /// The milliseconds, or 0 where only seconds are known.
    pub(super) fn exact(self) -> u64 {
        if self.is_exact { self.milliseconds } else { 0 }
    }

    fn exactly(milliseconds: u64) -> Moment {
        Moment { milliseconds, is_exact: true }
    }

    fn second(seconds: u64) -> Moment {
        Moment { milliseconds: seconds.saturating_mul(1000), is_exact: false }
    }
}

/// The elements that tell one moment, the most exact first.
struct Elements {
    milliseconds: Number,
    ntp: Number,
    delta: Option<Number>,
    uptime: Option<Number>,
    seconds: Number,
}

const START: Elements = Elements {
    milliseconds: Number::StartMilliseconds,
    ntp: Number::StartNtp,
    delta: Some(Number::StartDelta),
    uptime: Some(Number::StartUptime),
    seconds: Number::StartSeconds,
};
const END: Elements = Elements {
    milliseconds: Number::EndMilliseconds,
    ntp: Number::EndNtp,
    delta: Some(Number::EndDelta),
    uptime: Some(Number::EndUptime),
    seconds: Number::EndSeconds,
};
const OBSERVED: Elements = Elements {
    milliseconds: Number::ObservedMilliseconds,
    ntp: Number::ObservedNtp,
    delta: None,
    uptime: None,
    seconds: Number::ObservedSeconds,
};

/// First and last packet of a record; where it does not say, the time of its message.
pub(super) fn times(values: &Values<'_>, context: &Context<'_>) -> Times {
    let duration = duration(values);
    let exported = || moment(values, context, &OBSERVED).unwrap_or(Moment::second(context.header.export_time.into()));
    let before = |end: Moment| Moment { milliseconds: end.milliseconds.saturating_sub(duration), ..end };
    match (moment(values, context, &START), moment(values, context, &END)) {
        (Some(start), Some(end)) => Times { start, end },
        (Some(start), None) if duration != 0 => {
            Times { start, end: Moment { milliseconds: start.milliseconds.saturating_add(duration), ..start } }
        }
        (Some(start), None) => {
            let end = exported();
            Times { start, end: if end.milliseconds < start.milliseconds { start } else { end } }
        }
        (None, Some(end)) => Times { start: before(end), end },
        (None, None) => Times { start: before(exported()), end: exported() },
    }
}

fn moment(values: &Values<'_>, context: &Context<'_>, elements: &Elements) -> Option<Moment> {
    let told = |slot: Number| Some(values.number(slot)).filter(|number| *number != 0);
    let present = |slot: Option<Number>| slot.filter(|slot| values.has(*slot)).map(|slot| values.number(slot));
    let init = told(Number::SystemInit).or(Some(context.system_init).filter(|init| *init != 0));
    let exported = u64::from(context.header.export_time) * 1000;
    told(elements.milliseconds)
        .or_else(|| told(elements.ntp).map(from_ntp))
        .or_else(|| present(elements.delta).map(|delta| exported.saturating_sub(delta / 1000)))
        .or_else(|| Some(init?.saturating_add(present(elements.uptime)?)))
        .map(Moment::exactly)
        .or_else(|| told(elements.seconds).map(Moment::second))
}

/// Milliseconds between first and last packet, where the sender tells them alone, or on a clock of its own.
fn duration(values: &Values<'_>) -> u64 {
    let told = [values.number(Number::DurationMilliseconds), values.number(Number::DurationMicroseconds) / 1000];
    let uptime = values.number(Number::EndUptime).saturating_sub(values.number(Number::StartUptime));
    told.into_iter().find(|duration| *duration != 0).unwrap_or(uptime)
}

/// Milliseconds since 1970 of an NTP time (RFC 7011, section 6.1.9); what lies before 1970 is of the era from 2036 on.
fn from_ntp(ntp: u64) -> u64 {
    let (seconds, fraction) = (ntp >> 32, ntp & u64::from(u32::MAX));
    let seconds = if seconds < NTP_TO_UNIX { seconds + (1 << 32) } else { seconds };
    (seconds - NTP_TO_UNIX) * 1000 + ((fraction * 1000) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ntp_times_are_read_in_both_eras() {
        assert_eq!(from_ntp((NTP_TO_UNIX + 1_700_000_000) << 32 | 0x8000_0000), 1_700_000_000_500);
        assert_eq!(from_ntp(0x0000_0001_0000_0000), 2_085_978_497_000);
    }
}
