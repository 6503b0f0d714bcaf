//! Packets and bytes of both directions of an entry of the map, as one value to reckon with.

use flow_common::abi;

/// Packets and bytes from end 0, then from end 1. As of an entry; a connection's begin with its originator's.
pub(super) type Counters = [u64; 4];

/// Its counters when its generation began.
pub(super) fn base(value: &abi::Flow) -> Counters {
    [value.base_packets[0], value.base_bytes[0], value.base_packets[1], value.base_bytes[1]]
}

/// What `now` has beyond `then`, nothing where it is behind.
#[inline]
pub(super) fn difference(now: Counters, then: Counters) -> Counters {
    std::array::from_fn(|at| now[at].saturating_sub(then[at]))
}
