//! What two Nodes' agents send in the benchmarks: both halves of flows between them, in an order that is shuffled anew each round, of
//! thousands of Pods, with extended elements.

use flow_common::{
    ipfix::exporter::{STREAM_LIMIT, Session, Settings},
    record::{
        Content, Cut, EncodedTail, EndReason, Extended, Family, FlowType, ForwardingStatus, Head, Tail, TcpState,
    },
};

/// When it begins, in seconds since 1970.
pub(crate) const BEGIN: u32 = 1_704_067_200;

/// Bytes of a read, or of a write.
pub(crate) const READ: usize = 256 * 1024;

pub(crate) struct Load {
    pub(crate) flows: u32,
    pub(crate) pods: u32,
    /// Every round has new flows, which end at once.
    pub(crate) ended: bool,
}

impl Load {
    /// Its flows in another order for each round and side.
    pub(crate) fn order(&self, round: u32, side: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.flows).collect();
        let mut state = u64::from(round * 2 + side + 77);
        for at in (1..order.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(at, (state % (at as u64 + 1)) as usize);
        }
        order
    }

    /// What a side knows of each Pod's flows.
    pub(crate) fn tails(&self, side: u32) -> Vec<EncodedTail> {
        let state = if self.ended { TcpState::Closed } else { TcpState::Established };
        let tail = |pod: u32| {
            let names = match side {
                0 => Tail {
                    src_pod: format!("frontend-7d8f9c6b5-{pod:05}"),
                    src_namespace: "shop".into(),
                    src_node: "node-a".into(),
                    service_port: 80,
                    service: "shop/web:http".into(),
                    service_addr: [10, 96, 0, 10].into(),
                    ..Tail::default()
                },
                _ => Tail {
                    dst_pod: format!("backend-5c4d7b8f6-{pod:05}"),
                    dst_namespace: "shop".into(),
                    dst_node: "node-b".into(),
                    ..Tail::default()
                },
            };
            let tail = Tail { flow_type: FlowType::InterNode, tcp_state: state, ..names };
            tail.to_encoded(Family::V4, &mut Cut::default())
        };
        (0..self.pods).map(tail).collect()
    }

    /// A side's record of a flow of the order, and which of its tails that has.
    pub(crate) fn record(&self, flow: u32, round: u32, side: u32) -> (Head, usize, Extended) {
        let flow = if self.ended { flow + round * self.flows } else { flow };
        let told = u64::from(if self.ended { 1 } else { round });
        let mut head = Head {
            start_seconds: BEGIN,
            end_seconds: BEGIN + 5 * round,
            end_reason: if self.ended { EndReason::End } else { EndReason::Active },
            src_port: 32_768 + (flow % 28_000) as u16,
            dst_port: 8080,
            protocol: 6,
            src_addr: [10, 10, ((flow / 28_000) >> 8) as u8, (flow / 28_000) as u8].into(),
            dst_addr: [10, 20, (flow >> 4) as u8 & 63, (flow & 15) as u8].into(),
            ..Head::default()
        };
        head.set_totals([10 * told, 1_000 * told, 8 * told, 5_000 * told]);
        head.set_deltas([10, 1_000, 8, 5_000]);
        let extended = Extended {
            start_milliseconds: u64::from(BEGIN) * 1_000 + 3,
            end_milliseconds: u64::from(BEGIN + 5 * round) * 1_000 + 7,
            tcp_flags: 0x1b,
            reverse_tcp_flags: 0x1b,
            flow_id: (u64::from(flow) * 2 + u64::from(side) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            forwarding_status: ForwardingStatus::Forwarded,
            ..Extended::default()
        };
        (head, ((flow >> (4 * side)) % self.pods) as usize, extended)
    }
}

/// What an agent of this observation domain sends with, over a stream.
pub(crate) fn agent(domain: u32) -> Session {
    let mut session = Session::new(Settings {
        domain,
        content: Content::Agent,
        extended: true,
        accounting: false,
        message_limit: STREAM_LIMIT,
        template_resend: None,
    });
    session.begin(BEGIN);
    session
}

/// One side's messages with these flows of one round.
pub(crate) fn messages(
    load: &Load,
    flows: &[u32],
    (round, side): (u32, u32),
    tails: &[EncodedTail],
    agent: &mut Session,
) -> Vec<u8> {
    let mut sent = Vec::new();
    for flow in flows {
        let (head, tail, extended) = load.record(*flow, round, side);
        agent.push(&head, &tails[tail], &extended).expect("it fits");
        if agent.len() > READ {
            agent.finish();
            sent.extend_from_slice(agent.bytes());
            agent.clear();
        }
    }
    agent.finish();
    sent.extend_from_slice(agent.bytes());
    agent.clear();
    sent
}
