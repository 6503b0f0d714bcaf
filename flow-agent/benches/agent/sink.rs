//! A collector by TLS that only adds up. Asked by a line on its input, tells the sums so far.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use flow_common::ipfix::exporter::{TEMPLATE_V4, TEMPLATE_V6};
use flow_common::ipfix::message::{HEADER_LEN, Header};
use flow_common::ipfix::wire::Reader;
use flow_common::net::{Incoming, Listener, Protocol, TlsFiles, TlsServer};
use flow_common::record::{Family, FlowRecord};

/// Where it listens and where its certificates are.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Place {
    addr: SocketAddr,
    folder: PathBuf,
}

/// What was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Flow records.
    pub(super) records: u64,
    /// Packets of their deltas.
    pub(super) packets: u64,
}

impl Sums {
    /// As it was told.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (records, packets) = line.trim().split_once(' ')?;
        Some(Self { records: records.parse().ok()?, packets: packets.parse().ok()? })
    }
}

#[derive(Debug, Default)]
struct Shared {
    records: AtomicU64,
    packets: AtomicU64,
}

/// Collects until it is killed.
pub(super) fn run(place: &Place) -> Result<()> {
    let heard = Arc::new(Shared::default());
    let told = Arc::clone(&heard);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if line.is_err() {
                return;
            }
            println!("{} {}", told.records.load(Relaxed), told.packets.load(Relaxed));
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let file = |name: &str| place.folder.join(name);
        let files = TlsFiles { ca: file("ca.crt"), cert: file("server.crt"), key: file("server.key") };
        let listener = Listener::bind(place.addr, Protocol::Tls, Some(&TlsServer::load(&files)?)).await?;
        let Listener::Stream(listener) = listener else { bail!("not a stream") };
        loop {
            let mut incoming = listener.accept().await?.complete().await?;
            hear(&mut incoming, &heard).await?;
        }
    })
}

async fn hear(incoming: &mut Incoming, heard: &Shared) -> Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(256 * 1_024);
        if incoming.fill(&mut buffer).await? == 0 {
            return Ok(());
        }
        while let Some(Ok(header)) = Header::read(&mut Reader::new(&buffer)) {
            if buffer.len() < usize::from(header.length) {
                break;
            }
            let message = buffer.split_to(usize::from(header.length));
            add(message.get(HEADER_LEN..).unwrap_or_default(), heard).context("a message is not whole")?;
        }
    }
}

fn add(sets: &[u8], heard: &Shared) -> Option<()> {
    let mut sets = Reader::new(sets);
    while !sets.is_empty() {
        let (id, length) = (sets.u16()?, sets.u16()?);
        let mut body = sets.bytes(usize::from(length).checked_sub(4)?)?;
        let family = match id {
            TEMPLATE_V4 => Family::V4,
            TEMPLATE_V6 => Family::V6,
            _ => continue,
        };
        while !body.is_empty() {
            let (flow, rest) = FlowRecord::decode(family, true, body)?;
            heard.records.fetch_add(1, Relaxed);
            heard.packets.fetch_add(flow.head.packet_delta, Relaxed);
            body = rest;
        }
    }
    Some(())
}
