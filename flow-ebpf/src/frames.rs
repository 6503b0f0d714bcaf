//! Frames for tests and benchmarks, built header by header. Checksums are 0: nothing here reads them.

/// Ethertype.
pub const IPV4: u16 = 0x0800;
/// Ethertype.
pub const IPV6: u16 = 0x86dd;

/// An Ethernet frame.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ethertype.to_be_bytes()[..], payload].concat()
}

/// What stands behind a VLAN ethertype: tag 7, the inner ethertype and its payload.
pub fn tagged(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[0, 7], &ethertype.to_be_bytes()[..], payload].concat()
}

/// An IPv4 header.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Protocol number.
    pub protocol: u8,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset in units of eight bytes.
    pub fragment: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
}

/// More fragments follow.
pub const MORE: u16 = 0x2000;

impl Ipv4 {
    /// From 10.0.0.1 to 10.0.0.2.
    pub fn new(protocol: u8) -> Self {
        Self { src: [10, 0, 0, 1], dst: [10, 0, 0, 2], protocol, id: 0, fragment: 0, options: Vec::new() }
    }

    /// The same the other way.
    pub fn back(&self) -> Self {
        Self { src: self.dst, dst: self.src, ..self.clone() }
    }

    /// The packet.
    pub fn with(&self, payload: &[u8]) -> Vec<u8> {
        let header = self.options.len().saturating_add(20);
        let total = header.saturating_add(payload.len());
        let mut bytes = vec![0x40 | low(header / 4), 0];
        bytes.extend(word(total));
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(self.src);
        bytes.extend(self.dst);
        bytes.extend(&self.options);
        bytes.extend(payload);
        bytes
    }

    /// The packet in an Ethernet frame.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(IPV4, &self.with(payload))
    }
}

/// An IPv6 header.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Next header.
    pub next: u8,
}

impl Ipv6 {
    /// From fd00::1 to fd00::2.
    pub fn new(next: u8) -> Self {
        let addr = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        Self { src: addr(1), dst: addr(2), next }
    }

    /// The same the other way.
    pub fn back(&self) -> Self {
        Self { src: self.dst, dst: self.src, ..self.clone() }
    }

    /// The packet.
    pub fn with(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(word(payload.len()));
        bytes.extend([self.next, 64]);
        bytes.extend(self.src);
        bytes.extend(self.dst);
        bytes.extend(payload);
        bytes
    }

    /// The packet in an Ethernet frame.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(IPV6, &self.with(payload))
    }
}

/// An IPv6 extension header of `units` times eight bytes beyond the first eight (AH: of four), and what follows.
pub fn extension(next: u8, units: u8, size: usize, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, units];
    bytes.resize(size, 0);
    bytes.extend(payload);
    bytes
}

/// An IPv6 fragment header and what follows. The offset is in units of eight bytes.
pub fn fragment6(next: u8, offset: u16, more: bool, id: u32, payload: &[u8]) -> Vec<u8> {
    let word = offset << 3 | u16::from(more);
    [&[next, 0], &word.to_be_bytes()[..], &id.to_be_bytes(), payload].concat()
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// Source and destination port.
    pub ports: [u16; 2],
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// Flags.
    pub flags: u8,
}

impl Tcp {
    /// From port 40,000 to port 80.
    pub fn new(flags: u8) -> Self {
        Self { ports: [40_000, 80], sequence: 1_000, acknowledged: 0, flags }
    }

    /// The segment.
    pub fn with(&self, payload: &[u8]) -> Vec<u8> {
        let [src, dst] = self.ports.map(u16::to_be_bytes);
        let rest = [0x50, self.flags, 1, 0, 0, 0, 0, 0];
        let (sequence, acknowledged) = (self.sequence.to_be_bytes(), self.acknowledged.to_be_bytes());
        [&src[..], &dst, &sequence, &acknowledged, &rest, payload].concat()
    }
}

/// A UDP datagram; the same first bytes as SCTP, DCCP and UDP-Lite have.
pub fn udp(ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let [src, dst] = ports.map(u16::to_be_bytes);
    [&src[..], &dst, &word(payload.len().saturating_add(8)), &[0, 0], payload].concat()
}

/// An ICMP or ICMPv6 message.
pub fn icmp(kind: u8, code: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0], &id.to_be_bytes()[..], &[0, 1], payload].concat()
}

fn word(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap_or(0).to_be_bytes()
}

fn low(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(0)
}
