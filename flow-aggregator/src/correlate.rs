//! Which half of a connection a record is, and whether another half must be waited for.
//!
//! Takes what is known of one record; gives [`Role`] and need. Pure: it keeps nothing and joins nothing.

use flow_common::record::{FlowType, ForwardingStatus, RuleAction, Tail};

/// Whose Node reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The originator's, or of a masqueraded connection the one that translated it.
    Source,
    /// The responder's.
    Destination,
}

/// What correlation wants to know of a half's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The half names the originator's Pod or Node.
    pub names_src: bool,
    /// The half names the responder's Pod or Node.
    pub names_dst: bool,
    /// Where the two ends are, as the agent guesses.
    pub flow_type: FlowType,
    /// What the egress rule did.
    pub egress: RuleAction,
    /// What the ingress rule did.
    pub ingress: RuleAction,
}

/// One half, as far as correlation looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Half {
    /// What its names say.
    pub facts: Facts,
    /// What became of the packets on its Node.
    pub status: ForwardingStatus,
    /// It shows an originator behind the one that the responder sees.
    pub translated: bool,
    /// The originator it shows is an address of another Node.
    pub src_is_other_node: bool,
}

impl Facts {
    /// Of decoded names.
    pub fn of(tail: &Tail) -> Self {
        Self {
            names_src: !tail.src_pod.is_empty() || !tail.src_node.is_empty(),
            names_dst: !tail.dst_pod.is_empty() || !tail.dst_node.is_empty(),
            flow_type: tail.flow_type,
            egress: tail.egress_action,
            ingress: tail.ingress_action,
        }
    }
}

impl Half {
    /// The half's role. `None` if it names neither end and shows no translation, as foreign exporters do.
    pub fn role(&self) -> Option<Role> {
        if self.facts.names_src || (self.translated && !self.facts.names_dst) {
            Some(Role::Source)
        } else if self.facts.names_dst {
            Some(Role::Destination)
        } else {
            None
        }
    }

    /// Whether a partner is to be waited for.
    pub fn needs_partner(&self) -> bool {
        let two_nodes = match self.facts.flow_type {
            FlowType::InterNode => true,
            FlowType::FromExternal => self.translated || self.src_is_other_node,
            FlowType::Unknown | FlowType::IntraNode | FlowType::ToExternal | FlowType::Other(_) => false,
        };
        let knows_both = self.facts.names_dst && (self.facts.names_src || self.translated);
        two_nodes && !knows_both && !self.is_all_there_will_be()
    }

    /// The packets never left the source Node, or a rule that the half names settled the matter. What the destination's Node saw denied,
    /// the source's Node saw leave, and of a reject the answer: its half is on its way, and the flow's number is that one's.
    fn is_all_there_will_be(&self) -> bool {
        let denied = |action| matches!(action, RuleAction::Drop | RuleAction::Reject);
        let stopped = matches!(self.status, ForwardingStatus::Failed | ForwardingStatus::Dropped);
        let seen = stopped && self.role() == Some(Role::Source);
        seen || denied(self.facts.egress) || self.facts.ingress == RuleAction::Reject
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(flow_type: FlowType, names: &str) -> Half {
        Half {
            facts: Facts {
                names_src: names.contains('s'),
                names_dst: names.contains('d'),
                flow_type,
                ..Facts::default()
            },
            status: ForwardingStatus::Forwarded,
            translated: false,
            src_is_other_node: false,
        }
    }

    #[test]
    fn flows_between_nodes_need_both_halves() {
        assert!(half(FlowType::InterNode, "s").needs_partner());
        assert!(half(FlowType::InterNode, "d").needs_partner());
        assert!(!half(FlowType::InterNode, "sd").needs_partner(), "one half that knows both ends is enough");
        for flow_type in [FlowType::IntraNode, FlowType::ToExternal, FlowType::FromExternal, FlowType::Unknown] {
            assert!(!half(flow_type, "s").needs_partner(), "{flow_type:?}");
        }
    }

    #[test]
    fn masqueraded_flows_from_outside_need_both_halves() {
        let outside = half(FlowType::FromExternal, "");
        assert!(Half { translated: true, ..outside }.needs_partner(), "the Node that translated");
        let inside = half(FlowType::FromExternal, "d");
        assert!(Half { src_is_other_node: true, ..inside }.needs_partner(), "the Node of the Pod");
        assert!(!Half { translated: true, ..inside }.needs_partner(), "one Node did and saw both");
        assert_eq!(Half { translated: true, ..outside }.role(), Some(Role::Source));
        assert_eq!(Half { translated: true, ..inside }.role(), Some(Role::Destination));
    }

    #[test]
    fn what_was_stopped_has_one_half() {
        use ForwardingStatus::{Dropped, Failed, Rejected};
        let [src, dst] = ["s", "d"].map(|names| half(FlowType::InterNode, names));
        let needs = |half: Half, status| Half { status, ..half }.needs_partner();
        assert!(!needs(src, Dropped) && !needs(src, Failed), "dropped before it left");
        assert!(needs(src, Rejected), "a reset alone does not say whose");
        assert!(needs(dst, Rejected), "the source saw it leave, and the answer");
        assert!(needs(dst, Dropped), "the source let it out");

        let ruled = |egress, ingress| Half { facts: Facts { egress, ingress, ..src.facts }, ..src }.needs_partner();
        assert!(!ruled(RuleAction::Drop, RuleAction::None));
        assert!(!ruled(RuleAction::Reject, RuleAction::None));
        assert!(!ruled(RuleAction::None, RuleAction::Reject));
        assert!(ruled(RuleAction::Allow, RuleAction::Drop));
    }
}
