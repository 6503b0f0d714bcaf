//! `flowLogger.filters`: which flows are logged, by what policies did about them.
//!
//! Takes a list of conditions; tells whether a flow's two actions fulfil one of them. Knows no record.

use flow_common::{
    config::{Node, Setting, Unfit, Value},
    record::RuleAction,
};

const INGRESS: &str = "ingressNetworkPolicyRuleActions";
const EGRESS: &str = "egressNetworkPolicyRuleActions";
const ACTIONS: [(&str, RuleAction); 4] = [
    ("None", RuleAction::None),
    ("Allow", RuleAction::Allow),
    ("Drop", RuleAction::Drop),
    ("Reject", RuleAction::Reject),
];

/// Alternatives; none of them means every flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActionFilters(Vec<ActionFilter>);

/// What must hold together; an empty list holds for every action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ActionFilter {
    ingress: Vec<RuleAction>,
    egress: Vec<RuleAction>,
}

impl ActionFilters {
    /// Whether every flow is accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a flow is accepted about which the ingress and the egress rule did this.
    pub fn accept(&self, ingress: RuleAction, egress: RuleAction) -> bool {
        let holds = |wanted: &[RuleAction], action| wanted.is_empty() || wanted.contains(&action);
        self.is_empty() || self.0.iter().any(|filter| holds(&filter.ingress, ingress) && holds(&filter.egress, egress))
    }
}

impl Setting for ActionFilters {
    const FORM: &'static str = "a list of sections, each with ingressNetworkPolicyRuleActions, egressNetworkPolicyRuleActions or both: \
         lists of None, Allow, Drop and Reject";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Null => Ok(Self::default()),
            Value::Sequence(filters) => filters.iter().map(filter).collect::<Result<_, _>>().map(ActionFilters),
            _ => Err(Unfit::new(format!("{} is wanted, found {node}", Self::FORM))),
        }
    }

    fn print(&self) -> String {
        let list = |actions: &[RuleAction]| {
            let names = ACTIONS.iter().filter(|(_, action)| actions.contains(action)).map(|(name, _)| *name);
            format!("[{}]", names.collect::<Vec<_>>().join(", "))
        };
        let filter = |filter: &ActionFilter| {
            format!("{{{INGRESS}: {}, {EGRESS}: {}}}", list(&filter.ingress), list(&filter.egress))
        };
        format!("[{}]", self.0.iter().map(filter).collect::<Vec<_>>().join(", "))
    }
}

fn filter(node: &Node) -> Result<ActionFilter, Unfit> {
    let Value::Mapping(entries) = &node.value else {
        return Err(Unfit::new(format!("line {}: a section is wanted, found {node}", node.line)));
    };
    let mut filter = ActionFilter::default();
    for (line, name, node) in entries {
        match name.as_str() {
            INGRESS => filter.ingress = actions(node)?,
            EGRESS => filter.egress = actions(node)?,
            _ => return Err(Unfit::new(format!("line {line}: there is no {name}; write {INGRESS} or {EGRESS}"))),
        }
    }
    Ok(filter)
}

fn actions(node: &Node) -> Result<Vec<RuleAction>, Unfit> {
    let Value::Sequence(names) = &node.value else {
        return Err(Unfit::new(format!("line {}: a list of actions is wanted, found {node}", node.line)));
    };
    // In the order of their names here, so that equal filters are equal.
    let mut actions = Vec::new();
    for name in names {
        let text = if let Value::Text(text) = &name.value { text.as_str() } else { "" };
        let known = ACTIONS.iter().position(|(known, _)| known.eq_ignore_ascii_case(text));
        let wanted = || Unfit::new(format!("line {}: None, Allow, Drop or Reject is wanted, found {name}", name.line));
        actions.push(known.ok_or_else(wanted)?);
    }
    actions.sort_unstable();
    actions.dedup();
    Ok(actions.into_iter().map(|at| ACTIONS[at].1).collect())
}
