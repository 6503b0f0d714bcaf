//! From tokens to an expression, and what was expected where the tokens end.

use std::ops::Range;

use super::error::{Code, Error, Mistake};
use super::expression::{Condition, Expression, Test, Value};
use super::field::{self, Field, Form};
use super::lexer::{Operator, Spanned, Token, tokens};
use super::value::{self, Written};
use super::{MAX_BYTES, MAX_DEPTH, MAX_VALUES, Side};

/// Words that are no values and no bare words unless quoted.
pub(super) const KEYWORDS: [&str; 5] = ["and", "or", "not", "in", "has"];

/// Operators of other languages, and what to write.
const FOREIGN: [(&str, &str); 2] = [("&&", "write \"and\""), ("||", "write \"or\"")];

/// What may stand at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Keyword(&'static str),
    Sign(&'static str),
    /// A field's name (of those only that `has` takes), for a condition.
    Field {
        optional: bool,
    },
    /// A bare word.
    Word,
    /// A value of this field.
    Value(Option<Side>, Field),
    /// A unit behind a number of this field.
    Unit(Field),
}

/// Reads a whole filter.
pub(super) fn parse(text: &str) -> Result<Expression, Error> {
    read(text).map_err(|mistake| mistake.of(text))
}

/// What could stand behind `text`; none if it is wrong before its end.
pub(super) fn expected_after(text: &str) -> Option<Vec<Expected>> {
    let mut parser = Parser::new(tokens(text).ok()?);
    // Whether it is a filter as it stands does not matter here.
    let _ = parser.filter();
    (*parser.peek() == Token::End).then_some(parser.expected)
}

fn read(text: &str) -> Result<Expression, Mistake> {
    if text.len() > MAX_BYTES {
        let limit = text.floor_char_boundary(MAX_BYTES);
        return Err(Mistake::new(Code::TooLong, limit..text.len())
            .hint("use an \"in\" list or a network in place of many conditions"));
    }
    let expression = Parser::new(tokens(text)?).filter()?;
    // The canonical form must be a filter, too, and may be longer: ":1" is "port = 1".
    let filter = super::Filter { expression };
    if filter.to_string().len() > MAX_BYTES {
        return Err(Mistake::new(Code::TooLong, 0..text.len()).hint("its canonical form is longer"));
    }
    Ok(filter.expression)
}

struct Parser {
    tokens: Vec<Spanned>,
    position: usize,
    depth: usize,
    /// What was looked for at `position`.
    expected: Vec<Expected>,
}

impl Parser {
    fn new(tokens: Vec<Spanned>) -> Self {
        Self { tokens, position: 0, depth: 0, expected: Vec::new() }
    }

    fn filter(&mut self) -> Result<Expression, Mistake> {
        if self.tokens.len() == 1 {
            self.expect_primary();
            return Ok(Expression::All(Vec::new()));
        }
        let expression = self.alternatives()?;
        if *self.peek() == Token::End { Ok(expression) } else { Err(self.unexpected()) }
    }

    fn alternatives(&mut self) -> Result<Expression, Mistake> {
        let mut parts = vec![self.conjunction()?];
        while self.keyword("or") {
            parts.push(self.conjunction()?);
        }
        Ok(Expression::any(parts))
    }

    fn conjunction(&mut self) -> Result<Expression, Mistake> {
        let mut parts = vec![self.negation()?];
        while self.keyword("and") || self.at_primary() {
            parts.push(self.negation()?);
        }
        Ok(Expression::all(parts))
    }

    fn negation(&mut self) -> Result<Expression, Mistake> {
        let negated = self.keyword("not") || self.sign(&Token::Bang, "!");
        let primary = self.primary()?;
        Ok(if negated { Expression::not(primary) } else { primary })
    }

    fn primary(&mut self) -> Result<Expression, Mistake> {
        if self.sign(&Token::Open, "(") {
            return self.group();
        }
        if self.keyword("has") {
            return self.presence();
        }
        self.expected.extend([Expected::Field { optional: false }, Expected::Word]);
        let spanned = self.current();
        match spanned.token {
            Token::Quoted(text) => self.bare(&text, true, spanned.bytes),
            Token::Word(word) if !is_keyword(&word) => self.word(&word, spanned.bytes),
            _ => Err(self.unexpected()),
        }
    }

    fn group(&mut self) -> Result<Expression, Mistake> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let bytes = self.tokens.get(self.position - 1).map_or(0..0, |open| open.bytes.clone());
            return Err(Mistake::new(Code::TooDeep, bytes).hint("an \"in\" list needs no nesting"));
        }
        let inner = self.alternatives()?;
        self.depth -= 1;
        if self.sign(&Token::Close, ")") { Ok(inner) } else { Err(self.unexpected()) }
    }

    /// Behind `has`.
    fn presence(&mut self) -> Result<Expression, Mistake> {
        self.expected.push(Expected::Field { optional: true });
        let Spanned { token: Token::Word(word), bytes } = self.current() else { return Err(self.unexpected()) };
        let (side, field) = field::named(&word).ok_or_else(|| field::unknown(&word, bytes.clone()))?;
        let side = field::check_side(side, field, bytes.clone())?;
        if !field.row().optional {
            return Err(
                Mistake::new(Code::WrongOperator, bytes).hint(format!("every flow has \"{}\"", field.name(side)))
            );
        }
        self.advance();
        Ok(Expression::Test(Test { side, field, condition: Condition::Has }))
    }

    /// A word that begins a condition or is one.
    fn word(&mut self, word: &str, bytes: Range<usize>) -> Result<Expression, Mistake> {
        if let Some((_, hint)) = FOREIGN.iter().find(|(sign, _)| *sign == word) {
            return Err(Mistake::new(Code::Unexpected, bytes).hint(*hint));
        }
        match field::named(word) {
            Some((side, field)) => {
                let side = field::check_side(side, field, bytes.clone())?;
                self.advance();
                self.condition(side, field, bytes)
            }
            None if self.condition_follows() => Err(field::unknown(word, bytes)),
            None => self.bare(word, false, bytes),
        }
    }

    /// Whether the token behind the current one makes the current one a field.
    fn condition_follows(&self) -> bool {
        let token = |ahead: usize| self.tokens.get(self.position + ahead).map(|spanned| &spanned.token);
        let is = |ahead, keyword| matches!(token(ahead), Some(Token::Word(word)) if word.eq_ignore_ascii_case(keyword));
        matches!(token(1), Some(Token::Operator(_))) || is(1, "in") || is(1, "not") && is(2, "in")
    }

    fn bare(&mut self, text: &str, quoted: bool, bytes: Range<usize>) -> Result<Expression, Mistake> {
        if let Some((name, rest)) = text.split_once(':').filter(|(name, _)| !quoted && field::named(name).is_some()) {
            let rest = if rest.is_empty() { "..." } else { rest };
            return Err(Mistake::new(Code::Unexpected, bytes).hint(format!("write \"{name} = {rest}\", or quote it")));
        }
        let (field, value) = value::bare(&Written { text, quoted, bytes })?;
        self.advance();
        Ok(Expression::Test(Test { side: None, field, condition: Condition::Is(vec![value]) }))
    }

    /// Behind a field's name.
    fn condition(&mut self, side: Option<Side>, field: Field, bytes: Range<usize>) -> Result<Expression, Mistake> {
        self.expected.extend(signs(field).iter().copied().map(Expected::Sign));
        if let Token::Operator(operator) = *self.peek() {
            return self.comparison(side, field, operator);
        }
        let negated = self.keyword("not");
        if self.keyword("in") {
            let condition = Condition::Is(self.list(side, field)?);
            let test = Expression::Test(Test { side, field, condition });
            return Ok(if negated { Expression::not(test) } else { test });
        }
        if negated {
            return Err(self.unexpected());
        }
        let name = field.name(side);
        let hint = match field.row().optional {
            true => format!("write \"{name} = ...\" or \"has {name}\", or quote it to search for the word"),
            false => format!("write \"{name} = ...\", or quote it to search for the word"),
        };
        Err(Mistake::new(Code::FieldAlone, bytes).expected(signs(field).iter().copied().chain(["in"])).hint(hint))
    }

    fn comparison(&mut self, side: Option<Side>, field: Field, operator: Operator) -> Result<Expression, Mistake> {
        let Form::Number(units) = field.row().form else {
            return self.equality(side, field, operator);
        };
        let condition: fn(u64) -> Condition = match operator {
            Operator::Less => Condition::Less,
            Operator::AtMost => Condition::AtMost,
            Operator::More => Condition::More,
            Operator::AtLeast => Condition::AtLeast,
            _ => return self.equality(side, field, operator),
        };
        self.advance();
        let number = self.value(side, field, |written| value::parse_number(units, written))?;
        Ok(Expression::Test(Test { side, field, condition: condition(number) }))
    }

    fn equality(&mut self, side: Option<Side>, field: Field, operator: Operator) -> Result<Expression, Mistake> {
        let textual = matches!(field.row().form, Form::Name | Form::Addr | Form::AddrOrName | Form::State);
        let bytes = self.current().bytes;
        let (regex, negated) = match operator {
            Operator::Is => (false, false),
            Operator::IsNot => (false, true),
            Operator::Matches if textual => (true, false),
            Operator::MatchesNot if textual => (true, true),
            _ => {
                let hint = format!("\"{}\" takes {} and in", field.name(side), signs(field).join(", "));
                return Err(Mistake::new(Code::WrongOperator, bytes).expected(signs(field).iter().copied()).hint(hint));
            }
        };
        self.advance();
        let condition = match regex {
            true => Condition::Matches(self.value(side, field, value::parse_regex)?),
            false => Condition::Is(vec![self.value(side, field, |written| value::parse(field, written))?]),
        };
        let test = Expression::Test(Test { side, field, condition });
        Ok(if negated { Expression::not(test) } else { test })
    }

    /// The values behind `in`.
    fn list(&mut self, side: Option<Side>, field: Field) -> Result<Vec<Value>, Mistake> {
        if !self.sign(&Token::Open, "(") {
            return Err(self.unexpected());
        }
        let mut values = Vec::new();
        loop {
            if values.len() == MAX_VALUES {
                return Err(Mistake::new(Code::TooManyValues, self.current().bytes)
                    .hint("use a glob, a network or a second list"));
            }
            values.push(self.value(side, field, |written| value::parse(field, written))?);
            if self.sign(&Token::Close, ")") {
                return Ok(values);
            }
            if !self.sign(&Token::Comma, ",") {
                return Err(self.unexpected());
            }
        }
    }

    /// One value; behind a number also a unit that stands apart from it.
    fn value<T>(
        &mut self,
        side: Option<Side>,
        field: Field,
        parse: impl FnOnce(&Written<'_>) -> Result<T, Mistake>,
    ) -> Result<T, Mistake> {
        self.expected.push(Expected::Value(side, field));
        let Spanned { token, mut bytes } = self.current();
        let (mut text, quoted) = match token {
            Token::Quoted(text) => (text, true),
            Token::Word(word) if !is_keyword(&word) => (word, false),
            Token::Word(word) => {
                let hint = format!("to search for the word \"{word}\" quote it");
                return Err(Mistake::new(Code::Unexpected, bytes).expected(["value"]).hint(hint));
            }
            Token::Operator(Operator::Is) => {
                return Err(Mistake::new(Code::Unexpected, bytes).expected(["value"]).hint("a single \"=\" is enough"));
            }
            _ => return Err(self.unexpected()),
        };
        self.advance();
        if let Form::Number(units) = field.row().form
            && !quoted
            && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
            && units.names().next().is_some()
        {
            self.expected.push(Expected::Unit(field));
            if let Spanned { token: Token::Word(unit), bytes: of_unit } = self.current()
                && units.names().any(|name| name.eq_ignore_ascii_case(&unit))
            {
                text.push_str(&unit);
                bytes.end = of_unit.end;
                self.advance();
            }
        }
        parse(&Written { text: &text, quoted, bytes })
    }

    fn at_primary(&mut self) -> bool {
        self.expect_primary();
        match self.peek() {
            Token::Open | Token::Bang | Token::Quoted(_) => true,
            Token::Word(word) => !["and", "or", "in"].iter().any(|keyword| word.eq_ignore_ascii_case(keyword)),
            _ => false,
        }
    }

    fn expect_primary(&mut self) {
        self.expected.extend([
            Expected::Keyword("not"),
            Expected::Keyword("has"),
            Expected::Sign("("),
            Expected::Field { optional: false },
            Expected::Word,
        ]);
    }

    fn keyword(&mut self, keyword: &'static str) -> bool {
        self.expected.push(Expected::Keyword(keyword));
        let there = matches!(self.peek(), Token::Word(word) if word.eq_ignore_ascii_case(keyword));
        if there {
            self.advance();
        }
        there
    }

    fn sign(&mut self, token: &Token, sign: &'static str) -> bool {
        self.expected.push(Expected::Sign(sign));
        let there = self.peek() == token;
        if there {
            self.advance();
        }
        there
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.position).map_or(&Token::End, |spanned| &spanned.token)
    }

    fn current(&self) -> Spanned {
        self.tokens.get(self.position).cloned().unwrap_or(Spanned { token: Token::End, bytes: 0..0 })
    }

    /// To the next token. The last one, the end, is never passed.
    fn advance(&mut self) {
        self.position = (self.position + 1).min(self.tokens.len() - 1);
        self.expected.clear();
    }

    /// The mistake of a token that is none of what was looked for.
    fn unexpected(&self) -> Mistake {
        let mut words: Vec<String> = Vec::new();
        for expected in &self.expected {
            let word = match expected {
                Expected::Keyword(word) | Expected::Sign(word) => format!("\"{word}\""),
                Expected::Field { .. } => "field".to_owned(),
                Expected::Word => "word".to_owned(),
                Expected::Value(..) => "value".to_owned(),
                Expected::Unit(_) => "unit".to_owned(),
            };
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let spanned = self.current();
        let code = if spanned.token == Token::End { Code::UnexpectedEnd } else { Code::Unexpected };
        Mistake::new(code, spanned.bytes).expected(words)
    }
}

/// The operators that a field takes, besides `in`.
pub(super) fn signs(field: Field) -> &'static [&'static str] {
    match field.row().form {
        Form::Name | Form::Addr | Form::AddrOrName | Form::State => &["=", "!=", "~", "!~"],
        Form::Number(_) => &["=", "!=", "<", "<=", ">", ">="],
        Form::Protocol | Form::Choice(_) | Form::Flags | Form::Icmp => &["=", "!="],
    }
}

/// Whether a word is one of the language, so that as a value it wants quotes.
pub fn is_keyword(word: &str) -> bool {
    KEYWORDS.iter().any(|keyword| word.eq_ignore_ascii_case(keyword))
}
