//! Names of drop reasons and what they mean for a flow, by the running kernel's types: the numbers change with every version.

use std::collections::HashMap;

use flow_common::abi::drop::{BY_FAILURE, BY_RULE, REASON_NETFILTER};

use crate::kernel::btf::Btf;

/// The enumeration that holds the common reasons.
const COMMON: &str = "skb_drop_reason";
const NOT_SPECIFIED: &[u8] = b"SKB_DROP_REASON_NOT_SPECIFIED";
/// What those of [`COMMON`] have before their name.
const PREFIX: &str = "SKB_DROP_REASON_";
/// What netfilter's is called, on kernels without reasons as well.
const NETFILTER: &str = "NETFILTER_DROP";

/// A rule of somebody's says so: netfilter, programs on tc, XDP, sockets and control groups, security modules, Open vSwitch (of
/// which a flow without actions is the last action that is reached).
const RULES: [&str; 9] = [
    NETFILTER,
    "TC_INGRESS",
    "TC_EGRESS",
    "XDP",
    "SOCKET_FILTER",
    "BPF_CGROUP_EGRESS",
    "SECURITY_HOOK",
    "OVS_DROP_LAST_ACTION",
    "OVS_DROP_EXPLICIT",
];

/// The packet was refused or lost, which may be why a connection fails. What only looks like a loss (old or doubled TCP data)
/// is not among them.
const FAILURES: [&str; 26] = [
    "NO_SOCKET",
    "UNHANDLED_PROTO",
    "IP_CSUM",
    "TCP_CSUM",
    "UDP_CSUM",
    "ICMP_CSUM",
    "IP_INHDR",
    "IP_RPFILTER",
    "IP_OUTNOROUTES",
    "IP_INADDRERRORS",
    "IP_INNOROUTES",
    "NEIGH_CREATEFAIL",
    "NEIGH_FAILED",
    "NEIGH_QUEUEFULL",
    "NEIGH_DEAD",
    "XFRM_POLICY",
    "QDISC_DROP",
    "CPU_BACKLOG",
    "FULL_RING",
    "DEV_READY",
    "NOMEM",
    "PKT_TOO_BIG",
    "SOCKET_RCVBUFF",
    "SOCKET_BACKLOG",
    "PROTO_MEM",
    "LISTEN_OVERFLOW",
];

/// What a reason means for the packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A rule says that it is dropped.
    Rule,
    /// It did not arrive, but no rule says so.
    Failure,
    /// It is counted, and nothing follows from it.
    Counted,
}

impl Class {
    fn of(name: &str) -> Self {
        match name {
            name if RULES.contains(&name) => Self::Rule,
            name if FAILURES.contains(&name) => Self::Failure,
            _ => Self::Counted,
        }
    }

    /// As the map `reasons` has it.
    pub(super) fn number(self) -> Option<u32> {
        match self {
            Self::Rule => Some(BY_RULE),
            Self::Failure => Some(BY_FAILURE),
            Self::Counted => None,
        }
    }
}

/// All reasons that the kernel tells of.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    names: HashMap<u32, String>,
    /// The last number that is none; none on a kernel without reasons.
    pub(super) not_specified: Option<u32>,
}

impl Reasons {
    /// By the kernel's types.
    pub(super) fn of(btf: &Btf) -> Self {
        let mut names = HashMap::new();
        for (_, values) in btf.enumerations(|name| name.ends_with(b"drop_reason")) {
            for (name, value) in values {
                let name = String::from_utf8_lossy(name);
                // Ends of ranges and bits are no reasons.
                let is_bound = name.starts_with("__") || name.ends_with("_MAX") || name.ends_with("_MASK");
                if !is_bound {
                    let name = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
                    names.entry(value).or_insert(name);
                }
            }
        }
        names.insert(REASON_NETFILTER, NETFILTER.to_owned());
        let not_specified =
            btf.values(COMMON).into_iter().find_map(|(name, value)| (name == NOT_SPECIFIED).then_some(value));
        Self { names, not_specified }
    }

    /// The name of a reason, or its number.
    pub(super) fn name(&self, reason: u32) -> String {
        self.names.get(&reason).cloned().unwrap_or_else(|| match (reason >> 16, reason & 0xffff) {
            (0, number) => number.to_string(),
            (subsystem, number) => format!("{subsystem}:{number}"),
        })
    }

    /// What a reason means for a flow.
    pub(super) fn class(&self, reason: u32) -> Class {
        self.names.get(&reason).map_or(Class::Counted, |name| Class::of(name))
    }

    /// Reasons from which something follows, as the map `reasons` has them.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.names.iter().filter_map(|(reason, name)| Some((*reason, Class::of(name).number()?)))
    }
}
