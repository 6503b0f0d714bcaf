//! What a request for flow records asks: the parameters for the 5-tuple and the others, as one filter.
//!
//! Takes the parameters as they were decoded; gives an [`Ask`], or an error that names the parameter.

use crate::aggregate::Cursor;
use flow_common::filter::Filter;
use std::{net::IpAddr, ops::Range};

/// Flows of an answer unless it is told otherwise.
const LIMIT: usize = 1_000;
/// Flows of an answer at most.
const MOST: usize = 10_000;

/// A request for flow records.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) filter: Filter,
    pub(super) form: Form,
    pub(super) from: Cursor,
    pub(super) limit: usize,
    pub(super) follow: bool,
}

/// How a flow is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// By the names of its elements, as a JSON collector gets it.
    Records,
    /// As people see it, with both ends.
    Rows,
}

/// A parameter that cannot be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: {reason}")]
pub(super) struct BadParameter {
    pub(super) parameter: String,
    pub(super) reason: String,
    /// Where in the filter, in UTF-16 units.
    pub(super) span: Option<Range<usize>>,
}

impl Ask {
    pub(super) fn of(parameters: &[(String, String)]) -> Result<Ask, BadParameter> {
        let mut terms: Vec<Filter> = Vec::new();
        let mut ask = Ask { filter: parse("")?, form: Form::Records, from: Cursor::BEGIN, limit: LIMIT, follow: false };
        for (at, (parameter, value)) in parameters.iter().enumerate() {
            let bad = |reason: String| BadParameter { parameter: parameter.clone(), reason, span: None };
            if parameters[..at].iter().any(|(earlier, _)| earlier == parameter) {
                return Err(bad("it is given twice".to_owned()));
            }
            match parameter.as_str() {
                // Clients send all five; those that are not wanted are empty.
                "srcip" | "dstip" | "srcport" | "dstport" | "proto" if value.is_empty() => {}
                "srcip" | "dstip" => {
                    let addr: IpAddr = value.parse().map_err(|_| bad(format!("\"{value}\" is no IP address")))?;
                    terms.push(parse(&format!("{}.ip = {addr}", &parameter[..3]))?);
                }
                "srcport" | "dstport" => {
                    let port: u16 = value.parse().map_err(|_| bad(format!("\"{value}\" is no port")))?;
                    terms.push(parse(&format!("{}.port = {port}", &parameter[..3]))?);
                }
                "proto" => {
                    let word = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
                    let filter = Filter::parse(&format!("proto = {value}")).ok().filter(|_| word);
                    terms.push(filter.ok_or_else(|| bad(format!("\"{value}\" is no protocol")))?);
                }
                "filter" => terms.push(parse(value)?),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MOST).contains(limit));
                    ask.limit = limit.ok_or_else(|| bad(format!("a number from 1 to {MOST} is wanted")))?;
                }
                "cursor" => ask.from = value.parse().map_err(|error| bad(format!("{error}")))?,
                "form" => {
                    ask.form = match value.as_str() {
                        "records" => Form::Records,
                        "rows" => Form::Rows,
                        _ => return Err(bad("records or rows is wanted".to_owned())),
                    };
                }
                "follow" => ask.follow = value.parse().map_err(|_| bad("true or false is wanted".to_owned()))?,
                _ => {
                    let known = "srcip, dstip, srcport, dstport, proto, filter, limit, cursor, form, follow";
                    return Err(bad(format!("there is no such parameter; there are {known}")));
                }
            }
        }
        ask.filter = Filter::all(terms);
        Ok(ask)
    }
}

fn parse(filter: &str) -> Result<Filter, BadParameter> {
    Filter::parse(filter).map_err(|error| BadParameter {
        parameter: "filter".to_owned(),
        reason: error.to_string(),
        span: Some(error.span.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(query: &[(&str, &str)]) -> Result<Ask, BadParameter> {
        let owned: Vec<_> = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Ask::of(&owned)
    }

    #[test]
    fn the_five_parameters_and_a_filter_hold_together() {
        let all = [
            ("srcip", "10.0.1.5"),
            ("dstip", "fd00::7"),
            ("srcport", ""),
            ("dstport", "443"),
            ("proto", "6"),
            ("filter", "ns = shop or bytes > 1MB"),
        ];
        let filter = ask(&all).unwrap().filter.to_string();
        insta::assert_snapshot!(filter);
        assert_eq!(ask(&[]).unwrap().filter.to_string(), "");
    }

    #[test]
    fn a_filter_may_be_as_long_and_deep_as_the_language_allows() {
        use flow_common::filter::{MAX_BYTES, MAX_DEPTH};
        let deep = format!("{}ns = shop{}", "(".repeat(MAX_DEPTH), ")".repeat(MAX_DEPTH));
        let long = format!("ns = {}", "x".repeat(MAX_BYTES - 5));
        for filter in [deep, long] {
            let asked = ask(&[("filter", &filter), ("srcip", "10.0.1.5")]).unwrap().filter.to_string();
            assert!(asked.ends_with(" and src.ip = 10.0.1.5"), "{asked}");
        }
    }

    #[test]
    fn a_parameter_that_is_wrong_is_named() {
        let wrong = [
            ("srcip", "10.0.1"),
            ("dstport", "65536"),
            ("proto", "tcp or proto"),
            ("filter", "verdct = denied"),
            ("limit", "0"),
            ("cursor", "5-1"),
            ("form", "xml"),
            ("follow", "yes"),
            ("srcipp", "10.0.0.1"),
        ];
        let mut said: Vec<String> = wrong.iter().map(|wrong| ask(&[*wrong]).unwrap_err().to_string()).collect();
        said.push(ask(&[("limit", "1"), ("limit", "2")]).unwrap_err().to_string());
        insta::assert_snapshot!(said.join("\n"));
    }

    proptest::proptest! {
        #[test]
        fn any_parameters_are_an_ask_or_an_error(
            parameters in proptest::collection::vec(
                ("(srcip|dstip|srcport|dstport|proto|filter|limit|cursor|form|follow|x)", "\\PC{0,20}"), 0..5)
        ) {
            if let Ok(ask) = Ask::of(&parameters) {
                proptest::prop_assert!((1..=MOST).contains(&ask.limit));
            }
        }
    }
}
