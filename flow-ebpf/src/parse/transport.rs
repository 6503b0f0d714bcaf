//! Ports, flags, ICMP identifiers and types.
//!
//! Takes the protocol and where its header stands; what lies behind the packet's end is padding and never read as a port.

use super::{Header, Load, TCP, UDP};
use flow_common::abi::FLAGS_TCP;

const ICMP: u8 = 1;
const DCCP: u8 = 33;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// What the transport header says.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// Source and destination port as loaded; ICMP: identifier, then type * 256 + code of the request.
    pub ports: u32,
    /// TCP flags.
    pub flags: u32,
    /// ICMP: whether it is an answer; its ports belong to no end.
    pub query: Option<bool>,
    /// ICMP: whether it is one of a pair of request and answer.
    pub answers: bool,
}

impl Transport {
    /// Of a packet without ports.
    pub const NONE: Self = Self { ports: 0, flags: 0, query: None, answers: false };

    /// Reads it.
    #[inline(always)]
    pub fn load<L: Load>(load: &L, family: u32, protocol: u8, offset: u32, end: u32) -> Self {
        let size = end.saturating_sub(offset);
        match protocol {
            TCP | UDP | DCCP | SCTP | UDP_LITE if size >= 4 => {
                let Some(Ports { ports }) = load.load(offset) else { return Self::NONE };
                let flags = if protocol == TCP && size >= 20 { tcp_flags(load, offset).unwrap_or(0) } else { 0 };
                Self { ports, flags, ..Self::NONE }
            }
            ICMP if family == 4 => Self::icmp(load, request4, offset, size),
            ICMP6 if family == 6 => Self::icmp(load, request6, offset, size),
            _ => Self::NONE,
        }
    }

    #[inline(always)]
    fn icmp<L: Load>(load: &L, request: fn(u8) -> Option<u8>, offset: u32, size: u32) -> Self {
        let unknown = Self { query: Some(false), ..Self::NONE };
        if size < 4 {
            return unknown;
        }
        let Some(Message { kind, code, .. }) = load.load(offset) else { return unknown };
        let requested = request(kind);
        let id = match requested {
            Some(_) if size >= 8 => load.load(offset.wrapping_add(4)).map_or(0, |Identifier { id, .. }| id),
            _ => 0,
        };
        let of = requested.unwrap_or(kind);
        let [low, high] = id.to_ne_bytes();
        let ports = u32::from_ne_bytes([low, high, of, code]);
        Self { ports, flags: 0, query: Some(of != kind), answers: requested.is_some() }
    }
}

/// The request that an ICMP message is or answers; none if it is neither.
#[inline(always)]
fn request4(kind: u8) -> Option<u8> {
    match kind {
        0 | 8 => Some(8),
        13 | 14 => Some(13),
        15 | 16 => Some(15),
        17 | 18 => Some(17),
        42 | 43 => Some(42),
        _ => None,
    }
}

/// The same for ICMPv6.
#[inline(always)]
fn request6(kind: u8) -> Option<u8> {
    match kind {
        128 | 129 => Some(128),
        160 | 161 => Some(160),
        _ => None,
    }
}

/// The nine flags of a TCP header.
#[inline(always)]
pub(super) fn tcp_flags<L: Load>(load: &L, offset: u32) -> Option<u32> {
    let Flags { flags } = load.load(offset.wrapping_add(12))?;
    Some(u32::from(u16::from_be(flags)) & FLAGS_TCP)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ports {
    ports: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Flags {
    flags: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    kind: u8,
    code: u8,
    checksum: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Identifier {
    id: u16,
    sequence: u16,
}

// SAFETY: integers only, no padding.
unsafe impl Header for Ports {}
// SAFETY: integers only, no padding.
unsafe impl Header for Flags {}
// SAFETY: integers only, no padding.
unsafe impl Header for Message {}
// SAFETY: integers only, no padding.
unsafe impl Header for Identifier {}
