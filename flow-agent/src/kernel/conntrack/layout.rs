//! Where the running kernel keeps what is told of connections, from its types.

use flow_common::abi::{CONN_WORDS, ConntrackLayout};

use super::super::btf::Btf;
use super::ConnLayout;

/// Position of an extension that the kernel does not have.
const ABSENT: u32 = u32::MAX;

/// A member that the kernel's types lack.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LayoutError {
    #[error("the kernel's types lack {structure}.{member}")]
    Missing { structure: &'static str, member: &'static str },
    #[error("struct nf_conn is longer on this kernel ({0} bytes) than is read")]
    Long(u32),
}

/// What the programs need and what the decoder needs. `seed` is an address, 0 if it is not known.
pub(super) fn resolve(btf: &Btf, namespace: u32, seed: u64) -> Result<(ConntrackLayout, ConnLayout), LayoutError> {
    let decoder = decoder(btf)?;
    let conn_bytes = length(btf, &decoder)?;
    let extension = |name| btf.value("nf_ct_ext_id", name).unwrap_or(ABSENT);
    let programs = ConntrackLayout {
        seed,
        namespace,
        conn_bytes,
        skb_conntrack: offset(btf, "sk_buff", "_nfct")?,
        conn_status: decoder.status,
        conn_net: decoder.net,
        conn_extensions: offset(btf, "nf_conn", "ext")?,
        net_inum: offset(btf, "net", "ns.inum")?,
        extension_offsets: offset(btf, "nf_ct_ext", "offset")?,
        accounting: extension("NF_CT_EXT_ACCT"),
        times: extension("NF_CT_EXT_TSTAMP"),
        labels: extension("NF_CT_EXT_LABELS"),
        spare: 0,
    };
    Ok((programs, decoder))
}

fn decoder(btf: &Btf) -> Result<ConnLayout, LayoutError> {
    let conn = |member| offset(btf, "nf_conn", member);
    let tuple = |member| offset(btf, "nf_conntrack_tuple", member);
    let optional = |member| btf.member("nf_conn", member).map(|member| member.offset);
    Ok(ConnLayout {
        timeout: conn("timeout")?,
        zone: optional("zone.id").zip(optional("zone.dir")),
        tuples: [conn("tuplehash[0].tuple")?, conn("tuplehash[1].tuple")?],
        status: conn("status")?,
        net: conn("ct_net.net")?,
        master: conn("master")?,
        mark: optional("mark"),
        tcp_state: conn("proto.tcp.state")?,
        tuple_bytes: btf
            .size("nf_conntrack_tuple")
            .ok_or(LayoutError::Missing { structure: "nf_conntrack_tuple", member: "size" })?,
        src_addr: tuple("src.u3")?,
        src_port: tuple("src.u")?,
        family: tuple("src.l3num")?,
        dst_addr: tuple("dst.u3")?,
        dst_port: tuple("dst.u")?,
        protocol: tuple("dst.protonum")?,
    })
}

fn offset(btf: &Btf, structure: &'static str, member: &'static str) -> Result<u32, LayoutError> {
    let found = btf.member(structure, member).map(|found| found.offset);
    found.ok_or(LayoutError::Missing { structure, member })
}

/// Bytes up to the end of the last member that is wanted.
fn length(btf: &Btf, layout: &ConnLayout) -> Result<u32, LayoutError> {
    let tuple = layout.tuple_bytes;
    let ends = [
        layout.timeout.saturating_add(4),
        layout.zone.map_or(0, |(id, direction)| id.max(direction).saturating_add(2)),
        layout.tuples[0].max(layout.tuples[1]).saturating_add(tuple),
        layout.status.max(layout.net).max(layout.master).saturating_add(8),
        layout.mark.map_or(0, |mark| mark.saturating_add(4)),
        layout.tcp_state.saturating_add(1),
    ];
    let end = ends.into_iter().max().unwrap_or_default().next_multiple_of(8);
    let end = end.min(btf.size("nf_conn").unwrap_or(u32::MAX));
    if end as usize > 8 * CONN_WORDS { Err(LayoutError::Long(end)) } else { Ok(end) }
}
