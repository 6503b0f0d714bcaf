//! Values: from a word or a quoted text to what a field is compared with.

use std::net::IpAddr;
use std::ops::Range;

use regex::RegexBuilder;

use super::error::{Code, Mistake};
use super::expression::{Pattern, Value};
use super::field::{Choice, Field, Form, Units};
use super::number;
use crate::cidr::{Cidr, CidrError};
use crate::config::nearest;

/// A compiled regular expression may take this much memory.
const REGEX_BYTES: usize = 256 * 1024;

/// Verdicts of the language that need policies, which no record carries yet.
const NOT_RECORDED: [&str; 2] = ["isolated", "unprotected"];

/// The TCP states of the records.
pub(super) const STATES: [&str; 11] = [
    "LISTEN",
    "SYN-SENT",
    "SYN-RECEIVED",
    "ESTABLISHED",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "CLOSE-WAIT",
    "CLOSING",
    "LAST-ACK",
    "TIME-WAIT",
    "CLOSED",
];

/// TCP flags from the lowest bit on.
pub(super) const FLAGS: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];

/// IP protocols that have a name here.
pub(super) const PROTOCOLS: [(&str, u8); 13] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("ospf", 89),
    ("sctp", 132),
    ("udplite", 136),
];

/// A protocol's name, where it has one.
pub fn protocol_name(number: u8) -> Option<&'static str> {
    PROTOCOLS.iter().find(|(_, protocol)| *protocol == number).map(|(name, _)| *name)
}

/// A value as it was written.
#[derive(Clone, Debug)]
pub(super) struct Written<'a> {
    pub(super) text: &'a str,
    pub(super) quoted: bool,
    pub(super) bytes: Range<usize>,
}

/// The value that a field is compared with by `=`.
pub(super) fn parse(field: Field, written: &Written<'_>) -> Result<Value, Mistake> {
    let bytes = &written.bytes;
    match field.row().form {
        Form::Name => Ok(text(written)),
        Form::Addr => match address(written)? {
            Some(value) => Ok(value),
            None if is_glob(written) => Ok(text(written)),
            None => Err(Mistake::new(Code::NotAnAddress, bytes.clone()).expected(["address", "network"])),
        },
        Form::AddrOrName => Ok(address(written)?.unwrap_or_else(|| text(written))),
        Form::Number(units) => number::parse(written.text, units, bytes).map(Value::Number),
        Form::Protocol => protocol(written),
        Form::Choice(choices) => one_of(choices, written),
        Form::State => state(written),
        Form::Flags => flags(written),
        Form::Icmp => icmp(written),
    }
}

/// A number that a field is compared with by `<` and the like.
pub(super) fn parse_number(units: Units, written: &Written<'_>) -> Result<u64, Mistake> {
    number::parse(written.text, units, &written.bytes)
}

/// A regular expression.
pub(super) fn parse_regex(written: &Written<'_>) -> Result<Pattern, Mistake> {
    let regex =
        RegexBuilder::new(written.text).size_limit(REGEX_BYTES).dfa_size_limit(REGEX_BYTES).nest_limit(64).build();
    regex.map(Pattern).map_err(|error| {
        // The last line of a syntax error says what it is; those before it draw where.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Mistake::new(Code::BadRegex, written.bytes.clone()).hint(reason)
    })
}

/// What a bare word stands for: `:443` a port, an address or network an end's address, anything else some name or
/// address.
pub(super) fn bare(written: &Written<'_>) -> Result<(Field, Value), Mistake> {
    if !written.quoted {
        if let Some(port) = written.text.strip_prefix(':').filter(|rest| !rest.starts_with(':')) {
            let bytes = written.bytes.start + 1..written.bytes.end;
            return Ok((Field::Port, Value::Number(number::parse(port, Units::Port, &bytes)?)));
        }
        if let Some(value) = address(written)? {
            return Ok((Field::Ip, value));
        }
    }
    Ok((Field::Anything, text(written)))
}

/// Whether `word` unquoted is no plain text for [`bare`].
pub(super) fn is_special_bare(word: &str) -> bool {
    word.starts_with(':')
        || word.parse::<IpAddr>().is_ok()
        || word.split_once('/').is_some_and(|(addr, _)| addr.parse::<IpAddr>().is_ok())
}

fn is_glob(written: &Written<'_>) -> bool {
    !written.quoted && written.text.contains('*')
}

fn text(written: &Written<'_>) -> Value {
    if is_glob(written) { Value::Glob(written.text.into()) } else { Value::Text(written.text.into()) }
}

/// The address or network that is written; none if it is neither, an error if it is a network whose prefix is wrong.
fn address(written: &Written<'_>) -> Result<Option<Value>, Mistake> {
    if let Ok(addr) = written.text.parse::<IpAddr>() {
        return Ok(Some(Value::Addr(addr.to_canonical())));
    }
    match written.text.parse::<Cidr>() {
        Ok(network) if network.is_one_address() => Ok(Some(Value::Addr(network.addr().to_canonical()))),
        Ok(network) => Ok(Some(Value::Network(network))),
        Err(error @ CidrError::Prefix(_)) => {
            Err(Mistake::new(Code::NotAnAddress, written.bytes.clone()).hint(error.to_string()))
        }
        Err(_) => Ok(None),
    }
}

fn protocol(written: &Written<'_>) -> Result<Value, Mistake> {
    let name = written.text.to_ascii_lowercase();
    let known = PROTOCOLS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = known.or_else(|| name.parse().ok().filter(|_| name.bytes().all(|byte| byte.is_ascii_digit())));
    number
        .map(|number: u8| Value::Number(number.into()))
        .ok_or_else(|| unknown(written, PROTOCOLS.iter().map(|(name, _)| *name)))
}

fn one_of(choices: &'static [Choice], written: &Written<'_>) -> Result<Value, Mistake> {
    let choice = choices.iter().find(|choice| choice.name.eq_ignore_ascii_case(written.text));
    choice.map(Value::Choice).ok_or_else(|| unknown(written, choices.iter().map(|choice| choice.name)))
}

fn state(written: &Written<'_>) -> Result<Value, Mistake> {
    if is_glob(written) {
        return Ok(Value::Glob(written.text.to_ascii_uppercase().into()));
    }
    let state = STATES.iter().find(|state| state.eq_ignore_ascii_case(written.text));
    state.map(|state| Value::Text((*state).into())).ok_or_else(|| unknown(written, STATES))
}

fn flags(written: &Written<'_>) -> Result<Value, Mistake> {
    let mut flags = 0;
    for name in written.text.split('+') {
        let bit = FLAGS.iter().position(|flag| flag.eq_ignore_ascii_case(name));
        flags |= 1 << bit.ok_or_else(|| unknown(written, FLAGS))?;
    }
    Ok(Value::Flags(flags))
}

fn icmp(written: &Written<'_>) -> Result<Value, Mistake> {
    let number = |text: &str| text.parse().ok().filter(|_: &u8| text.bytes().all(|byte| byte.is_ascii_digit()));
    let value = match written.text.split_once('/') {
        Some((kind, code)) => number(kind).zip(number(code)).map(|(kind, code)| Value::Icmp(kind, Some(code))),
        None => number(written.text).map(|kind| Value::Icmp(kind, None)),
    };
    value.ok_or_else(|| {
        let hint = "write the type (8 is a ping) or type/code (3/1 is host unreachable)";
        Mistake::new(Code::NotANumber, written.bytes.clone()).expected(["type", "type/code"]).hint(hint)
    })
}

fn unknown(written: &Written<'_>, names: impl IntoIterator<Item = &'static str> + Clone) -> Mistake {
    let mistake = Mistake::new(Code::UnknownValue, written.bytes.clone()).expected(names.clone());
    let lower = written.text.to_ascii_lowercase();
    if NOT_RECORDED.contains(&&*lower) {
        return mistake.hint(format!("flow records do not tell \"{lower}\" yet"));
    }
    let begins =
        |name: &&str| name.to_ascii_lowercase().starts_with(&lower) || lower.starts_with(&name.to_ascii_lowercase());
    let near = names.clone().into_iter().find(begins).or_else(|| nearest(written.text, names.clone()));
    match near.filter(|_| written.text.len() > 2) {
        Some(name) => mistake.hint(format!("did you mean \"{name}\"?")),
        None => mistake.hint(format!("the values are {}", names.into_iter().collect::<Vec<_>>().join(", "))),
    }
}
