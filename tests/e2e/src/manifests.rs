//! The lab's objects as Kubernetes would show them: a folder of ordinary manifests, one file a kind.
//!
//! Takes the Pods there are; gives text. Labels, phases and times are as a cluster has them.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::topology::{FAMILIES, Family, Node, Pod, Protocol, SERVICE, SERVICE_PORTS, cluster_ip};

/// Writes the folder. Files are replaced as a whole, so a reader never sees half of one.
pub(crate) fn write(folder: &Path, pods: &[Pod]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    replace(&folder.join("nodes.yaml"), &Node::ALL.map(node).concat())?;
    replace(&folder.join("namespaces.yaml"), &["shop", "ops"].map(namespace).concat())?;
    replace(&folder.join("pods.yaml"), &pods.iter().map(pod).collect::<String>())?;
    replace(&folder.join("services.yaml"), &(service() + &FAMILIES.map(endpoint_slice).concat()))
}

/// Writes a file beside and renames it into place.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).with_context(|| format!("cannot write {}", beside.display()))?;
    std::fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

fn node(node: Node) -> String {
    let name = node.name();
    let [ip4, ip6] = FAMILIES.map(|family| node.addr(family));
    let [cidr4, cidr6] = FAMILIES.map(|family| node.pod_cidr(family));
    format!(
        "---
apiVersion: v1
kind: Node
metadata:
  name: {name}
  uid: 00000000-0000-4000-8000-00000000010{digit}
spec:
  podCIDR: {cidr4}
  podCIDRs: [\"{cidr4}\", \"{cidr6}\"]
status:
  addresses:
    - {{type: InternalIP, address: \"{ip4}\"}}
    - {{type: InternalIP, address: \"{ip6}\"}}
    - {{type: Hostname, address: {name}}}
",
        digit = node.digit()
    )
}

fn namespace(name: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Namespace
metadata:
  name: {name}
  labels: {{kubernetes.io/metadata.name: {name}}}
"
    )
}

fn pod(pod: &Pod) -> String {
    let Pod { name, namespace, node, host } = pod;
    let role = name.split('-').next().unwrap_or(name);
    let [ip4, ip6] = FAMILIES.map(|family| pod.addr(family));
    format!(
        "---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  uid: 00000000-0000-4000-8000-0000000002{digit}{host:02}
  creationTimestamp: \"2020-01-01T00:00:00Z\"
  labels: {{app: {role}}}
spec:
  nodeName: {node}
  containers:
    - name: main
      image: lab
status:
  phase: Running
  startTime: \"2020-01-01T00:00:01Z\"
  hostIP: \"{host_ip}\"
  podIP: \"{ip4}\"
  podIPs:
    - {{ip: \"{ip4}\"}}
    - {{ip: \"{ip6}\"}}
",
        digit = node.digit(),
        node = node.name(),
        host_ip = node.addr(Family::V4),
    )
}

fn service() -> String {
    let (namespace, name) = SERVICE;
    let [ip4, ip6] = FAMILIES.map(cluster_ip);
    let mut text = format!(
        "---
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
  uid: 00000000-0000-4000-8000-000000000300
spec:
  type: NodePort
  externalTrafficPolicy: Cluster
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: \"{ip4}\"
  clusterIPs: [\"{ip4}\", \"{ip6}\"]
  selector: {{app: server}}
  ports:
"
    );
    for port in &SERVICE_PORTS {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "    - {{name: {}, protocol: {}, port: {}, targetPort: {}, nodePort: {}}}",
            port.name,
            upper(port.protocol),
            port.port,
            port.target,
            port.node_port
        );
    }
    text
}

fn endpoint_slice(family: Family) -> String {
    let (namespace, name) = SERVICE;
    let (suffix, kind) = match family {
        Family::V4 => ("v4", "IPv4"),
        Family::V6 => ("v6", "IPv6"),
    };
    let mut text = format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-{suffix}
  namespace: {namespace}
  labels: {{kubernetes.io/service-name: {name}}}
addressType: {kind}
ports:
"
    );
    for port in &SERVICE_PORTS {
        let _ =
            writeln!(text, "  - {{name: {}, protocol: {}, port: {}}}", port.name, upper(port.protocol), port.target);
    }
    text += "endpoints:\n";
    for pod in Node::ALL.map(Pod::server) {
        let _ = write!(
            text,
            "  - addresses: [\"{}\"]
    conditions: {{ready: true, serving: true, terminating: false}}
    nodeName: {}
    targetRef: {{kind: Pod, namespace: {}, name: {}}}
",
            pod.addr(family),
            pod.node.name(),
            pod.namespace,
            pod.name
        );
    }
    text
}

fn upper(protocol: Protocol) -> String {
    protocol.name().to_ascii_uppercase()
}
