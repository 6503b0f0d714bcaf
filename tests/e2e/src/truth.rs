//! The ground truth: what nft, conntrack and the interfaces themselves counted. Each end of each cable has a counting
//! table at its netdev ingress hook that never drops: there skb->len is the layer-3 length, and fragments are counted
//! one by one. What a host sent is what arrived at the other end of its cable.
//!
//! Gives numbers; compares nothing.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cage::Namespace;
use crate::topology::Protocol;

/// Packets and layer-3 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Count {
    /// Packets, as skbs.
    pub packets: u64,
    /// Layer-3 bytes.
    pub bytes: u64,
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| sum + count)
    }
}

/// One direction of a flow, as the packets on one cable show it. For ICMP both ports are the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Direction {
    /// The protocol.
    pub protocol: Protocol,
    /// Where the packets come from.
    pub src: SocketAddr,
    /// Where they go.
    pub dst: SocketAddr,
}

impl Direction {
    /// The answers' direction.
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, ..self }
    }
}

/// The table that counts what arrives at an interface, for `nft -f`. Later fragments show no ports: they are counted by
/// their datagram, whose first fragment shows both.
pub(crate) fn counters(device: &str) -> String {
    let mut sets = String::new();
    let mut rules = String::new();
    for digit in ["4", "6"] {
        let (ip, protocol, icmp, datagram, first, later) = match digit {
            "4" => {
                ("ip", "ip protocol", "icmp", "ip id", "ip frag-off & 0x3fff == 0x2000", "ip frag-off & 0x1fff != 0")
            }
            _ => (
                "ip6",
                "meta l4proto",
                "icmpv6",
                "frag id",
                "frag frag-off 0 frag more-fragments 1",
                "frag frag-off != 0",
            ),
        };
        let pair = format!("{ip} saddr . {ip} daddr");
        let ports = format!("{pair} . {protocol} . th sport . th dport");
        for (kind, condition, key) in [
            ("flows", "meta l4proto { tcp, udp, sctp }", ports.clone()),
            ("pings", &format!("meta l4proto {icmp}"), format!("{pair} . {icmp} id")),
            // nft 1.0.6 lists no key of five parts that has a plain number in it, so each port is kept apart.
            ("sources", first, format!("{pair} . udp sport . {datagram}")),
            ("targets", first, format!("{pair} . udp dport . {datagram}")),
            ("parts", later, format!("{pair} . {protocol} . {datagram}")),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(sets, "  set {kind}{digit} {{ typeof {key}; size 65535; flags dynamic; counter; }}");
            let _ = writeln!(rules, "    meta protocol {ip} {condition} update @{kind}{digit} {{ {key} counter }}");
        }
    }
    format!(
        "table netdev {table} {{
{sets}  chain arrivals {{
    type filter hook ingress device \"{device}\" priority -500; policy accept;
{rules}  }}
}}
",
        table = table(device)
    )
}

fn table(device: &str) -> String {
    format!("arrivals-{device}")
}

/// A UDP datagram in fragments: its addresses and identification.
type Datagram = (IpAddr, IpAddr, u64);

/// The ports that a datagram's first fragment shows, and its later fragments.
#[derive(Debug, Default)]
struct Fragments {
    src_port: u16,
    dst_port: u16,
    later: Count,
}

/// What arrived at one interface so far.
#[derive(Debug, Default)]
pub struct Arrivals {
    flows: HashMap<Direction, Count>,
    fragmented: HashMap<Datagram, Fragments>,
}

impl Arrivals {
    /// Reads the counters of an interface.
    pub fn read(namespace: &Namespace, device: &str) -> Result<Self> {
        let text = namespace.run("nft", &["-j", "list", "table", "netdev", &table(device)])?;
        let listing: Value = serde_json::from_str(&text).context("nft's JSON")?;
        let mut arrivals = Self::default();
        for set in listing["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("set")) {
            let kind = set["name"].as_str().unwrap_or_default();
            for element in set["elem"].as_array().into_iter().flatten() {
                arrivals
                    .take(kind, &element["elem"])
                    .with_context(|| format!("an element of {kind} that the lab cannot read: {element}"))?;
            }
        }
        Ok(arrivals)
    }

    /// All packets of a flow's direction, the later fragments of its datagrams among them.
    pub fn flow(&self, direction: Direction) -> Count {
        let whole = self.flows.get(&direction).copied().unwrap_or_default();
        let Direction { protocol, src, dst } = direction;
        let of_flow = |((from, to, _), parts): &(&Datagram, &Fragments)| {
            protocol == Protocol::Udp
                && SocketAddr::new(*from, parts.src_port) == src
                && SocketAddr::new(*to, parts.dst_port) == dst
        };
        whole + self.fragmented.iter().filter(of_flow).map(|(_, parts)| parts.later).sum()
    }

    /// Every flow's direction that was seen.
    pub fn directions(&self) -> impl Iterator<Item = Direction> {
        self.flows.keys().copied()
    }

    fn take(&mut self, kind: &str, element: &Value) -> Option<()> {
        let count =
            Count { packets: element["counter"]["packets"].as_u64()?, bytes: element["counter"]["bytes"].as_u64()? };
        let key = element["val"]["concat"].as_array()?;
        let addr = |index: usize| key.get(index)?.as_str()?.parse::<IpAddr>().ok();
        let number = |index: usize| key.get(index)?.as_u64();
        let port = |index: usize| u16::try_from(number(index)?).ok();
        let (src, dst) = (addr(0)?, addr(1)?);
        let ends = |src_port, dst_port| (SocketAddr::new(src, src_port), SocketAddr::new(dst, dst_port));
        match kind.trim_end_matches(['4', '6']) {
            "pings" => {
                let (src, dst) = ends(port(2)?, port(2)?);
                self.flows.insert(Direction { protocol: Protocol::Icmp, src, dst }, count);
            }
            "sources" => self.fragmented.entry((src, dst, number(3)?)).or_default().src_port = port(2)?,
            "targets" => self.fragmented.entry((src, dst, number(3)?)).or_default().dst_port = port(2)?,
            "parts" => self.fragmented.entry((src, dst, number(3)?)).or_default().later = count,
            _ => {
                let protocol = protocol(key.get(2)?)?;
                let (src, dst) = ends(port(3)?, port(4)?);
                self.flows.insert(Direction { protocol, src, dst }, count);
            }
        }
        Some(())
    }
}

fn protocol(value: &Value) -> Option<Protocol> {
    match (value.as_str(), value.as_u64()) {
        (Some("tcp"), _) | (_, Some(6)) => Some(Protocol::Tcp),
        (Some("udp"), _) | (_, Some(17)) => Some(Protocol::Udp),
        (Some("sctp"), _) | (_, Some(132)) => Some(Protocol::Sctp),
        (Some("icmp" | "ipv6-icmp" | "icmpv6"), _) | (_, Some(1 | 58)) => Some(Protocol::Icmp),
        _ => None,
    }
}

/// One connection as a Node's conntrack has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The first packet's direction, before any translation.
    pub original: Direction,
    /// The direction of the answers as they come in: from the server after DNAT to the source after SNAT.
    pub reply: Direction,
    /// What went in the original direction.
    pub sent: Count,
    /// What came back.
    pub answered: Count,
}

/// The Node's conntrack table.
pub fn connections(node: &Namespace) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let text = node.run("conntrack", &["-L", "-f", family])?;
        connections.extend(text.lines().filter_map(connection));
    }
    Ok(connections)
}

/// The connections that a log of `conntrack -E -e DESTROY` tells the end of.
pub(crate) fn ended_connections(log: &Path) -> Result<Vec<Connection>> {
    let text = std::fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(text.lines().filter_map(|line| connection(line.trim_start().strip_prefix("[DESTROY]")?)).collect())
}

/// Whether somebody listens to netfilter's events, by what /proc/net/netlink says.
pub(crate) fn is_followed(sockets: &str) -> bool {
    const NETFILTER: &str = "12";
    sockets.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next() == Some(NETFILTER) && columns.nth(1).is_some_and(|groups| groups.contains(|c| c != '0'))
    })
}

/// A line of `conntrack -L`; those of protocols the lab does not send are not of interest.
fn connection(line: &str) -> Option<Connection> {
    let protocol = protocol(&Value::from(line.split_whitespace().next()?))?;
    let mut directions = Vec::new();
    let mut fields: HashMap<&str, &str> = HashMap::new();
    for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
        // Each direction begins with its source.
        if key == "src" && !fields.is_empty() {
            directions.push(std::mem::take(&mut fields));
        }
        fields.insert(key, value);
    }
    directions.push(fields);
    let [original, reply] = directions.try_into().ok()?;
    Some(Connection {
        original: direction(protocol, &original)?,
        reply: direction(protocol, &reply)?,
        sent: count(&original)?,
        answered: count(&reply)?,
    })
}

fn direction(protocol: Protocol, fields: &HashMap<&str, &str>) -> Option<Direction> {
    let port = |key: &str| fields.get(key).or_else(|| fields.get("id"))?.parse::<u16>().ok();
    let end = |addr: &str, key: &str| Some(SocketAddr::new(fields.get(addr)?.parse().ok()?, port(key)?));
    Some(Direction { protocol, src: end("src", "sport")?, dst: end("dst", "dport")? })
}

fn count(fields: &HashMap<&str, &str>) -> Option<Count> {
    Some(Count { packets: fields.get("packets")?.parse().ok()?, bytes: fields.get("bytes")?.parse().ok()? })
}

/// An interface's own counters. Bytes are those of its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct InterfaceCount {
    /// What came in.
    pub rx: Count,
    /// What went out.
    pub tx: Count,
}

/// The counters of a namespace's interfaces, by name.
pub fn interfaces(namespace: &Namespace) -> Result<HashMap<String, InterfaceCount>> {
    let text = namespace.run("ip", &["-s", "-j", "link", "show"])?;
    let listing: Vec<Value> = serde_json::from_str(&text).context("ip's JSON")?;
    let count = |stats: &Value| Count {
        packets: stats["packets"].as_u64().unwrap_or_default(),
        bytes: stats["bytes"].as_u64().unwrap_or_default(),
    };
    let entries = listing.iter().filter_map(|link| {
        let stats = &link["stats64"];
        Some((link["ifname"].as_str()?.to_owned(), InterfaceCount { rx: count(&stats["rx"]), tx: count(&stats["tx"]) }))
    });
    Ok(entries.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conntrack_line_gives_both_directions_with_their_counters() {
        let line = "tcp      6 86399 ESTABLISHED src=10.244.1.10 dst=10.96.0.10 sport=40001 dport=80 packets=6 bytes=500 \
                    src=10.244.2.11 dst=10.244.1.10 sport=8080 dport=40001 packets=5 bytes=900 [ASSURED] mark=0 use=1";
        let connection = connection(line).unwrap();
        assert_eq!(connection.original.dst, "10.96.0.10:80".parse().unwrap());
        assert_eq!(connection.reply.src, "10.244.2.11:8080".parse().unwrap());
        assert_eq!(connection.sent, Count { packets: 6, bytes: 500 });
        assert_eq!(connection.answered, Count { packets: 5, bytes: 900 });
    }

    #[test]
    fn an_echo_has_its_identifier_for_ports() {
        let line = "icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=77 packets=3 bytes=252 [UNREPLIED] \
                    src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=77 packets=0 bytes=0 mark=0 use=1";
        assert_eq!(connection(line).unwrap().original.src, "10.0.0.1:77".parse().unwrap());
    }
}
