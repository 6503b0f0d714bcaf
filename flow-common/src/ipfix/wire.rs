//! Reading bytes from outside. Nothing here can panic: what is not there is `None`.

/// Bytes that are read from the front.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads all of `bytes`.
    #[inline(always)]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// What is not read yet.
    #[inline(always)]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Bytes that are not read yet.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// Whether everything was read.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `N` bytes.
    #[inline(always)]
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    /// The next `length` bytes.
    #[inline(always)]
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// The next byte.
    #[inline(always)]
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    /// The next two bytes.
    #[inline(always)]
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes.
    #[inline(always)]
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next eight bytes.
    #[inline(always)]
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next value of variable length (RFC 7011, section 7), without its length.
    #[inline]
    pub fn variable(&mut self) -> Option<&'a [u8]> {
        let length = match self.u8()? {
            255 => self.u16()?,
            length => u16::from(length),
        };
        self.bytes(usize::from(length))
    }

    /// The next value of variable length, with its length in front.
    #[inline]
    pub fn variable_with_length(&mut self) -> Option<&'a [u8]> {
        let all = self.rest;
        self.variable()?;
        all.get(..all.len() - self.rest.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_in_order() {
        let mut from = Reader::new(&[1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 2, b'a', b'b', 255, 0, 1, b'c', 9]);
        assert_eq!((from.u8(), from.u16(), from.u32(), from.u64()), (Some(1), Some(2), Some(3), Some(4)));
        assert_eq!(from.variable(), Some(&b"ab"[..]));
        assert_eq!(from.variable_with_length(), Some(&[255, 0, 1, b'c'][..]));
        assert_eq!((from.rest(), from.len(), from.is_empty()), (&[9][..], 1, false));
    }

    #[test]
    fn what_is_not_there_is_none_and_is_left() {
        let mut from = Reader::new(&[5, b'a']);
        assert_eq!((from.u32(), from.u64(), from.bytes(3)), (None, None, None));
        assert_eq!(from.rest(), [5, b'a']);
        assert_eq!(from.variable(), None);
        assert_eq!(Reader::new(&[255, 0]).variable(), None);
    }
}
