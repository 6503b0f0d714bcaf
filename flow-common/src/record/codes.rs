//! Numbers and names with a meaning. A value that is not in the list is kept as it came.

use std::fmt;

macro_rules! codes {
    ($(
        $(#[doc = $doc:literal])+
        pub enum $code:ident {
            $(#[doc = $none_doc:literal])+ $none:ident = 0 $none_text:literal,
            $( $(#[doc = $variant_doc:literal])+ $variant:ident = $number:literal $text:literal, )+
        }
    )+) => { $(
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $code {
            $(#[doc = $none_doc])+
            #[default]
            $none,
            $( $(#[doc = $variant_doc])+ $variant, )+
            /// A number without a meaning here.
            Other(u8),
        }

        impl $code {
            pub(super) const ABSENT: $code = $code::$none;

            /// The number on the wire.
            #[inline]
            pub const fn code(self) -> u8 {
                match self {
                    $code::$none => 0,
                    $( $code::$variant => $number, )+
                    $code::Other(number) => number,
                }
            }
        }

        impl From<u8> for $code {
            #[inline]
            fn from(number: u8) -> $code {
                match number {
                    0 => $code::$none,
                    $( $number => $code::$variant, )+
                    other => $code::Other(other),
                }
            }
        }

        impl fmt::Display for $code {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $code::$none => out.pad($none_text),
                    $( $code::$variant => out.pad($text), )+
                    $code::Other(number) => number.fmt(out),
                }
            }
        }
    )+ };
}

codes! {
    /// Why a record was sent.
    pub enum EndReason {
        /// Not said.
        None = 0 "",
        /// No packet for the idle timeout.
        Idle = 1 "idle",
        /// The active timeout passed; the flow goes on.
        Active = 2 "active",
        /// The connection is over.
        End = 3 "end",
        /// The sender stops.
        Forced = 4 "forced",
        /// The sender needed the room.
        Resources = 5 "resources",
    }

    /// Where the two ends of a flow are.
    pub enum FlowType {
        /// Not known.
        Unknown = 0 "",
        /// Two Pods of one Node.
        IntraNode = 1 "intra-node",
        /// Two Pods of two Nodes.
        InterNode = 2 "inter-node",
        /// A Pod to something that is none.
        ToExternal = 3 "to-external",
        /// Something that is no Pod to a Pod.
        FromExternal = 4 "from-external",
    }

    /// Kind of a network policy.
    pub enum PolicyType {
        /// No policy.
        None = 0 "",
        /// NetworkPolicy of Kubernetes.
        Kubernetes = 1 "k8s",
        /// Antrea's NetworkPolicy.
        Antrea = 2 "antrea",
        /// Antrea's ClusterNetworkPolicy.
        AntreaCluster = 3 "antrea-cluster",
        /// ClusterNetworkPolicy, AdminNetworkPolicy or BaselineAdminNetworkPolicy of Kubernetes.
        Admin = 4 "admin",
    }

    /// What a policy's rule does.
    pub enum RuleAction {
        /// No rule.
        None = 0 "",
        /// Let pass.
        Allow = 1 "allow",
        /// Drop silently.
        Drop = 2 "drop",
        /// Drop and answer so.
        Reject = 3 "reject",
    }

    /// What became of a connection's packets.
    pub enum ForwardingStatus {
        /// Unanswered or unknown.
        Unknown = 0 "",
        /// Passed on.
        Forwarded = 64 "forwarded",
        /// Dropped for another reason than a rule.
        Failed = 128 "failed",
        /// Rejected by a rule.
        Rejected = 129 "rejected",
        /// Dropped by a rule.
        Dropped = 130 "dropped",
    }
}

impl ForwardingStatus {
    /// Whether the connection did not come through, as far as is known.
    pub const fn is_denied(self) -> bool {
        matches!(self, Self::Failed | Self::Rejected | Self::Dropped)
    }
}

/// State of a TCP connection. On the wire a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TcpState {
    /// Not TCP, or not known.
    #[default]
    None,
    /// LISTEN.
    Listen,
    /// SYN-SENT.
    SynSent,
    /// SYN-RECEIVED.
    SynReceived,
    /// ESTABLISHED.
    Established,
    /// FIN-WAIT-1.
    FinWait1,
    /// FIN-WAIT-2.
    FinWait2,
    /// CLOSE-WAIT.
    CloseWait,
    /// CLOSING.
    Closing,
    /// LAST-ACK.
    LastAck,
    /// TIME-WAIT.
    TimeWait,
    /// CLOSED.
    Closed,
    /// A name that is not in the list.
    Other(OtherState),
}

/// A foreign sender's name of a state, at most 23 bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OtherState {
    bytes: [u8; OtherState::LIMIT],
    length: u8,
}

impl OtherState {
    const LIMIT: usize = 23;

    fn new(name: &str) -> OtherState {
        let name = super::limit::cut_text(name, OtherState::LIMIT);
        let mut bytes = [0; OtherState::LIMIT];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        OtherState { bytes, length: u8::try_from(name.len()).unwrap_or(0) }
    }

    fn name(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.length)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl TcpState {
    const NAMED: [(TcpState, &'static str); 12] = [
        (TcpState::None, ""),
        (TcpState::Listen, "LISTEN"),
        (TcpState::SynSent, "SYN-SENT"),
        (TcpState::SynReceived, "SYN-RECEIVED"),
        (TcpState::Established, "ESTABLISHED"),
        (TcpState::FinWait1, "FIN-WAIT-1"),
        (TcpState::FinWait2, "FIN-WAIT-2"),
        (TcpState::CloseWait, "CLOSE-WAIT"),
        (TcpState::Closing, "CLOSING"),
        (TcpState::LastAck, "LAST-ACK"),
        (TcpState::TimeWait, "TIME-WAIT"),
        (TcpState::Closed, "CLOSED"),
    ];

    /// The name on the wire.
    pub fn name(&self) -> &str {
        if let TcpState::Other(other) = self {
            return other.name();
        }
        TcpState::NAMED.iter().find(|(state, _)| state == self).map_or("", |(_, name)| name)
    }
}

impl From<&str> for TcpState {
    fn from(name: &str) -> TcpState {
        let known = TcpState::NAMED.iter().find(|(_, known)| *known == name);
        known.map_or_else(|| TcpState::Other(OtherState::new(name)), |(state, _)| *state)
    }
}

impl fmt::Display for TcpState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_keeps_every_number() {
        for number in 0..=255 {
            assert_eq!(EndReason::from(number).code(), number);
            assert_eq!(FlowType::from(number).code(), number);
            assert_eq!(PolicyType::from(number).code(), number);
            assert_eq!(RuleAction::from(number).code(), number);
            assert_eq!(ForwardingStatus::from(number).code(), number);
        }
        assert_eq!(ForwardingStatus::from(130), ForwardingStatus::Dropped);
    }

    #[test]
    fn a_state_keeps_every_name() {
        for name in ["", "ESTABLISHED", "TIME-WAIT", "SYN_SENT2", "établi"] {
            assert_eq!(TcpState::from(name).name(), name);
        }
        assert_eq!(TcpState::from("LAST-ACK"), TcpState::LastAck);
        assert_eq!(TcpState::from("a name beyond the limit, cut").name(), "a name beyond the limit");
    }
}
