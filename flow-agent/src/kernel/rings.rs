//! Reads the rings, and the map of ethertypes.

use super::syscall;
use aya::maps::{MapData, RingBuf};
use flow_common::abi::{Count, Event};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, OwnedFd};

/// Bytes before each record of a ring.
const HEADER: usize = 8;

/// Replaces `events` by what a ring holds.
pub(super) fn drain(ring: &mut RingBuf<MapData>, events: &mut Vec<Event>) {
    events.clear();
    while let Some(item) = ring.next() {
        if item.len() == size_of::<Event>() {
            // SAFETY: the length is an event's, and any bytes are one: integers only, no padding.
            events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
    }
}

/// What so many events take of a ring.
pub(super) fn bytes(events: usize) -> u64 {
    (events * (size_of::<Event>() + HEADER)) as u64
}

/// What was no IP, by ethertype.
pub(super) fn ethertypes(map: &OwnedFd) -> io::Result<Vec<(u16, Count)>> {
    let mut counts = Vec::new();
    let mut key = syscall::next_key::<u32>(map.as_fd(), None)?;
    while let Some(ethertype) = key {
        if let Some(count) = syscall::lookup::<u32, Count>(map.as_fd(), &ethertype)? {
            let [low, high, ..] = ethertype.to_ne_bytes();
            counts.push((u16::from_be_bytes([low, high]), count));
        }
        key = syscall::next_key(map.as_fd(), Some(&ethertype))?;
    }
    Ok(counts)
}
