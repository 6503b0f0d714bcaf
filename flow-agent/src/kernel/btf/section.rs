//! One section of types and strings: the kernel's own, or a module's on top of it. Everything is looked up by checked
//! offsets.

use super::{BtfError, kind};

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// Bytes before what depends on the kind.
const TYPE: usize = 12;

/// Types and strings with the numbers that they have when counted through from the kernel's own.
#[derive(Debug)]
pub(super) struct Section {
    bytes: Vec<u8>,
    /// Where each type begins in `bytes`.
    types: Vec<u32>,
    /// Number of the first type.
    begin: u32,
    /// Where the strings are in `bytes`.
    strings: std::ops::Range<usize>,
    /// Offset of the first string.
    first_string: u32,
}

/// The part that every type has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type {
    /// Offset of its name.
    pub(super) name: u32,
    information: u32,
    /// Bytes of it, or the type it refers to.
    pub(super) size_or_type: u32,
    /// Where what follows begins.
    rest: usize,
}

impl Type {
    pub(super) fn kind(self) -> u32 {
        self.information >> 24 & 0x1f
    }

    /// How many members, values or parameters it has.
    pub(super) fn count(self) -> usize {
        (self.information & 0xffff) as usize
    }

    pub(super) fn has_bit_fields(self) -> bool {
        self.information >> 31 != 0
    }

    /// Bytes of what follows.
    fn rest_bytes(self) -> Option<usize> {
        match self.kind() {
            kind::INT | kind::VARIABLE | kind::DECLARATION_TAG => Some(4),
            kind::ARRAY => Some(12),
            kind::STRUCT | kind::UNION | kind::DATA_SECTION | kind::ENUM64 => Some(12 * self.count()),
            kind::ENUM | kind::FUNCTION_PROTOTYPE => Some(8 * self.count()),
            // Pointer, forward declaration, names and qualifiers, function, float, tag.
            2 | 7..=12 | kind::FLOAT | kind::TYPE_TAG => Some(0),
            _ => None,
        }
    }
}

impl Section {
    /// `begin` is the number of its first type, `first_string` the offset of its first string.
    pub(super) fn parse(bytes: Vec<u8>, begin: u32, first_string: u32) -> Result<Self, BtfError> {
        const CUT: BtfError = BtfError::Malformed("it is cut short");
        let header = |at: usize| word(&bytes, at).ok_or(CUT).map(|word| word as usize);
        let magic = bytes.first_chunk::<4>().ok_or(CUT)?;
        if u16::from_ne_bytes([magic[0], magic[1]]) != MAGIC || magic[2] != VERSION {
            return Err(BtfError::Malformed("it is of an unknown version"));
        }
        let length = header(4)?;
        let part = |offset: usize, size: usize| {
            let begin = length.checked_add(offset).ok_or(CUT)?;
            let end = begin.checked_add(size).ok_or(CUT)?;
            if end <= bytes.len() { Ok(begin..end) } else { Err(CUT) }
        };
        let range = part(header(8)?, header(12)?)?;
        let strings = part(header(16)?, header(20)?)?;
        let mut types = Vec::with_capacity(range.len() / 32);
        let mut at = range.start;
        while at < range.end {
            let of = read(&bytes, at).ok_or(CUT)?;
            let rest = of.rest_bytes().ok_or(BtfError::Malformed("it has a kind of type that is not known"))?;
            types.push(u32::try_from(at).map_err(|_| BtfError::Malformed("it is too long"))?);
            at = at.checked_add(TYPE + rest).filter(|next| *next <= range.end).ok_or(CUT)?;
        }
        u32::try_from(types.len())
            .ok()
            .and_then(|count| count.checked_add(begin))
            .ok_or(BtfError::Malformed("it has too many types"))?;
        Ok(Self { bytes, types, begin, strings, first_string })
    }

    /// The number behind its last type's.
    pub(super) fn end(&self) -> u32 {
        self.begin.saturating_add(u32::try_from(self.types.len()).unwrap_or(u32::MAX))
    }

    /// Numbers of its types.
    pub(super) fn ids(&self) -> std::ops::Range<u32> {
        self.begin..self.end()
    }

    pub(super) fn string_bytes(&self) -> u32 {
        u32::try_from(self.strings.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn get(&self, id: u32) -> Option<Type> {
        let at = *self.types.get(id.checked_sub(self.begin)? as usize)?;
        read(&self.bytes, at as usize)
    }

    /// The string at an offset, if it is one of this section's.
    pub(super) fn string(&self, offset: u32) -> Option<&[u8]> {
        let strings = self.bytes.get(self.strings.clone())?;
        let rest = strings.get(offset.checked_sub(self.first_string)? as usize..)?;
        rest.get(..memchr::memchr(0, rest)?)
    }

    /// Words of what follows a type, from the `first` on.
    pub(super) fn words<const N: usize>(&self, of: Type, first: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (number, slot) in words.iter_mut().enumerate() {
            let at = first.checked_add(number)?.checked_mul(4)?;
            // What was measured at the beginning is all that follows.
            *slot = (at < of.rest_bytes()?).then(|| word(&self.bytes, of.rest.checked_add(at)?))??;
        }
        Some(words)
    }
}

fn read(bytes: &[u8], at: usize) -> Option<Type> {
    Some(Type {
        name: word(bytes, at)?,
        information: word(bytes, at.checked_add(4)?)?,
        size_or_type: word(bytes, at.checked_add(8)?)?,
        rest: at.checked_add(TYPE)?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
