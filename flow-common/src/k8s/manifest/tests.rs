//! Manifests as people and `kubectl` write them, and what is told of wrong ones.

use std::net::IpAddr;

use proptest::prelude::*;

use super::super::object::{Phase, ServiceType, TransportProtocol};
use super::*;
use crate::time::Timestamp;

fn yaml(text: &str) -> Result<Manifest, ManifestError> {
    parse(text, Syntax::Yaml, &mut Strings::default())
}

fn json(text: &str) -> Result<Manifest, ManifestError> {
    parse(text, Syntax::Json, &mut Strings::default())
}

fn names(manifest: &Manifest) -> Vec<String> {
    manifest.objects.iter().map(|(object, line)| format!("{line} {}", object.reference())).collect()
}

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  uid: 2f0d
  creationTimestamp: "2026-11-22T10:00:00Z"
  labels: {app: web, tier: "1"}
  annotations: {note: "kept out"}
spec:
  nodeName: node-1
  serviceAccountName: web
  containers:
  - name: web
    ports:
    - {name: http, containerPort: 80}
    - {containerPort: 81}
  initContainers:
  - {name: sidecar, restartPolicy: Always, ports: [{name: dns, containerPort: 53, protocol: UDP}]}
  - {name: once, ports: [{name: never, containerPort: 54}]}
status:
  phase: Running
  podIP: 10.244.1.7
  podIPs:
  - ip: 10.244.1.7
  - ip: 2001:db8::7
"#;

#[test]
fn a_pod_is_reduced() {
    let manifest = yaml(POD).unwrap();
    let [(Object::Pod(pod), 2)] = manifest.objects.as_slice() else { panic!("{manifest:?}") };
    assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid, &*pod.node), ("shop", "web-1", "2f0d", "node-1"));
    assert_eq!((pod.phase, pod.host_network, &*pod.service_account), (Phase::Running, false, "web"));
    let addresses: Vec<IpAddr> = ["10.244.1.7", "2001:db8::7"].map(|addr| addr.parse().unwrap()).to_vec();
    assert_eq!(pod.addresses, addresses);
    assert_eq!(pod.created, Timestamp::from_seconds(1_795_341_600));
    let labels: Vec<(&str, &str)> = pod.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(labels, [("app", "web"), ("tier", "1")]);
    let ports: Vec<_> = pod.ports.iter().map(|port| (&*port.name, port.protocol, port.port)).collect();
    assert_eq!(ports, [("http", TransportProtocol::Tcp, 80), ("dns", TransportProtocol::Udp, 53)]);
}

#[test]
fn a_service_is_reduced() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, '2001:db8::10']
  externalIPs: [198.51.100.7]
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{name: http, port: 80, nodePort: 30080, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.9}, {hostname: lb.example.org}]}}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: db}
spec: {clusterIP: None, ports: [{port: 5432}]}
";
    let manifest = yaml(text).unwrap();
    assert_eq!(names(&manifest), ["2 Service default/web", "15 Service db/headless"]);
    let Object::Service(web) = &manifest.objects[0].0 else { panic!("{manifest:?}") };
    assert_eq!((web.kind, web.external_traffic_local), (ServiceType::LoadBalancer, true));
    assert_eq!(
        (web.cluster_addresses.len(), web.external_addresses.len(), web.load_balancer_addresses.len()),
        (2, 1, 1)
    );
    let ports: Vec<_> = web.ports.iter().map(|port| (&*port.name, port.protocol, port.port, port.node_port)).collect();
    assert_eq!(ports, [("http", TransportProtocol::Tcp, 80, Some(30080)), ("dns", TransportProtocol::Udp, 53, None)]);
    let Object::Service(headless) = &manifest.objects[1].0 else { panic!("{manifest:?}") };
    assert!(headless.cluster_addresses.is_empty());
}

#[test]
fn a_node_and_a_slice_are_reduced() {
    let text = "
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, '2001:db8:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: Hostname, address: node-1}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-abc, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.244.1.7], conditions: {ready: true}}
- {addresses: [10.244.1.8], conditions: {ready: false}}
- {addresses: [10.244.1.9]}
ports: [{name: http, port: 8080}]
";
    let manifest = yaml(text).unwrap();
    let [(Object::Node(node), _), (Object::EndpointSlice(slice), _)] = manifest.objects.as_slice() else {
        panic!("{manifest:?}")
    };
    assert_eq!((node.addresses.len(), node.pod_networks.len()), (1, 2));
    assert_eq!((&*slice.service, slice.addresses.len(), slice.ports[0].port), ("web", 2, 8080));
}

#[test]
fn lists_documents_and_other_kinds() {
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 3}}
- {apiVersion: v1, kind: Node, metadata: {name: node-1}}
---
# nothing
---
apiVersion: v1
kind: PodList
items:
- {metadata: {name: a}, spec: {containers: []}}
- {metadata: {name: b}, spec: {containers: []}}
---
apiVersion: crd.example.org/v1
kind: Pod
items: 3
--- # and a text that looks like the end of a document
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data:
  text: |
    apiVersion: v1
     ---
---
{apiVersion: v1, kind: Namespace, metadata: {name: last}}";
    let manifest = yaml(text).unwrap();
    let expected = ["2 Namespace shop", "2 Node node-1", "11 Pod default/a", "11 Pod default/b", "29 Namespace last"];
    assert_eq!(names(&manifest), expected);
    assert_eq!(manifest.ignored, 3);
    assert_eq!(names(&yaml("").unwrap()), [""; 0]);
}

#[test]
fn json_as_kubectl_writes_it() {
    let text = r#"{
  "apiVersion": "v1",
  "items": [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "annotations": {"a": "\ud83d\ude00\/"}}},
    {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}
  ],
  "kind": "List"
}
	{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}"#;
    let manifest = json(text).unwrap();
    assert_eq!(names(&manifest), ["1 Namespace shop", "9 Node node-1"]);
    assert_eq!(manifest.ignored, 1);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    let said: Vec<String> = [
        yaml(&format!("{good}---\napiVersion: v1\nkind: Pod\n metadata: {{}}\n")),
        yaml(&format!("{good}---\napiVersion: v1\nkind: Pod\nmetadata: 3\n")),
        yaml(&format!("{good}---\n\n# and\nkind: Pod\nmetadata: {{name: a}}\n")),
        yaml("replicas: 3\n"),
        yaml("- a\n- b\n"),
        yaml("just text"),
        yaml("apiVersion: v1\nkind: Pod\nmetadata: {}\n"),
        yaml("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nmetadata: {name: b}\n"),
        yaml(&POD.replace("10.244.1.7\n  podIPs", "10.244.1\n  podIPs")),
        yaml(&POD.replace("2001:db8::7", "2001:db8:::7")),
        yaml(&POD.replace("containerPort: 80", "containerPort: 80000")),
        yaml(&POD.replace("containerPort: 80", "containerPort: http")),
        yaml(&POD.replace("UDP", "udp")),
        yaml("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  type: Cluster\n"),
        yaml("apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec:\n  podCIDR: 10.0.0.0\n"),
        yaml("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: [a]}}\n"),
        json("{\n\"apiVersion\": \"v1\",\n\"kind\": \"Pod\"\n\"metadata\": {}}"),
        json("{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}\n\n{\"apiVersion\": \"v1\",\n\"kind\": \"Pod\", \"metadata\": 3}"),
        json("3"),
    ]
    .into_iter()
    .map(|result| result.unwrap_err().to_string())
    .collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn the_example_of_the_documentation_is_a_manifest() {
    let text = include_str!("../../../../docs/kubernetes.md");
    let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(names(&yaml(example).unwrap()), ["1 Pod office/printer"]);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in any::<String>(), cut in 0..POD.len(), end in 0..POD.len()) {
        for text in [text, POD.get(cut..).unwrap_or_default().to_owned(), POD.get(..cut).unwrap_or_default().to_owned() + POD.get(end..).unwrap_or_default()] {
            for result in [yaml(&text), json(&text)] {
                if let Err(error) = result {
                    prop_assert!(error.line >= 1 && error.line <= text.lines().count() as u64 + 1, "{}", error);
                }
            }
        }
    }
}
