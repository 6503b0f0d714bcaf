//! From a Kubernetes object as the API has it to its reduced form.
//!
//! Addresses, ports and protocols are parsed here, once; what is none is an error that names the field. Nothing else
//! is checked: the API server does that.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::object::{
    EndpointSlice, Labels, NamedPort, Namespace, Node, Phase, Pod, Port, Service, ServiceType, TransportProtocol,
};
use crate::cidr::Cidr;
use crate::time::Timestamp;

/// The label that names an EndpointSlice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A value that is not what its field takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} is {wrong}")]
pub struct ValueError {
    /// The field's path, as the API's documentation has it.
    pub field: &'static str,
    /// What stands there.
    pub value: String,
    /// What is wrong with it.
    pub wrong: &'static str,
}

/// Strings that many objects have in common, each kept once.
#[derive(Debug, Default)]
pub struct Strings {
    known: HashSet<Arc<str>, foldhash::fast::RandomState>,
    /// When there are this many, those that nobody else has are dropped.
    sweep_at: usize,
}

impl Strings {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = (self.known.len() * 2).max(1024);
        }
        let text: Arc<str> = text.into();
        self.known.insert(text.clone());
        text
    }

    fn optional(&mut self, text: Option<&String>) -> Arc<str> {
        self.share(text.map_or("", String::as_str))
    }

    fn labels(&mut self, labels: Option<&BTreeMap<String, String>>) -> Labels {
        labels.into_iter().flatten().map(|(key, value)| (self.share(key), self.share(value))).collect()
    }
}

/// Reduces a Pod.
pub(super) fn pod(pod: &core::Pod, strings: &mut Strings) -> Result<Pod, ValueError> {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let mut addresses = addresses("status.podIP", status.and_then(|status| status.pod_ip.as_ref()))?;
    let listed = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    addresses.extend(self::addresses("status.podIPs", listed.map(|addr| &addr.ip))?);
    Ok(Pod {
        namespace: namespace_of(&pod.metadata, strings),
        name: strings.optional(pod.metadata.name.as_ref()),
        uid: strings.optional(pod.metadata.uid.as_ref()),
        labels: strings.labels(pod.metadata.labels.as_ref()),
        node: strings.optional(spec.and_then(|spec| spec.node_name.as_ref())),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
        service_account: strings.optional(spec.and_then(|spec| spec.service_account_name.as_ref())),
        phase: match status.and_then(|status| status.phase.as_deref()) {
            Some("Pending") => Phase::Pending,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            _ => Phase::Running,
        },
        addresses: distinct(addresses),
        created: pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::ZERO, timestamp),
        deletion: pod.metadata.deletion_timestamp.as_ref().map(timestamp),
        ports: spec.map_or(Ok(Vec::new()), |spec| named_ports(spec, strings))?,
    })
}

/// Reduces a Namespace.
pub(super) fn namespace(namespace: &core::Namespace, strings: &mut Strings) -> Namespace {
    Namespace {
        name: strings.optional(namespace.metadata.name.as_ref()),
        labels: strings.labels(namespace.metadata.labels.as_ref()),
    }
}

/// Reduces a Node.
pub(super) fn node(node: &core::Node, strings: &mut Strings) -> Result<Node, ValueError> {
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let listed = listed.filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"));
    let spec = node.spec.as_ref();
    let networks = spec.and_then(|spec| spec.pod_cidr.as_ref()).into_iter();
    let networks = networks.chain(spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten());
    let networks: Result<Vec<Cidr>, ValueError> = networks
        .map(|text| text.parse().map_err(|_| wrong("spec.podCIDRs", text, "no network such as 10.244.1.0/24")))
        .collect();
    Ok(Node {
        name: strings.optional(node.metadata.name.as_ref()),
        labels: strings.labels(node.metadata.labels.as_ref()),
        addresses: distinct(addresses("status.addresses", listed.map(|address| &address.address))?),
        pod_networks: distinct(networks?),
    })
}

/// Reduces a Service.
pub(super) fn service(service: &core::Service, strings: &mut Strings) -> Result<Service, ValueError> {
    let empty = core::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let load_balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = load_balancer.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let clusters = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
    let clusters = clusters.filter(|addr| !matches!(addr.as_str(), "" | "None"));
    let ports: Result<Vec<Port>, ValueError> = spec
        .ports
        .iter()
        .flatten()
        .map(|port| {
            Ok(Port {
                name: strings.optional(port.name.as_ref()),
                protocol: protocol("spec.ports.protocol", port.protocol.as_deref())?,
                port: port_number("spec.ports.port", port.port)?,
                node_port: match port.node_port {
                    None | Some(0) => None,
                    Some(number) => Some(port_number("spec.ports.nodePort", number)?),
                },
            })
        })
        .collect();
    Ok(Service {
        namespace: namespace_of(&service.metadata, strings),
        name: strings.optional(service.metadata.name.as_ref()),
        selector: strings.labels(spec.selector.as_ref()),
        kind: match spec.type_.as_deref() {
            None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
            Some("NodePort") => ServiceType::NodePort,
            Some("LoadBalancer") => ServiceType::LoadBalancer,
            Some("ExternalName") => ServiceType::ExternalName,
            Some(other) => return Err(wrong("spec.type", other, "no type of Service")),
        },
        cluster_addresses: distinct(addresses("spec.clusterIPs", clusters)?),
        external_addresses: distinct(addresses("spec.externalIPs", spec.external_ips.iter().flatten())?),
        load_balancer_addresses: distinct(addresses(
            "status.loadBalancer.ingress.ip",
            ingress.filter_map(|at| at.ip.as_ref()),
        )?),
        ports: ports?,
        external_traffic_local: spec.external_traffic_policy.as_deref() == Some("Local"),
    })
}

/// Reduces an EndpointSlice.
pub(super) fn endpoint_slice(
    slice: &discovery::EndpointSlice,
    strings: &mut Strings,
) -> Result<EndpointSlice, ValueError> {
    // "FQDN" slices hold names. An endpoint is ready where its condition does not say otherwise.
    let ready = |endpoint: &&discovery::Endpoint| endpoint.conditions.as_ref().and_then(|is| is.ready).unwrap_or(true);
    let listed = slice.endpoints.iter().filter(ready).flat_map(|endpoint| &endpoint.addresses);
    let listed = listed.filter(|_| slice.address_type != "FQDN");
    let ports: Result<Vec<NamedPort>, ValueError> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let number = port.port?;
            Some(port_number("ports.port", number).and_then(|number| {
                Ok(NamedPort {
                    name: strings.optional(port.name.as_ref()),
                    protocol: protocol("ports.protocol", port.protocol.as_deref())?,
                    port: number,
                })
            }))
        })
        .collect();
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    Ok(EndpointSlice {
        namespace: namespace_of(&slice.metadata, strings),
        name: strings.optional(slice.metadata.name.as_ref()),
        service: strings.optional(service),
        addresses: distinct(addresses("endpoints.addresses", listed)?),
        ports: ports?,
    })
}

/// An object without a namespace is in "default", as kubectl has it.
fn namespace_of(metadata: &ObjectMeta, strings: &mut Strings) -> Arc<str> {
    strings.share(metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default"))
}

fn named_ports(spec: &core::PodSpec, strings: &mut Strings) -> Result<Vec<NamedPort>, ValueError> {
    let restartable =
        spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(restartable).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let name = port.name.as_ref()?;
            Some(port_number("spec.containers.ports.containerPort", port.container_port).and_then(|number| {
                Ok(NamedPort {
                    name: strings.share(name),
                    protocol: protocol("spec.containers.ports.protocol", port.protocol.as_deref())?,
                    port: number,
                })
            }))
        })
        .collect()
}

fn addresses<'a>(field: &'static str, texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<IpAddr>, ValueError> {
    let parsed = texts.into_iter().filter(|text| !text.is_empty()).map(|text| {
        text.parse().map(|addr: IpAddr| addr.to_canonical()).map_err(|_| wrong(field, text, "no IP address"))
    });
    parsed.collect()
}

fn port_number(field: &'static str, number: i32) -> Result<u16, ValueError> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| wrong(field, &number.to_string(), "not within 1 to 65535"))
}

fn protocol(field: &'static str, name: Option<&str>) -> Result<TransportProtocol, ValueError> {
    match name {
        None | Some("" | "TCP") => Ok(TransportProtocol::Tcp),
        Some("UDP") => Ok(TransportProtocol::Udp),
        Some("SCTP") => Ok(TransportProtocol::Sctp),
        Some(other) => Err(wrong(field, other, "none of TCP, UDP and SCTP")),
    }
}

fn wrong(field: &'static str, value: &str, wrong: &'static str) -> ValueError {
    ValueError { field, value: value.into(), wrong }
}

fn timestamp(time: &Time) -> Timestamp {
    Timestamp::from_nanos(u64::try_from(time.0.as_nanosecond()).unwrap_or_default())
}

/// Each value once, in the order they came.
fn distinct<T: PartialEq>(values: Vec<T>) -> Vec<T> {
    let mut distinct = Vec::with_capacity(values.len());
    for value in values {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}
