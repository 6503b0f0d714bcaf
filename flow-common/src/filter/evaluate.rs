//! Whether a filter holds. Allocates nothing: what must be text is written into a buffer on the stack.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use super::expression::{Condition, Expression, Pattern, Test, Value};
use super::field::Field;
use super::{EndKind, Side, Subject};

pub(super) fn holds<S: Subject>(expression: &Expression, subject: &S) -> bool {
    match expression {
        Expression::All(parts) => parts.iter().all(|part| holds(part, subject)),
        Expression::Any(parts) => parts.iter().any(|part| holds(part, subject)),
        Expression::Not(part) => !holds(part, subject),
        Expression::Test(test) => test_holds(test, subject),
    }
}

fn test_holds<S: Subject>(test: &Test, subject: &S) -> bool {
    if let Some(whole) = whole_flow(test, subject) {
        return whole;
    }
    match test.side {
        Some(side) => end_holds(test, side, subject),
        None => Side::BOTH.into_iter().any(|side| end_holds(test, side, subject)),
    }
}

/// For conditions on the flow as a whole: whether it holds. Amounts without a side are those of both directions
/// together.
fn whole_flow<S: Subject>(test: &Test, subject: &S) -> Option<bool> {
    let Test { side, field, condition } = test;
    let amount = |of: fn(&S, Side) -> u64| match side {
        Some(side) => of(subject, *side),
        None => Side::BOTH.into_iter().fold(0, |sum: u64, side| sum.saturating_add(of(subject, side))),
    };
    Some(match field {
        Field::Protocol => number(condition, subject.protocol().into()),
        Field::Service => text(condition, subject.service(), service_is),
        Field::State => text(condition, subject.state(), name_is),
        Field::Verdict => choice(condition, subject.forwarding_status()),
        Field::Type => choice(condition, subject.flow_type()),
        Field::Reason => choice(condition, subject.end_reason()),
        Field::Icmp => icmp(condition, subject.icmp()),
        Field::Bytes => number(condition, amount(S::bytes)),
        Field::Packets => number(condition, amount(S::packets)),
        Field::Rate => number(condition, amount(S::rate)),
        Field::Duration => number(condition, u64::try_from(subject.duration().as_nanos()).unwrap_or(u64::MAX)),
        Field::Anything => is_any(condition, |value| appears(value, subject)),
        _ => return None,
    })
}

fn end_holds<S: Subject>(test: &Test, side: Side, subject: &S) -> bool {
    let condition = &test.condition;
    match test.field {
        Field::Ip => address(condition, subject.addr(side)),
        Field::External => subject.kind(side) == EndKind::External && address(condition, subject.addr(side)),
        Field::Port => subject.port(side).is_some_and(|port| number(condition, port.into())),
        Field::Kind => choice(condition, subject.kind(side) as u8),
        Field::Flags => flags(condition, subject.flags(side)),
        Field::Pod => match condition {
            Condition::Is(values) => values.iter().any(|value| pod_is(value, side, subject)),
            _ => text(condition, subject.pod(side), name_is),
        },
        Field::Namespace => text(condition, subject.namespace(side), name_is),
        Field::Node => text(condition, subject.node(side), name_is),
        Field::End => end(condition, side, subject),
        _ => false,
    }
}

/// `src = X`: an address, `namespace/name` or a name, of a Pod or, where the end is one, a Node.
fn end<S: Subject>(condition: &Condition, side: Side, subject: &S) -> bool {
    let name = if subject.kind(side) == EndKind::Node { subject.node(side) } else { subject.pod(side) };
    match condition {
        Condition::Is(values) => values.iter().any(|value| match value {
            Value::Addr(_) | Value::Network(_) => address_is(value, subject.addr(side)),
            Value::Glob(_) => {
                pod_is(value, side, subject) || name_is(value, name) || address_is(value, subject.addr(side))
            }
            _ => pod_is(value, side, subject) || name_is(value, name),
        }),
        Condition::Matches(Pattern(regex)) => {
            regex.is_match(Buffer::qualified(subject.namespace(side), name).text())
                || regex.is_match(Buffer::of(subject.addr(side)).text())
        }
        _ => false,
    }
}

/// A Pod by its name, or by its namespace and name.
fn pod_is<S: Subject>(value: &Value, side: Side, subject: &S) -> bool {
    let (pod, namespace) = (subject.pod(side), subject.namespace(side));
    match value {
        Value::Text(wanted) => match wanted.split_once('/') {
            Some((in_namespace, name)) => namespace == in_namespace && pod == name,
            None => pod == &**wanted,
        },
        Value::Glob(glob) => match glob.split_once('/') {
            Some((in_namespace, name)) => glob_is(in_namespace, namespace) && !pod.is_empty() && glob_is(name, pod),
            None => name_is(value, pod),
        },
        _ => false,
    }
}

/// A Service by its name, with namespace and port where the value has them.
fn service_is(value: &Value, service: &str) -> bool {
    let (Value::Text(wanted) | Value::Glob(wanted)) = value else { return false };
    let name = if wanted.contains('/') { service } else { service.split_once('/').map_or(service, |(_, name)| name) };
    let name = if wanted.contains(':') { name } else { name.split_once(':').map_or(name, |(name, _)| name) };
    name_is(value, name)
}

/// A bare word: part of any name or address, or as a glob all of one.
fn appears<S: Subject>(value: &Value, subject: &S) -> bool {
    let found = |text: &str| match value {
        Value::Text(word) => text.contains(&**word),
        Value::Glob(glob) => !text.is_empty() && glob_is(glob, text),
        _ => false,
    };
    let at_end = |side| {
        found(subject.node(side))
            || found(subject.pod(side))
            || found(subject.namespace(side))
            || found(Buffer::qualified(subject.namespace(side), subject.pod(side)).text())
            || found(Buffer::of(subject.addr(side)).text())
    };
    found(subject.service()) || Side::BOTH.into_iter().any(at_end)
}

/// Text that may be absent: nothing is true of that but that it is not there.
fn text(condition: &Condition, text: &str, is: fn(&Value, &str) -> bool) -> bool {
    match condition {
        Condition::Is(values) => values.iter().any(|value| is(value, text)),
        Condition::Matches(Pattern(regex)) => !text.is_empty() && regex.is_match(text),
        Condition::Has => !text.is_empty(),
        _ => false,
    }
}

/// `""` is the absent name; `*` is any that is there.
fn name_is(value: &Value, text: &str) -> bool {
    match value {
        Value::Text(wanted) => text == &**wanted,
        Value::Glob(glob) => !text.is_empty() && glob_is(glob, text),
        _ => false,
    }
}

fn address(condition: &Condition, addr: IpAddr) -> bool {
    match condition {
        Condition::Is(values) => values.iter().any(|value| address_is(value, addr)),
        Condition::Matches(Pattern(regex)) => regex.is_match(Buffer::of(addr).text()),
        Condition::Has => true,
        _ => false,
    }
}

fn address_is(value: &Value, addr: IpAddr) -> bool {
    match value {
        Value::Addr(wanted) => *wanted == addr,
        Value::Network(network) => network.contains(addr),
        Value::Glob(glob) => glob_is(glob, Buffer::of(addr).text()),
        _ => false,
    }
}

fn number(condition: &Condition, number: u64) -> bool {
    match condition {
        Condition::Is(values) => values.contains(&Value::Number(number)),
        Condition::Less(limit) => number < *limit,
        Condition::AtMost(limit) => number <= *limit,
        Condition::More(limit) => number > *limit,
        Condition::AtLeast(limit) => number >= *limit,
        Condition::Has => true,
        Condition::Matches(_) => false,
    }
}

/// Numbers that have names; 0 is what is not known yet, except for kinds, of which there always is one.
fn choice(condition: &Condition, number: u8) -> bool {
    match condition {
        Condition::Has => number != 0,
        _ => is_any(condition, |value| matches!(value, Value::Choice(choice) if choice.numbers.contains(&number))),
    }
}

fn flags(condition: &Condition, flags: u16) -> bool {
    match condition {
        Condition::Has => flags != 0,
        _ => is_any(condition, |value| matches!(value, Value::Flags(wanted) if flags & wanted == *wanted)),
    }
}

fn icmp(condition: &Condition, message: Option<(u8, u8)>) -> bool {
    let Some((kind, code)) = message else { return false };
    let is = |value: &Value| match value {
        Value::Icmp(wanted, None) => *wanted == kind,
        Value::Icmp(wanted, Some(with)) => (*wanted, *with) == (kind, code),
        _ => false,
    };
    matches!(condition, Condition::Has) || is_any(condition, is)
}

fn is_any(condition: &Condition, is: impl FnMut(&Value) -> bool) -> bool {
    matches!(condition, Condition::Is(values) if values.iter().any(is))
}

/// Whether `text` is `glob` with each `*` replaced by something. Linear: what stands between two stars is looked for
/// from the left, once.
pub(super) fn glob_is(glob: &str, text: &str) -> bool {
    let Some((first, rest)) = glob.split_once('*') else { return glob == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match text.split_once(part) {
            Some((_, behind)) => text = behind,
            None => return false,
        }
    }
    text.ends_with(last)
}

/// Text on the stack; what does not fit (nothing that Kubernetes allows) is cut off.
struct Buffer {
    bytes: [u8; 512],
    length: usize,
}

impl Buffer {
    fn of(addr: IpAddr) -> Self {
        let mut buffer = Self { bytes: [0; 512], length: 0 };
        // An address always fits.
        let _ = write!(buffer, "{addr}");
        buffer
    }

    /// `namespace/name`, empty without a name.
    fn qualified(namespace: &str, name: &str) -> Self {
        let mut buffer = Self { bytes: [0; 512], length: 0 };
        if !name.is_empty() {
            // Cut off at the end of the buffer.
            let _ = if namespace.is_empty() { buffer.write_str(name) } else { write!(buffer, "{namespace}/{name}") };
        }
        buffer
    }

    fn text(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl fmt::Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let text = &text[..text.floor_char_boundary(self.bytes.len() - self.length)];
        self.bytes[self.length..self.length + text.len()].copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}
