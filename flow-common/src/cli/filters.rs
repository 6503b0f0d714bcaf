//! Filter flags as sugar: `--ns prod --verdict denied` and a free expression become one expression of the filter language.

use crate::filter::is_keyword;
use clap::Args;

/// The flags; each may be given more than once.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Filters (joined by and)")]
pub struct Filters {
    /// Originator: an address, a network, a Pod or namespace/Pod.
    #[arg(long, value_name = "END")]
    src: Vec<String>,
    /// Responder: an address, a network, a Pod or namespace/Pod.
    #[arg(long, value_name = "END")]
    dst: Vec<String>,
    /// Address or network of either end.
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<String>,
    /// Port of either end.
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    /// tcp, udp, icmp, sctp or a number.
    #[arg(long, value_name = "PROTOCOL")]
    proto: Vec<String>,
    /// Pod of either end.
    #[arg(long, value_name = "NAME")]
    pod: Vec<String>,
    /// Namespace of either end.
    #[arg(long, value_name = "NAME")]
    ns: Vec<String>,
    /// Node of either end.
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
    /// Service: namespace/name:port.
    #[arg(long, value_name = "NAME")]
    service: Vec<String>,
    /// Policy of either direction.
    #[arg(long, value_name = "NAME")]
    policy: Vec<String>,
    /// allowed, denied and so on.
    #[arg(long, value_name = "VERDICT")]
    verdict: Vec<String>,
    /// intra, inter, to-external or from-external.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Vec<String>,
    /// A free expression, such as `dst.ns = prod and not src.ns in (prod, ingress)`.
    #[arg(value_name = "EXPRESSION")]
    expression: Vec<String>,
}

impl Filters {
    /// The one expression; empty where nothing was given.
    pub fn expression(&self) -> String {
        let free = self.expression.join(" ");
        let mut terms: Vec<String> = self
            .flags()
            .into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(field, values)| term(field, values))
            .collect();
        if terms.is_empty() {
            return free;
        }
        if !free.trim().is_empty() {
            terms.push(format!("({free})"));
        }
        terms.join(" and ")
    }

    fn flags(&self) -> [(&'static str, &[String]); 12] {
        [
            ("src", &self.src),
            ("dst", &self.dst),
            ("ip", &self.ip),
            ("port", &self.port),
            ("proto", &self.proto),
            ("pod", &self.pod),
            ("ns", &self.ns),
            ("node", &self.node),
            ("service", &self.service),
            ("policy", &self.policy),
            ("verdict", &self.verdict),
            ("type", &self.kind),
        ]
    }
}

/// Several values of a flag are alternatives.
fn term(field: &str, values: &[String]) -> String {
    let mut words = values.iter().map(|value| word(value));
    match values {
        [_] => format!("{field} = {}", words.next().unwrap_or_default()),
        _ => format!("{field} in ({})", words.collect::<Vec<_>>().join(", ")),
    }
}

/// Quotes switch globs off, so only what is no word by itself gets them.
fn word(value: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "*._-/:[]".contains(c);
    if !value.is_empty() && value.chars().all(plain) && !is_keyword(value) {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_expression_are_joined_by_and() {
        let filters = Filters {
            ns: vec!["prod".into()],
            ip: vec!["10.0.0.0/8".into(), "fd00::1".into()],
            pod: vec!["a b".into(), "and".into()],
            expression: vec!["bytes".into(), ">".into(), "10MB or :443".into()],
            ..Filters::default()
        };
        let expression =
            "ip in (10.0.0.0/8, fd00::1) and pod in (\"a b\", \"and\") and ns = prod and (bytes > 10MB or :443)";
        assert_eq!(filters.expression(), expression);
    }

    #[test]
    fn a_free_expression_stays_as_it_is() {
        let filters = Filters { expression: vec!["bytes > 1".into()], ..Filters::default() };
        assert_eq!(filters.expression(), "bytes > 1");
        assert_eq!(Filters::default().expression(), "");
    }
}
