//! Filters of a clsact qdisc as the kernel has them: others may remove ours, or the qdisc with them, and nobody tells.
//!
//! Takes where a filter was put; gives the program that is there, by netlink.

use super::links::{Attributes, request, word};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// TC_H_CLSACT with the minor numbers of TC_H_MIN_INGRESS and TC_H_MIN_EGRESS.
const PARENTS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// ETH_P_ALL in the network's order, as the low half of `tcm_info`.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
/// `struct nlmsghdr` and `struct tcmsg`.
const HEADERS: usize = 16 + 20;

/// The id of the program at this priority and handle of an interface's ingress and egress; none where there is no such filter.
pub(super) fn programs(index: u32, priority: u16, handle: u32) -> io::Result<[Option<u32>; 2]> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    let mut answer = [0; 4_096];
    let mut programs = [None; 2];
    for (program, parent) in programs.iter_mut().zip(PARENTS) {
        // `struct tcmsg`: family, index, handle, parent, info.
        let message = [0, index, handle, parent, u32::from(priority) << 16 | ALL_PROTOCOLS];
        socket.send_to(&request(RTM_GETTFILTER, 0, &message), &SocketAddr::new(0, 0), 0)?;
        let size = socket.recv(&mut answer.as_mut_slice(), 0)?;
        *program = answer.get(..size).and_then(program_of);
    }
    Ok(programs)
}

/// None also for an error, which says that there is no such filter or no such qdisc.
fn program_of(answer: &[u8]) -> Option<u32> {
    let is_filter = answer.get(4..6)? == RTM_NEWTFILTER.to_ne_bytes();
    let (_, options) = Attributes(answer.get(HEADERS..)?).find(|(kind, _)| is_filter && *kind == TCA_OPTIONS)?;
    let (_, id) = Attributes(options).find(|(kind, _)| *kind == TCA_BPF_ID)?;
    word(id)
}
