//! The canonical form.

use std::fmt;

use super::expression::{Condition, Expression, Test, Value};
use super::field::{self, Field, Form, Units};
use super::lexer::is_word;
use super::parser::is_keyword;
use super::value::{FLAGS, is_special_bare, protocol_name};
use super::{Side, number};

/// Writes a whole filter.
pub(super) fn expression(expression: &Expression, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match expression {
        Expression::All(parts) => list(parts, " and ", f, |part, f| match part {
            Expression::Any(_) => parenthesized(part, f),
            _ => self::expression(part, f),
        }),
        Expression::Any(parts) => list(parts, " or ", f, self::expression),
        Expression::Not(part) => match &**part {
            Expression::Test(test) => self::test(test, true, f),
            _ => {
                f.write_str("not ")?;
                parenthesized(part, f)
            }
        },
        Expression::Test(test) => self::test(test, false, f),
    }
}

fn parenthesized(part: &Expression, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("(")?;
    expression(part, f)?;
    f.write_str(")")
}

/// `f != v` is how `not f = v` is written.
fn test(test: &Test, negated: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Test { side, field, condition } = test;
    let not = if negated { "not " } else { "" };
    let name = Name { field: *field, side: *side };
    match condition {
        Condition::Is(values) => match values.as_slice() {
            [word] if *field == Field::Anything => {
                f.write_str(not)?;
                bare(word, f)
            }
            [one] => {
                write!(f, "{name} {} ", if negated { "!=" } else { "=" })?;
                value(one, *field, f)
            }
            many => {
                write!(f, "{name} {not}in (")?;
                list(many, ", ", f, |one, f| value(one, *field, f))?;
                f.write_str(")")
            }
        },
        Condition::Matches(pattern) => {
            write!(f, "{name} {} ", if negated { "!~" } else { "~" })?;
            word_or_quoted(pattern.0.as_str(), true, f)
        }
        Condition::Less(limit) => comparison(not, &name, "<", *limit, f),
        Condition::AtMost(limit) => comparison(not, &name, "<=", *limit, f),
        Condition::More(limit) => comparison(not, &name, ">", *limit, f),
        Condition::AtLeast(limit) => comparison(not, &name, ">=", *limit, f),
        Condition::Has => write!(f, "{not}has {name}"),
    }
}

struct Name {
    field: Field,
    side: Option<Side>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.field.name(self.side))
    }
}

fn comparison(not: &str, name: &Name, sign: &str, limit: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{not}{name} {sign} ")?;
    number::print(limit, units(name.field), f)
}

fn value(value: &Value, field: Field, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match value {
        Value::Text(text) => word_or_quoted(text, false, f),
        Value::Glob(text) => f.write_str(text),
        Value::Addr(addr) => write!(f, "{addr}"),
        Value::Network(network) => write!(f, "{network}"),
        Value::Number(number) if field == Field::Protocol => match u8::try_from(*number).ok().and_then(protocol_name) {
            Some(name) => f.write_str(name),
            None => write!(f, "{number}"),
        },
        Value::Number(number) => number::print(*number, units(field), f),
        Value::Choice(choice) => f.write_str(choice.name),
        Value::Flags(flags) => {
            let set = FLAGS.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1);
            list(&set.collect::<Vec<_>>(), "+", f, |(_, name), f| f.write_str(name))
        }
        Value::Icmp(kind, None) => write!(f, "{kind}"),
        Value::Icmp(kind, Some(code)) => write!(f, "{kind}/{code}"),
    }
}

fn units(field: Field) -> Units {
    if let Form::Number(units) = field.row().form { units } else { Units::None }
}

/// A bare word, quoted where it would mean something else without.
fn bare(value: &Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match value {
        Value::Text(text) => {
            let named = |word: &str| field::named(word).is_some();
            let special = named(text)
                || is_special_bare(text)
                || text.split_once(':').is_some_and(|(name, _)| named(name))
                || matches!(&**text, "&&" | "||");
            if special { quoted(text, f) } else { word_or_quoted(text, false, f) }
        }
        other => self::value(other, Field::Anything, f),
    }
}

fn word_or_quoted(text: &str, stars: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let word = !text.is_empty() && text.chars().all(is_word) && !is_keyword(text);
    if word && (stars || !text.contains('*')) { f.write_str(text) } else { quoted(text, f) }
}

fn quoted(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn list<T>(
    items: &[T],
    between: &str,
    f: &mut fmt::Formatter<'_>,
    mut print: impl FnMut(&T, &mut fmt::Formatter<'_>) -> fmt::Result,
) -> fmt::Result {
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            f.write_str(between)?;
        }
        print(item, f)?;
    }
    Ok(())
}
