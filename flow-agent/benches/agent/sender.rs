//! Sends UDP packets of many flows at an even pace. Tells at its end how many were sent.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Packets are sent in lots, one each 10 ms.
const LOT: Duration = Duration::from_millis(10);

/// Ports of one address.
const PORTS: u32 = 50_000;

/// Which packets.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Plan {
    /// Flows that packets are spread over, one after the other.
    flows: u32,
    /// Number of the first flow.
    first: u32,
    /// Packets a second.
    rate: u32,
    /// For how long.
    seconds: u64,
}

impl Plan {
    /// Each of the flows has a packet in each round of so many seconds.
    pub(super) fn rounds(flows: u32, round: u64, seconds: u64) -> Self {
        Self { flows, first: 0, rate: flows / u32::try_from(round).unwrap_or(1), seconds }
    }

    /// Each packet is a flow of its own, none of those of [`Plan::rounds`].
    pub(super) fn new_flows(rate: u32, seconds: u64) -> Self {
        Self { flows: u32::MAX / 2, first: u32::MAX / 4, rate, seconds }
    }

    /// As the program takes it.
    pub(super) fn arguments(&self) -> [String; 4] {
        [self.flows.to_string(), self.first.to_string(), self.rate.to_string(), self.seconds.to_string()]
    }
}

/// Sends.
pub(super) fn run(plan: &Plan) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:40000")?;
    let begin = Instant::now();
    let (mut sent, mut next) = (0u64, 0u32);
    while begin.elapsed() < Duration::from_secs(plan.seconds) {
        let due = begin.elapsed().as_millis() as u64 * u64::from(plan.rate) / 1_000;
        while sent < due {
            socket.send_to(b"bench", flow(plan.first + next))?;
            next = (next + 1) % plan.flows;
            sent += 1;
        }
        std::thread::sleep(LOT);
    }
    println!("{sent}");
    Ok(())
}

/// A flow is told by where it goes: an address behind the Node, which hands it on.
fn flow(number: u32) -> SocketAddrV4 {
    let addr = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 1)) + number / PORTS);
    let port = 1_024 + number % PORTS;
    SocketAddrV4::new(addr, u16::try_from(port).unwrap_or(u16::MAX))
}
