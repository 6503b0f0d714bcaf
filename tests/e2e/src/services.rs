//! The Nodes' nft rules: Services as kube-proxy's nft mode makes them, the CNI's masquerade and one dropped port.
//! Gives text for `nft -f`; nothing is run here.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::topology::{DROPPED_PORT, FAMILIES, Family, Node, Pod, SERVICE_PORTS, ServicePort, cluster_ip};

/// The mark of packets that postrouting gives the Node's address, as kube-proxy has it.
const MASQUERADE_MARK: &str = "0x4000";

/// The whole rule set of a Node.
pub(crate) fn rules(node: Node) -> String {
    let mut text = FAMILIES.map(|family| nat(node, family)).concat();
    text += &format!(
        "table inet rules {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    tcp dport {DROPPED_PORT} drop
  }}
}}
"
    );
    text
}

fn nat(node: Node, family: Family) -> String {
    let ip = family.nft();
    let mut text = format!("table {ip} kube-proxy {{\n");
    let mut entries = String::new();
    for port in &SERVICE_PORTS {
        text += &service_chains(port, family);
        let (protocol, name) = (port.protocol.name(), port.name);
        // Writing to a String cannot fail.
        let _ = writeln!(
            entries,
            "    {ip} daddr {} {protocol} dport {} goto service-{name}",
            cluster_ip(family),
            port.port
        );
        let _ = writeln!(entries, "    fib daddr type local {protocol} dport {} goto external-{name}", port.node_port);
    }
    let masquerade = match family {
        // As most clusters do: IPv4 to the outside leaves with the Node's address, IPv6 with the Pod's.
        Family::V4 => {
            let pods = node.pod_cidr(family);
            format!("    ip saddr {pods} ip daddr != {{ 10.244.0.0/16, 172.31.0.0/16 }} masquerade\n")
        }
        Family::V6 => String::new(),
    };
    text += &format!(
        "  chain services {{
{entries}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & {MASQUERADE_MARK} != 0 masquerade fully-random
{masquerade}  }}
}}
"
    );
    text
}

/// The endpoints, the choice among them (topology::backend_of) and the way in from outside.
fn service_chains(port: &ServicePort, family: Family) -> String {
    let (protocol, name) = (port.protocol.name(), port.name);
    let [a, b] = Node::ALL.map(|node| SocketAddr::new(Pod::server(node).addr(family), port.target));
    format!(
        "  chain endpoint-{name}-a {{
    meta l4proto {protocol} dnat to {a}
  }}
  chain endpoint-{name}-b {{
    meta l4proto {protocol} dnat to {b}
  }}
  chain service-{name} {{
    {protocol} sport & 1 vmap {{ 0 : goto endpoint-{name}-a, 1 : goto endpoint-{name}-b }}
  }}
  chain external-{name} {{
    meta mark set meta mark | {MASQUERADE_MARK}
    goto service-{name}
  }}
"
    )
}
