//! What is common to both directions: message header, framing, template records. No sessions here.

use crate::record::Field;

use super::wire::Reader;

/// The version in every message's header.
pub const VERSION: u16 = 10;
/// Bytes of a message's header.
pub const HEADER_LEN: usize = 16;
/// Bytes of a set's header.
pub const SET_HEADER_LEN: usize = 4;
/// Set of templates.
pub const TEMPLATE_SET: u16 = 2;
/// Set of options templates.
pub const OPTIONS_TEMPLATE_SET: u16 = 3;
/// The least id of a template and of the sets it describes.
pub const FIRST_TEMPLATE: u16 = 256;
/// Set in an element's id where its enterprise follows.
const ENTERPRISE_BIT: u16 = 0x8000;

/// Why bytes are no message (RFC 7011, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The first two bytes.
    #[error("version {0} instead of 10: not IPFIX")]
    Version(u16),
    /// The header's length.
    #[error("a message of {0} bytes, shorter than its header")]
    Length(u16),
    /// A datagram that ends before its message does.
    #[error("a datagram of {found} bytes with a message of {length}")]
    DatagramCut {
        /// Length in the header.
        length: u16,
        /// Bytes there are.
        found: usize,
    },
    /// A datagram that goes on behind its message.
    #[error("a datagram with {0} bytes behind its message")]
    DatagramRest(usize),
    /// Bytes at the message's end that are too few for a set.
    #[error("{0} bytes behind the last set")]
    SetHeader(usize),
    /// A set that ends in its header or behind the message.
    #[error("set {id} of {length} bytes where {left} are left of the message")]
    SetLength {
        /// The set's id.
        id: u16,
        /// Length in its header.
        length: u16,
        /// Bytes left of the message, the set's header among them.
        left: usize,
    },
    /// A template that its set cuts short.
    #[error("template {0} goes on behind its set")]
    TemplateCut(u16),
    /// A template with an id of a set that is not for data.
    #[error("template id {0}, below 256")]
    TemplateId(u16),
    /// An options template without scope, or with more scope than elements.
    #[error("options template {id} with {scope} scope elements of {elements}")]
    Scope {
        /// The template's id.
        id: u16,
        /// Scope elements it states.
        scope: u16,
        /// Elements it states.
        elements: u16,
    },
    /// A record that its set cuts short.
    #[error("a record of template {0} goes on behind its set")]
    RecordCut(u16),
    /// One sender's domains beyond the bound.
    #[error("observation domain {0} is one too many for this session")]
    Domains(u32),
}

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the message, this header among them.
    pub length: u16,
    /// When it was sent, in seconds since 1970.
    pub export_time: u32,
    /// Data records the session sent in this domain before.
    pub sequence: u32,
    /// Observation domain.
    pub domain: u32,
}

impl Header {
    /// Reads the header; `None` if the bytes do not hold it yet.
    #[inline]
    pub fn read(from: &mut Reader<'_>) -> Option<Result<Header, MessageError>> {
        let version = from.u16()?;
        if version != VERSION {
            return Some(Err(MessageError::Version(version)));
        }
        let length = from.u16()?;
        if usize::from(length) < HEADER_LEN {
            return Some(Err(MessageError::Length(length)));
        }
        Some(Ok(Header { length, export_time: from.u32()?, sequence: from.u32()?, domain: from.u32()? }))
    }

    /// The header as bytes.
    #[inline]
    pub fn bytes(&self) -> [u8; HEADER_LEN] {
        let first = u32::from(VERSION) << 16 | u32::from(self.length);
        let mut bytes = [0; HEADER_LEN];
        let words = [first, self.export_time, self.sequence, self.domain];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

/// One element of a template, as it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// The enterprise whose element it is, 0 for IANA.
    pub enterprise: u32,
    /// Its id there.
    pub id: u16,
    /// Bytes of its values, [`crate::record::VARIABLE`] if each states its own.
    pub width: u16,
}

impl Element {
    /// A row of the record table.
    pub fn of(field: &Field, family: crate::record::Family) -> Element {
        Element { enterprise: field.enterprise, id: field.id(family), width: field.width(family) }
    }

    /// Reads one element of a template.
    pub fn read(from: &mut Reader<'_>) -> Option<Element> {
        let (id, width) = (from.u16()?, from.u16()?);
        let enterprise = if id & ENTERPRISE_BIT == 0 { 0 } else { from.u32()? };
        Some(Element { enterprise, id: id & !ENTERPRISE_BIT, width })
    }

    fn write(self, out: &mut Vec<u8>) {
        let bit = if self.enterprise == 0 { 0 } else { ENTERPRISE_BIT };
        out.extend_from_slice(&(self.id | bit).to_be_bytes());
        out.extend_from_slice(&self.width.to_be_bytes());
        if self.enterprise != 0 {
            out.extend_from_slice(&self.enterprise.to_be_bytes());
        }
    }
}

/// Appends a template record; an options template's where `scope` is not 0.
pub fn put_template(id: u16, scope: u16, elements: impl Iterator<Item = Element> + Clone, out: &mut Vec<u8>) {
    let count = u16::try_from(elements.clone().count()).unwrap_or(u16::MAX);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    if scope != 0 {
        out.extend_from_slice(&scope.to_be_bytes());
    }
    for element in elements.take(usize::from(count)) {
        element.write(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_it_was() {
        let header = Header { length: 40, export_time: 1_604_021_119, sequence: 7, domain: 0xdcba };
        assert_eq!(Header::read(&mut Reader::new(&header.bytes())), Some(Ok(header)));
        assert_eq!(Header::read(&mut Reader::new(&header.bytes()[..15])), None);
        assert_eq!(Header::read(&mut Reader::new(&[0, 9, 0, 0])), Some(Err(MessageError::Version(9))));
        assert_eq!(Header::read(&mut Reader::new(&[0, 10, 0, 15])), Some(Err(MessageError::Length(15))));
    }

    #[test]
    fn an_element_is_what_it_was() {
        for element in [
            Element { enterprise: 0, id: 8, width: 4 },
            Element { enterprise: 56506, id: 101, width: crate::record::VARIABLE },
        ] {
            let mut bytes = Vec::new();
            element.write(&mut bytes);
            assert_eq!(Element::read(&mut Reader::new(&bytes)), Some(element));
            assert_eq!(Element::read(&mut Reader::new(&bytes[..bytes.len() - 1])), None);
        }
    }
}
