//! Who originated a flow, as far as its first packet tells: bits of [`flow_common::abi::Flow::state`].
//!
//! `reversed` is the packet's direction: whether it goes from the key's end 1 to end 0.

use flow_common::abi::{FLAG_ACK, FLAG_SYN, STATE_GUESSED, STATE_REVERSED};

/// The packet's sender did, which is known.
#[inline(always)]
pub fn known(reversed: bool) -> u32 {
    if reversed { STATE_REVERSED } else { 0 }
}

/// The sender of a TCP packet with a SYN did, of one with SYN and ACK did not; else it is taken to have, for want of better.
#[inline(always)]
pub fn of(flags: u32, reversed: bool) -> u32 {
    match flags & (FLAG_SYN | FLAG_ACK) {
        FLAG_SYN => known(reversed),
        answer if answer == FLAG_SYN | FLAG_ACK => known(!reversed),
        _ => known(reversed) | STATE_GUESSED,
    }
}
