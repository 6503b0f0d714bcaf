//! The lab itself: the wired network, its servers, its folder of manifests and its supply of ports.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cage::{Cage, Namespace};
use crate::manifests;
use crate::topology::{Family, Host, Node, Pod};
use crate::traffic::{self, Kind, Report, Session};
use crate::truth::{self, Arrivals, Connection, Count, Direction, InterfaceCount};
use crate::wait::eventually;
use crate::wiring::{self, Network};

/// Clients take their ports from here on, each only once, so that no two flows of a lab share a 5-tuple.
const FIRST_PORT: u16 = 20_000;

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    network: Network,
    pods: Mutex<BTreeSet<Pod>>,
    servers: Mutex<Vec<Child>>,
    next_port: AtomicU16,
    // Last: what runs inside ends before the namespaces do.
    cage: Cage,
}

impl Lab {
    /// Builds the network, starts the servers and writes the manifests.
    pub fn new() -> Result<Self> {
        let cage = Cage::new()?;
        let network = Network::new(&cage)?;
        let pods: BTreeSet<Pod> = Node::ALL.iter().flat_map(|node| node.pods()).collect();
        let lab = Self {
            network,
            pods: Mutex::new(pods.clone()),
            servers: Mutex::default(),
            next_port: AtomicU16::new(FIRST_PORT),
            cage,
        };
        for node in Node::ALL {
            lab.follow_ends(node)?;
        }
        for host in pods.into_iter().map(Host::Pod).chain([Host::External]) {
            lab.serve(&host)?;
        }
        lab.write_manifests()?;
        Ok(lab)
    }

    /// What holds the lab together.
    pub fn cage(&self) -> &Cage {
        &self.cage
    }

    /// A file or folder of the lab's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.cage.scratch().join(name)
    }

    /// The folder of manifests.
    pub fn objects(&self) -> PathBuf {
        self.path("objects")
    }

    /// A host's namespace.
    pub fn namespace(&self, host: &Host) -> Result<Arc<Namespace>> {
        self.network.namespace(host)
    }

    /// A Node's namespace.
    pub fn node(&self, node: Node) -> Result<Arc<Namespace>> {
        self.network.namespace(&Host::Node(node))
    }

    /// A client's end that no other flow of this lab has. The Service sends it to the server on `backend`.
    pub fn client(&self, host: &Host, family: Family, backend: Node) -> SocketAddr {
        let pair = self.next_port.fetch_add(2, Ordering::Relaxed);
        let port = if crate::topology::backend_of(pair) == backend { pair } else { pair + 1 };
        SocketAddr::new(host.addr(family), port)
    }

    /// One piece of traffic, to its end.
    pub fn ask(&self, host: &Host, kind: Kind, from: SocketAddr, to: SocketAddr) -> Result<Report> {
        traffic::ask(&*self.namespace(host)?, kind, from, to)
    }

    /// A connection that stays open.
    pub fn open(&self, host: &Host, kind: Kind, from: SocketAddr, to: SocketAddr) -> Result<Session> {
        Session::open(&*self.namespace(host)?, kind, from, to)
    }

    /// Starts a further Pod: namespace, wires, servers and its manifest.
    pub fn add_pod(&self, pod: &Pod) -> Result<()> {
        self.network.wire_pod(&self.cage, pod)?;
        self.serve(&Host::Pod(pod.clone()))?;
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.clone());
        self.write_manifests()
    }

    /// Ends a Pod. Its servers end with the lab: without an interface they serve nobody.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.network.remove_pod(pod)?;
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(pod);
        self.write_manifests()
    }

    /// Replaces one of the files of the folder of manifests, or adds one.
    pub fn write_manifest(&self, name: &str, text: &str) -> Result<()> {
        manifests::replace(&self.objects().join(name), text)
    }

    /// Writes the folder anew from the Pods there are.
    pub fn write_manifests(&self) -> Result<()> {
        let pods: Vec<Pod> = self.pods.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        manifests::write(&self.objects(), &pods)
    }

    /// Runs lines of ip(8) in a host's namespace.
    pub fn ip(&self, host: &Host, lines: &[String]) -> Result<()> {
        wiring::batch(&*self.namespace(host)?, lines)
    }

    /// The whole ground truth as it is now.
    pub fn truth(&self) -> Result<Truth> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut cables = HashMap::new();
        for host in pods.into_iter().map(Host::Pod).chain([Host::External]) {
            let (device, far, far_device) = host.cable();
            let sent = Arrivals::read(&*self.namespace(&far)?, &far_device)?;
            let received = Arrivals::read(&*self.namespace(&host)?, &device)?;
            cables.insert(host, Cable { sent, received });
        }
        let mut connections = HashMap::new();
        for node in Node::ALL {
            let mut of_node = truth::connections(&*self.node(node)?)?;
            of_node.extend(truth::ended_connections(&self.ended_log(node))?);
            connections.insert(node, of_node);
        }
        Ok(Truth { cables, connections })
    }

    /// The counters of a Node's interfaces, by name.
    pub fn interfaces(&self, node: Node) -> Result<HashMap<String, InterfaceCount>> {
        truth::interfaces(&*self.node(node)?)
    }

    /// Whose address it is, among the Pods and the external host.
    pub fn host_of(&self, addr: IpAddr) -> Option<Host> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let family = Family::of(addr);
        let pod = pods.iter().find(|pod| pod.addr(family) == addr).cloned().map(Host::Pod);
        pod.or_else(|| (Host::External.addr(family) == addr).then_some(Host::External))
    }

    /// Logs the ends of a Node's connections, with their last counters: conntrack itself forgets them.
    fn follow_ends(&self, node: Node) -> Result<()> {
        let namespace = self.node(node)?;
        let log = File::create(self.ended_log(node))?;
        let mut command = Command::new("conntrack");
        command.args(["-E", "-e", "DESTROY"]).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
        let listener = namespace.spawn(&mut command)?;
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        eventually(Duration::from_secs(5), || {
            let sockets = namespace.within(|| std::fs::read_to_string("/proc/thread-self/net/netlink"))??;
            ensure!(truth::is_followed(&sockets), "nobody listens to {}'s conntrack", node.name());
            Ok(())
        })
    }

    fn ended_log(&self, node: Node) -> PathBuf {
        self.path(&format!("{}.ended", node.name()))
    }

    fn serve(&self, host: &Host) -> Result<()> {
        let server = traffic::serve(&*self.namespace(host)?)?;
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
        Ok(())
    }
}

/// What passed on the cable of a host.
#[derive(Debug)]
struct Cable {
    sent: Arrivals,
    received: Arrivals,
}

/// What nft and conntrack counted up to one moment.
#[derive(Debug)]
pub struct Truth {
    cables: HashMap<Host, Cable>,
    connections: HashMap<Node, Vec<Connection>>,
}

impl Truth {
    /// Both directions of a flow on a host's cable: what the host sent of it and what it got.
    pub fn both_ways(&self, host: &Host, direction: Direction) -> Result<[Count; 2]> {
        let cable = self.cables.get(host).with_context(|| format!("nobody counts on the cable of {host}"))?;
        Ok([cable.sent.flow(direction), cable.received.flow(direction.reversed())])
    }

    /// A Node's conntrack entry of the flow that has `direction` before or after translation.
    pub fn connection(&self, node: Node, direction: Direction) -> Result<&Connection> {
        let is_it =
            |connection: &&Connection| connection.original == direction || connection.reply.reversed() == direction;
        let connections = self.connections.get(&node).into_iter().flatten();
        connections.into_iter().find(is_it).with_context(|| format!("{}'s conntrack has no {direction:?}", node.name()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for server in self.servers.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            // Both fail only for one that has ended already.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
