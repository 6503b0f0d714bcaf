//! A flow as a line of comma-separated values: the 30 that Antrea's flow logger writes, in its order.
//!
//! Takes a record; appends a line. Values with commas, quotes or line ends are quoted as RFC 4180 says, which that logger
//! does not do.

use flow_common::{
    cli::text::csv_cell,
    record::{AggregatedFlow, PolicyType, RuleAction},
};
use std::io::Write;

/// Appends the line; `pretty` has names for protocols, kinds of policies and actions.
pub(super) fn csv(flow: &AggregatedFlow, pretty: bool, out: &mut Vec<u8>) {
    let AggregatedFlow { head, tail, .. } = flow;
    let mut line = Line { out, first: true };
    line.number(head.start_seconds);
    line.number(head.end_seconds);
    line.text(&head.src_addr.to_string());
    line.text(&head.dst_addr.to_string());
    line.number(head.src_port);
    line.number(head.dst_port);
    match protocol(head.protocol).filter(|_| pretty) {
        Some(name) => line.text(name),
        None => line.number(head.protocol),
    }
    for name in [
        &tail.src_pod,
        &tail.src_namespace,
        &tail.src_node,
        &tail.dst_pod,
        &tail.dst_namespace,
        &tail.dst_node,
        &tail.service_addr.to_string(),
    ] {
        line.text(name);
    }
    line.number(tail.service_port);
    line.text(&tail.service);
    for (names, action, kind) in [
        (
            [&tail.ingress_policy, &tail.ingress_policy_namespace, &tail.ingress_rule],
            tail.ingress_action,
            tail.ingress_policy_type,
        ),
        (
            [&tail.egress_policy, &tail.egress_policy_namespace, &tail.egress_rule],
            tail.egress_action,
            tail.egress_policy_type,
        ),
    ] {
        names.into_iter().for_each(|name| line.text(name));
        match action_name(action).filter(|_| pretty) {
            Some(name) => line.text(name),
            None => line.number(action.code()),
        }
        match kind_name(kind).filter(|_| pretty) {
            Some(name) => line.text(name),
            None => line.number(kind.code()),
        }
    }
    for name in [&tail.egress_name, &tail.egress_ip, &tail.app_protocol, &tail.http] {
        line.text(name);
    }
    line.out.push(b'\n');
}

fn protocol(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "ICMP",
        6 => "TCP",
        17 => "UDP",
        58 => "IPv6-ICMP",
        132 => "SCTP",
        _ => return None,
    })
}

fn action_name(action: RuleAction) -> Option<&'static str> {
    Some(match action {
        RuleAction::None => "",
        RuleAction::Allow => "Allow",
        RuleAction::Drop => "Drop",
        RuleAction::Reject => "Reject",
        RuleAction::Other(_) => return None,
    })
}

/// Names of the kinds that Antrea numbers; another keeps its number.
fn kind_name(kind: PolicyType) -> Option<&'static str> {
    Some(match kind.code() {
        0 => "",
        1 => "K8sNetworkPolicy",
        2 => "AntreaNetworkPolicy",
        3 => "AntreaClusterNetworkPolicy",
        4 => "ClusterNetworkPolicy",
        _ => return None,
    })
}

struct Line<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl Line<'_> {
    fn number(&mut self, number: impl Into<u64>) {
        self.comma();
        write!(self.out, "{}", number.into()).expect("a vector takes every byte");
    }

    fn text(&mut self, text: &str) {
        self.comma();
        self.out.extend_from_slice(csv_cell(text).as_bytes());
    }

    fn comma(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow_common::record::{Head, Tail};

    #[test]
    fn a_line_is_pretty_or_raw() {
        let flow = AggregatedFlow {
            head: Head {
                start_seconds: 1_637_706_961,
                end_seconds: 1_637_706_973,
                src_port: 44_752,
                dst_port: 5_201,
                protocol: 6,
                src_addr: [10, 10, 0, 79].into(),
                dst_addr: [10, 10, 0, 80].into(),
                ..Head::default()
            },
            tail: Tail {
                src_pod: "web".into(),
                src_namespace: "shop".into(),
                src_node: "node-a".into(),
                service_addr: [10, 96, 0, 10].into(),
                service_port: 5_202,
                service: "shop/web:http".into(),
                ingress_policy: "only, web".into(),
                ingress_policy_namespace: "shop".into(),
                ingress_rule: "say \"no\"".into(),
                ingress_action: RuleAction::Drop,
                ingress_policy_type: 1.into(),
                egress_action: 9.into(),
                egress_policy_type: 9.into(),
                http: "{\"0\":{}}".into(),
                ..Tail::default()
            },
            ..AggregatedFlow::default()
        };
        let mut lines = Vec::new();
        csv(&flow, true, &mut lines);
        csv(&flow, false, &mut lines);
        insta::assert_snapshot!(String::from_utf8(lines).unwrap());
    }
}
