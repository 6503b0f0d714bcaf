//! From text to tokens.

use std::ops::Range;

use super::error::{Code, Mistake};

/// What a filter is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// `(`
    Open,
    /// `)`
    Close,
    /// `,`
    Comma,
    /// `!` alone.
    Bang,
    /// A comparison.
    Operator(Operator),
    /// Anything without spaces and the characters above.
    Word(String),
    /// What stood between quotes.
    Quoted(String),
    /// The end of the text.
    End,
}

/// The comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Is,
    IsNot,
    Matches,
    MatchesNot,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Operator {
    /// All, the longer ones before their beginnings.
    const ALL: [(&'static str, Self); 8] = [
        ("!=", Self::IsNot),
        ("!~", Self::MatchesNot),
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("=", Self::Is),
        ("~", Self::Matches),
        ("<", Self::Less),
        (">", Self::More),
    ];
}

/// A token and the bytes it was read from.
#[derive(Clone, Debug)]
pub(super) struct Spanned {
    pub(super) token: Token,
    pub(super) bytes: Range<usize>,
}

/// The tokens of a text; the last one is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Spanned>, Mistake> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let start = text.len() - rest.len();
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '"' => {
                quoted(rest).ok_or_else(|| Mistake::new(Code::OpenQuote, start..text.len()).hint("close it with \""))?
            }
            _ => match Operator::ALL.iter().find(|(sign, _)| rest.starts_with(sign)) {
                Some((sign, operator)) => (Token::Operator(*operator), sign.len()),
                None if first == '!' => (Token::Bang, 1),
                None => {
                    let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                    (Token::Word(rest.get(..length).unwrap_or(rest).to_owned()), length)
                }
            },
        };
        tokens.push(Spanned { token, bytes: start..start + length });
        rest = rest.get(length..).unwrap_or_default().trim_start();
    }
    tokens.push(Spanned { token: Token::End, bytes: text.len()..text.len() });
    Ok(tokens)
}

/// Whether a character may be part of a word.
pub(super) fn is_word(c: char) -> bool {
    !c.is_whitespace() && !matches!(c, '(' | ')' | ',' | '"' | '=' | '!' | '~' | '<' | '>')
}

/// The quoted text that `rest` begins with, and how long it is with its quotes. `\"` is a quote and `\\` a backslash;
/// before anything else a backslash is itself, so that regular expressions need no second one.
fn quoted(rest: &str) -> Option<(Token, usize)> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((place, character)) = characters.next() {
        match character {
            '"' => return Some((Token::Quoted(text), place + 1)),
            '\\' => match characters.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                Some((_, escaped)) => text.push(escaped),
                None => text.push('\\'),
            },
            other => text.push(other),
        }
    }
    None
}
