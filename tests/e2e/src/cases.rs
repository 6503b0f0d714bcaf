//! The traffic that the product is shown on: every kind, over every way, in both families. Takes nothing but the
//! topology; does what a case says and gives the report with what its record must say.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;
use crate::topology::{
    BULK, CLOSED, DNS, DROPPED_PORT, FAMILIES, Family, HTTP, Host, Node, Pod, Protocol, SCTP, ServicePort, TALK,
    after_dnat, cluster_ip,
};
use crate::traffic::{Kind, Outcome, Report, kernel_has_sctp};
use crate::wait::patience;

/// Who asks whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A Pod of node-a the server on its own Node.
    SameNode,
    /// A Pod of node-a the server on node-b.
    AcrossNodes,
    /// A Pod of node-a the Service, which chooses the server on its own Node.
    ServiceLocal,
    /// A Pod of node-a the Service, which chooses the server on node-b.
    ServiceRemote,
    /// A Pod of node-a the host outside.
    ToExternal,
    /// The host outside node-a's NodePort, which leads to the server on node-a.
    NodePortLocal,
    /// The host outside node-a's NodePort, which leads to the server on node-b.
    NodePortRemote,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SameNode,
        Self::AcrossNodes,
        Self::ServiceLocal,
        Self::ServiceRemote,
        Self::ToExternal,
        Self::NodePortLocal,
        Self::NodePortRemote,
    ];

    /// The Service's choice, where it is asked.
    fn backend(self) -> Node {
        match self {
            Self::AcrossNodes | Self::ServiceRemote | Self::NodePortRemote => Node::B,
            Self::SameNode | Self::ServiceLocal | Self::ToExternal | Self::NodePortLocal => Node::A,
        }
    }

    /// Who asks.
    pub fn client(self) -> Host {
        match self {
            Self::NodePortLocal | Self::NodePortRemote => Host::External,
            _ => Host::Pod(Pod::client(Node::A)),
        }
    }

    /// Who answers.
    pub fn server(self) -> Host {
        match self {
            Self::ToExternal => Host::External,
            _ => Host::Pod(Pod::server(self.backend())),
        }
    }

    /// Whether a Service stands between.
    pub fn is_service(self) -> bool {
        !matches!(self, Self::SameNode | Self::AcrossNodes | Self::ToExternal)
    }

    fn asked(self, family: Family, port: ServicePort) -> SocketAddr {
        match self {
            Self::SameNode | Self::AcrossNodes => {
                SocketAddr::new(Pod::server(self.backend()).addr(family), port.target)
            }
            Self::ServiceLocal | Self::ServiceRemote => SocketAddr::new(cluster_ip(family), port.port),
            Self::ToExternal => SocketAddr::new(Host::External.addr(family), port.target),
            Self::NodePortLocal | Self::NodePortRemote => SocketAddr::new(Node::A.addr(family), port.node_port),
        }
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// One HTTP request on a connection of its own.
    ShortHttp,
    /// Many HTTP requests on one connection.
    KeptAliveHttp,
    /// A transfer in segments larger than a packet may be (GSO).
    Bulk,
    /// UDP questions and answers.
    Udp,
    /// Ping.
    Ping,
    /// UDP datagrams and answers that no packet can hold.
    Fragments,
    /// SCTP questions and answers.
    Sctp,
    /// A connection to a port nobody listens on.
    Refused,
    /// A connection that the Nodes' rules drop.
    Dropped,
}

impl Item {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::ShortHttp,
        Self::KeptAliveHttp,
        Self::Bulk,
        Self::Udp,
        Self::Ping,
        Self::Fragments,
        Self::Sctp,
        Self::Refused,
        Self::Dropped,
    ];

    /// Why this machine cannot show it, if so.
    pub fn skipped_because(self) -> Option<&'static str> {
        (self == Self::Sctp && !kernel_has_sctp()).then_some("this kernel has no SCTP (CONFIG_IP_SCTP)")
    }

    /// Whether the item makes sense over a way: what has no port of the Service cannot ask it.
    pub fn goes(self, way: Way) -> bool {
        match self {
            Self::Ping | Self::Dropped => !way.is_service(),
            _ => true,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::ShortHttp => Kind::Http { requests: 1, bytes: 5_000 },
            // So many that they take more than a tick of the kernel's, by which flows are timed.
            Self::KeptAliveHttp => Kind::Http { requests: 100, bytes: 3_000 },
            Self::Bulk => Kind::Bulk { bytes: 4_000_000 },
            Self::Udp => Kind::Echo { protocol: Protocol::Udp, exchanges: 17, bytes: 300 },
            Self::Ping => Kind::Ping { count: 7, bytes: 56 },
            Self::Fragments => Kind::Echo { protocol: Protocol::Udp, exchanges: 5, bytes: 4_000 },
            Self::Sctp => Kind::Echo { protocol: Protocol::Sctp, exchanges: 11, bytes: 200 },
            Self::Refused => Kind::Connect { patience_ms: 10_000 },
            Self::Dropped => Kind::Connect { patience_ms: 2_500 },
        }
    }

    fn port(self) -> ServicePort {
        match self {
            Self::ShortHttp | Self::KeptAliveHttp => HTTP,
            Self::Bulk => BULK,
            Self::Udp | Self::Fragments => DNS,
            Self::Sctp => SCTP,
            Self::Ping => ServicePort { target: 0, ..TALK },
            Self::Refused => CLOSED,
            Self::Dropped => ServicePort { target: DROPPED_PORT, ..TALK },
        }
    }

    /// What the client must say became of it.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Refused => Outcome::Refused,
            Self::Dropped => Outcome::Unanswered,
            _ => Outcome::Answered,
        }
    }
}

/// One item over one way in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What is sent.
    pub item: Item,
    /// Who asks whom.
    pub way: Way,
    /// In which family.
    pub family: Family,
}

impl Case {
    /// All that make sense.
    pub fn all() -> impl Iterator<Item = Self> {
        Item::ALL.into_iter().flat_map(Self::of)
    }

    /// Those of one item.
    pub fn of(item: Item) -> impl Iterator<Item = Self> {
        Way::ALL
            .into_iter()
            .filter(move |way| item.goes(*way))
            .flat_map(move |way| FAMILIES.map(|family| Self { item, way, family }))
    }

    /// Sends it.
    pub fn run(self, lab: &Lab) -> Result<Done> {
        let Self { item, way, family } = self;
        let host = way.client();
        let from = lab.client(&host, family, way.backend());
        let mut asked = way.asked(family, item.port());
        if item == Item::Ping {
            // Both ends of an echo have the identifier for a port.
            asked.set_port(from.port());
        }
        let report = lab.ask(&host, item.kind(), from, asked)?;
        ensure!(report.outcome == item.outcome(), "{:?} expected: {report:?}", item.outcome());
        let server = after_dnat(asked, report.protocol, from.port());
        Ok(Done { case: self, host, report, server })
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.item, self.way, self.family)
    }
}

/// A case that was sent.
#[derive(Clone, Debug)]
pub struct Done {
    /// Which one.
    pub case: Case,
    /// Who asked.
    pub host: Host,
    /// What the client says.
    pub report: Report,
    /// Who answered: the destination after DNAT.
    pub server: SocketAddr,
}

/// Sends all of them, several at a time.
pub fn run(lab: &Lab, cases: impl Iterator<Item = Case>) -> Result<Vec<Done>> {
    // nft's counters of new flows take memory that the kernel only gets ready beside the packets: a slow machine is not to ask for much
    // of it at once.
    let at_once = 6_u32.div_ceil(patience());
    let cases = Mutex::new(cases.collect::<Vec<_>>().into_iter());
    let next = || cases.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || -> Result<Vec<Done>> {
        std::iter::from_fn(next).map(|case| case.run(lab).with_context(|| case.to_string())).collect()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let mut done = Vec::new();
        for worker in workers {
            done.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(done)
    })
}
