//! What could stand at a cursor.

use std::ops::Range;

use super::Side;
use super::error::utf16;
use super::field::{self, Field, Form, Units};
use super::lexer::is_word;
use super::parser::{Expected, expected_after};
use super::value::{FLAGS, PROTOCOLS, STATES};

/// What an editor can offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// What a chosen candidate replaces: the part of a word before the cursor, in UTF-16 units.
    pub replace: Range<usize>,
    /// Fields, operators, keywords, units and the values of closed sets that begin with that part.
    pub candidates: Vec<String>,
    /// The field whose values in the data fit here as well; "" for any name or address.
    pub values_of: Option<String>,
}

/// What could stand at the cursor, which is at so many UTF-16 units of `text`. Nothing is offered in or behind
/// something that is wrong.
pub fn complete(text: &str, cursor: usize) -> Completion {
    let before = before(text, cursor);
    let begun =
        before.char_indices().rev().take_while(|(_, c)| is_word(*c)).last().map_or(before.len(), |(place, _)| place);
    let (settled, part) = before.split_at(begun);
    let mut completion = Completion { replace: utf16(settled)..utf16(before), ..Completion::default() };
    for expected in expected_after(settled).unwrap_or_default() {
        completion.add(expected, part);
    }
    completion
}

impl Completion {
    fn add(&mut self, expected: Expected, part: &str) {
        match expected {
            Expected::Keyword(word) | Expected::Sign(word) => self.offer(part, [word]),
            Expected::Field { optional } => self.fields(optional, part),
            Expected::Word => self.values_of = Some(String::new()),
            Expected::Unit(field) => {
                if let Form::Number(units) = field.row().form {
                    self.offer(part, units.names());
                }
            }
            Expected::Value(side, field) => self.values(side, field, part),
        }
    }

    fn fields(&mut self, optional: bool, part: &str) {
        let lower = part.to_ascii_lowercase();
        let fits = |name: &&str| !optional || field::named(name).is_some_and(|(_, field)| field.row().optional);
        match Side::BOTH.into_iter().find(|side| lower.starts_with(side.name()) && lower.get(3..4) == Some(".")) {
            Some(side) => {
                for name in field::sided_names().filter(fits) {
                    self.offer(part, [&*format!("{}.{name}", side.name())]);
                }
            }
            None => self.offer(part, field::names().filter(fits)),
        }
    }

    fn values(&mut self, side: Option<Side>, field: Field, part: &str) {
        match field.row().form {
            Form::Choice(choices) => self.offer(part, choices.iter().map(|choice| choice.name)),
            Form::State => self.offer(part, STATES),
            Form::Flags => self.offer(part, FLAGS),
            Form::Protocol => self.offer(part, PROTOCOLS.iter().map(|(name, _)| *name)),
            Form::Name | Form::Addr | Form::AddrOrName | Form::Number(Units::Port) | Form::Icmp => {
                self.values_of = Some(field.name(side));
            }
            Form::Number(_) => {}
        }
    }

    fn offer<'a>(&mut self, part: &str, words: impl IntoIterator<Item = &'a str>) {
        for word in words {
            let begins = word.get(..part.len()).is_some_and(|start| start.eq_ignore_ascii_case(part));
            if begins && !self.candidates.iter().any(|known| known == word) {
                self.candidates.push(word.to_owned());
            }
        }
    }
}

/// The text before the cursor; a cursor within a character is before it.
fn before(text: &str, cursor: usize) -> &str {
    let mut units = 0;
    for (place, character) in text.char_indices() {
        units += character.len_utf16();
        if units > cursor {
            return text.get(..place).unwrap_or(text);
        }
    }
    text
}
