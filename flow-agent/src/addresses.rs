//! The addresses of this Node's own interfaces: bridges, gateways and tunnels, which Kubernetes does not list.
//!
//! Gives them when they change; looks every minute. Attributes nothing.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use flow_common::daemon::Shutdown;
use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// One of the Node's addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub addr: IpAddr,
    /// Index of the interface that has it.
    pub index: u32,
    /// The interface's name.
    pub interface: String,
}

/// How often is looked.
const LOOK: Duration = Duration::from_secs(60);

/// Until the end is requested or nobody listens.
pub async fn run(addresses: mpsc::Sender<Vec<Address>>, mut shutdown: Shutdown) {
    let mut known = None;
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = shutdown.requested() => return,
        }
        match list().await {
            Ok(found) if known.as_ref() != Some(&found) => {
                known = Some(found.clone());
                if addresses.send(found).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("cannot list this Node's addresses: {error}"),
        }
    }
}

/// Every address that is good beyond its link, in order.
async fn list() -> io::Result<Vec<Address>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let messages: Result<Vec<_>, _> = handle.address().get().execute().try_collect().await;
    connection.abort();
    let names = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    let mut found: Vec<Address> =
        messages.map_err(io::Error::other)?.iter().filter_map(|message| read(message, &names)).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn read(message: &AddressMessage, names: &OwnedFd) -> Option<Address> {
    let addr = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(addr) => Some(*addr),
        _ => None,
    })?;
    if addr.is_loopback() || is_link_local(addr) {
        return None;
    }
    let index = message.header.index;
    let name = rustix::net::netdevice::index_to_name(names, index).unwrap_or_default();
    Some(Address { addr, index, interface: name })
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}
