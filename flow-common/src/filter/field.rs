//! The fields, their values' names, and what to say of a name that is no field.

use super::Side;
use super::error::{Code, Mistake};
use crate::config::nearest;

/// What a condition can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// `src` or `dst` alone: address or name of an end.
    End,
    /// A bare word: any name or address.
    Anything,
    Ip,
    Port,
    Protocol,
    Pod,
    Namespace,
    Node,
    Service,
    External,
    Verdict,
    Type,
    Kind,
    State,
    Reason,
    Flags,
    Bytes,
    Packets,
    Rate,
    Duration,
    Icmp,
}

/// How a field's values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Names, with globs and regular expressions.
    Name,
    /// Addresses and networks, with globs and regular expressions on their text.
    Addr,
    /// Either of the two.
    AddrOrName,
    /// A number in this range, with units.
    Number(Units),
    /// IP protocols by name or number.
    Protocol,
    /// Some names alone.
    Choice(&'static [Choice]),
    /// Names of TCP states, with globs.
    State,
    /// TCP flags.
    Flags,
    /// ICMP types and codes.
    Icmp,
}

/// What may follow a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Units {
    /// Nothing; at most 65,535.
    Port,
    None,
    Bytes,
    Rate,
    Duration,
}

/// A value that has a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) name: &'static str,
    /// The field's numbers that it stands for.
    pub(super) numbers: &'static [u8],
}

/// A row of the table of fields.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) field: Field,
    pub(super) name: &'static str,
    pub(super) form: Form,
    /// Whether each end has its own.
    pub(super) sided: bool,
    /// Whether some flows have it and others do not.
    pub(super) optional: bool,
}

const fn choice(name: &'static str, numbers: &'static [u8]) -> Choice {
    Choice { name, numbers }
}

const VERDICTS: &[Choice] = &[
    choice("allowed", &[64]),
    choice("dropped", &[130]),
    choice("rejected", &[129]),
    choice("denied", &[129, 130]),
    choice("failed", &[128]),
];
const TYPES: &[Choice] =
    &[choice("intra", &[1]), choice("inter", &[2]), choice("to-external", &[3]), choice("from-external", &[4])];
/// The numbers are [`super::EndKind`]'s.
const KINDS: &[Choice] = &[choice("pod", &[0]), choice("node", &[1]), choice("external", &[2])];
const REASONS: &[Choice] = &[
    choice("idle", &[1]),
    choice("active", &[2]),
    choice("end", &[3]),
    choice("forced", &[4]),
    choice("resources", &[5]),
];

const fn row(field: Field, name: &'static str, form: Form, sided: bool, optional: bool) -> Row {
    Row { field, name, form, sided, optional }
}

const TABLE: &[Row] = &[
    row(Field::Ip, "ip", Form::Addr, true, false),
    row(Field::Port, "port", Form::Number(Units::Port), true, true),
    row(Field::Protocol, "proto", Form::Protocol, false, false),
    row(Field::Pod, "pod", Form::Name, true, true),
    row(Field::Namespace, "ns", Form::Name, true, true),
    row(Field::Node, "node", Form::Name, true, true),
    row(Field::Service, "service", Form::Name, false, true),
    row(Field::External, "external", Form::Addr, true, true),
    row(Field::Verdict, "verdict", Form::Choice(VERDICTS), false, true),
    row(Field::Type, "type", Form::Choice(TYPES), false, false),
    row(Field::Kind, "kind", Form::Choice(KINDS), true, false),
    row(Field::State, "state", Form::State, false, true),
    row(Field::Reason, "reason", Form::Choice(REASONS), false, false),
    row(Field::Flags, "flags", Form::Flags, true, true),
    row(Field::Bytes, "bytes", Form::Number(Units::Bytes), true, false),
    row(Field::Packets, "packets", Form::Number(Units::None), true, false),
    row(Field::Rate, "rate", Form::Number(Units::Rate), true, false),
    row(Field::Duration, "duration", Form::Number(Units::Duration), false, false),
    row(Field::Icmp, "icmp", Form::Icmp, false, true),
];

/// `src` and `dst`, which are not in the table because they are sides as well.
const END: Row = row(Field::End, "", Form::AddrOrName, true, false);
const ANYTHING: Row = row(Field::Anything, "", Form::Name, false, false);

/// What other tools call the fields.
const ALIASES: &[(&str, &str)] = &[
    ("namespace", "ns"),
    ("protocol", "proto"),
    ("svc", "service"),
    ("address", "ip"),
    ("addr", "ip"),
    ("host", "ip"),
    ("source", "src"),
    ("from", "src"),
    ("destination", "dst"),
    ("to", "dst"),
    ("srcip", "src.ip"),
    ("dstip", "dst.ip"),
    ("srcport", "src.port"),
    ("sport", "src.port"),
    ("dstport", "dst.port"),
    ("dport", "dst.port"),
    ("throughput", "rate"),
];

/// Fields of the language that need what no record carries yet. To know none of them is better than to find nothing.
const NOT_RECORDED: &[&str] =
    &["workload", "label", "policy", "rule", "direction", "http", "halves", "certainty", "interface"];

impl Field {
    pub(super) fn row(self) -> &'static Row {
        match self {
            Self::End => &END,
            Self::Anything => &ANYTHING,
            _ => TABLE.iter().find(|row| row.field == self).unwrap_or(&ANYTHING),
        }
    }

    /// Its name with a side, as filters have it.
    pub(super) fn name(self, side: Option<Side>) -> String {
        match (side, self.row().name) {
            (None, name) => name.to_owned(),
            (Some(side), "") => side.name().to_owned(),
            (Some(side), name) => format!("{}.{name}", side.name()),
        }
    }
}

impl Side {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Source => "src",
            Self::Destination => "dst",
        }
    }
}

/// The field that a word names; none if it is no name of a field at all.
pub(super) fn named(word: &str) -> Option<(Option<Side>, Field)> {
    let word = word.to_ascii_lowercase();
    let side_of = |name: &str| Side::BOTH.into_iter().find(|side| side.name() == name);
    if let Some(side) = side_of(&word) {
        return Some((Some(side), Field::End));
    }
    let (side, name) = match word.split_once('.') {
        Some((side, name)) => (Some(side_of(side)?), name),
        None => (None, &*word),
    };
    let row = TABLE.iter().find(|row| row.name == name)?;
    Some((side, row.field))
}

/// Refuses a side where the field has none. A Service is the destination's alone, so `dst.service` is `service`.
pub(super) fn check_side(
    side: Option<Side>,
    field: Field,
    bytes: std::ops::Range<usize>,
) -> Result<Option<Side>, Mistake> {
    match side {
        Some(Side::Destination) if field == Field::Service => Ok(None),
        Some(_) if !field.row().sided => {
            let name = field.row().name;
            Err(Mistake::new(Code::NoSuchSide, bytes).hint(format!("write \"{name}\"")).expected([name]))
        }
        _ => Ok(side),
    }
}

/// The mistake of a word that stands where a field's name is wanted.
pub(super) fn unknown(word: &str, bytes: std::ops::Range<usize>) -> Mistake {
    let mistake = Mistake::new(Code::UnknownField, bytes).expected(names());
    let lower = word.to_ascii_lowercase();
    let plain = lower.strip_prefix("src.").or_else(|| lower.strip_prefix("dst.")).unwrap_or(&lower);
    let family = plain.split('.').next().unwrap_or(plain);
    if NOT_RECORDED.contains(&family) {
        return mistake.hint(format!("flow records do not tell \"{family}\" yet"));
    }
    if let Some((_, name)) = ALIASES.iter().find(|(alias, _)| *alias == plain) {
        return mistake.hint(format!("did you mean \"{name}\"?"));
    }
    // Of three letters everything is near.
    match nearest(plain, TABLE.iter().map(|row| row.name)).filter(|_| plain.len() > 3) {
        Some(name) => {
            let side = lower.strip_suffix(plain).unwrap_or_default();
            mistake.hint(format!("did you mean \"{side}{name}\"?"))
        }
        None => mistake.hint(format!("the fields are {}", names().collect::<Vec<_>>().join(", "))),
    }
}

/// All names that can stand without a side, and the two sides.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ["src", "dst"].into_iter().chain(TABLE.iter().map(|row| row.name))
}

/// All names that can stand behind `src.` and `dst.`.
pub(super) fn sided_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(|row| row.sided).map(|row| row.name)
}
