//! Netlink attributes: a length, a kind and a value each, padded to four bytes. Bytes that make no attribute end the
//! list.

/// Flags in an attribute's kind: nested, and network byte order.
const KIND: u16 = 0x3fff;

/// The attributes of a message or of another attribute's value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, _) = self.0.split_first_chunk::<4>()?;
        let [length, kind] = [[header[0], header[1]], [header[2], header[3]]].map(u16::from_ne_bytes);
        let length = usize::from(length);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND, value))
    }
}

/// A number in network byte order that fills the value.
pub(super) fn number<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.first_chunk::<N>().copied()
}
