//! What is wrong with a filter, for people and for editors.

use std::fmt;
use std::ops::Range;

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What sort of mistake it is.
    pub code: Code,
    /// Where, in UTF-16 units from 0, as editors in browsers count.
    pub span: Range<usize>,
    /// Where, for people: first and last character, counted from 1.
    pub columns: (usize, usize),
    /// What could have stood there.
    pub expected: Vec<String>,
    /// How to put it right, where that can be guessed.
    pub hint: Option<String>,
}

/// The sorts of mistake. Their names stay the same between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Code {
    /// The text is longer than [`super::MAX_BYTES`].
    TooLong,
    /// Parentheses are nested deeper than [`super::MAX_DEPTH`].
    TooDeep,
    /// An `in` has more than [`super::MAX_VALUES`] values.
    TooManyValues,
    /// A quote is not closed.
    OpenQuote,
    /// Something else is wanted there.
    Unexpected,
    /// The text ends too early.
    UnexpectedEnd,
    /// No field has this name.
    UnknownField,
    /// A field's name without a condition.
    FieldAlone,
    /// The field has no side, or not this one.
    NoSuchSide,
    /// The operator does not go with the field.
    WrongOperator,
    /// Not one of the field's values.
    UnknownValue,
    /// Not a number, or not one the field takes.
    NotANumber,
    /// Not a unit the field takes.
    UnknownUnit,
    /// Not an address or network.
    NotAnAddress,
    /// Not a regular expression, or one that is too large.
    BadRegex,
}

impl Code {
    /// Its name, as the API gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::TooDeep => "too_deep",
            Self::TooManyValues => "too_many_values",
            Self::OpenQuote => "open_quote",
            Self::Unexpected => "unexpected",
            Self::UnexpectedEnd => "unexpected_end",
            Self::UnknownField => "unknown_field",
            Self::FieldAlone => "field_alone",
            Self::NoSuchSide => "no_such_side",
            Self::WrongOperator => "wrong_operator",
            Self::UnknownValue => "unknown_value",
            Self::NotANumber => "not_a_number",
            Self::UnknownUnit => "unknown_unit",
            Self::NotAnAddress => "not_an_address",
            Self::BadRegex => "bad_regex",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::TooLong => "a filter is at most 4096 bytes long",
            Self::TooDeep => "parentheses are at most 32 deep",
            Self::TooManyValues => "a list has at most 256 values",
            Self::OpenQuote => "the quote is not closed",
            Self::Unexpected => "not here",
            Self::UnexpectedEnd => "the filter ends too early",
            Self::UnknownField => "unknown field",
            Self::FieldAlone => "a field's name alone is no condition",
            Self::NoSuchSide => "the field has no such side",
            Self::WrongOperator => "the field does not take this operator",
            Self::UnknownValue => "no such value",
            Self::NotANumber => "a number is wanted",
            Self::UnknownUnit => "no such unit",
            Self::NotAnAddress => "an address or network is wanted",
            Self::BadRegex => "no regular expression",
        }
    }
}

/// A mistake as the parser finds it: with a range of bytes. [`Mistake::of`] makes it an [`Error`].
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) code: Code,
    pub(super) bytes: Range<usize>,
    pub(super) expected: Vec<String>,
    pub(super) hint: Option<String>,
}

impl Mistake {
    pub(super) fn new(code: Code, bytes: Range<usize>) -> Self {
        Self { code, bytes, expected: Vec::new(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn expected<S: Into<String>>(mut self, expected: impl IntoIterator<Item = S>) -> Self {
        self.expected = expected.into_iter().map(Into::into).collect();
        self
    }

    /// The error of this mistake in `text`.
    pub(super) fn of(self, text: &str) -> Error {
        let before = text.get(..self.bytes.start).unwrap_or(text);
        let within = text.get(self.bytes.start..self.bytes.end).unwrap_or_default();
        let first = before.chars().count() + 1;
        Error {
            code: self.code,
            span: utf16(before)..utf16(before) + utf16(within),
            columns: (first, first + within.chars().count().saturating_sub(1)),
            expected: self.expected,
            hint: self.hint,
        }
    }
}

/// How many UTF-16 units a text has.
pub(super) fn utf16(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

/// `1-6 unknown field, did you mean "verdict"?`
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = self.columns;
        if first < last { write!(f, "{first}-{last}") } else { write!(f, "{first}") }?;
        write!(f, " {}", self.code.sentence())?;
        match &self.hint {
            Some(hint) if hint.starts_with("did you mean") => write!(f, ", {hint}"),
            Some(hint) => write!(f, "; {hint}"),
            None if matches!(self.code, Code::Unexpected | Code::UnexpectedEnd) && !self.expected.is_empty() => {
                write!(f, "; wanted: {}", self.expected.join(", "))
            }
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
