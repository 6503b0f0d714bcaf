//! ClickHouse's elements on the wire: numbers of variable length, strings, and blocks of columns.
//!
//! Takes bytes as far as they came; gives values, or says that more must come, or what makes no sense. Of blocks only
//! what our own questions are answered with is read: columns of strings and integers, and blocks without rows. Nothing
//! here reads a socket or panics.

/// Columns, rows and bytes of a string beyond which an answer is none of ours.
const MOST_COLUMNS: u64 = 4_096;
const MOST_ROWS: u64 = 1 << 20;
const LONGEST_TEXT: u64 = 16 << 20;
/// More bytes than any answer to our questions has, packed or not.
pub(super) const LONGEST_ANSWER: usize = 64 << 20;

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More must come.
    #[error("the answer is cut short")]
    Short,
    /// It will not get better.
    #[error("the answer makes no sense: {0}")]
    Malformed(&'static str),
}

/// An answer to one of our questions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Each with one text a column.
    pub rows: Vec<Vec<String>>,
}

/// Bytes that are read from the front.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// Seven bits a byte, the lowest first.
#[inline]
pub fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A string with its length in front.
#[inline]
pub fn put_text(text: &[u8], out: &mut Vec<u8>) {
    put_number(text.len() as u64, out);
    out.extend_from_slice(text);
}

impl<'a> Reader<'a> {
    /// Reads all of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Bytes that are not read yet.
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Fault::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Fault::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A number of variable length.
    pub fn number(&mut self) -> Result<u64, Fault> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Fault::Malformed("a number of more than 64 bits"))
    }

    /// A string; what is no UTF-8 in it is replaced.
    pub fn text(&mut self) -> Result<String, Fault> {
        let length = self.number()?;
        if length > LONGEST_TEXT {
            return Err(Fault::Malformed("a string of more than 16 MiB"));
        }
        let bytes = self.bytes(usize::try_from(length).map_err(|_| Fault::Malformed("a string's length"))?)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The fields before a block of the native protocol; none of them matters to us.
    pub fn block_info(&mut self) -> Result<(), Fault> {
        loop {
            match self.number()? {
                0 => return Ok(()),
                1 => drop(self.array::<1>()?),
                2 => drop(self.array::<4>()?),
                _ => return Err(Fault::Malformed("an unknown field before a block")),
            }
        }
    }

    /// A block, whose rows are appended to the answer.
    pub fn block(&mut self, answer: &mut Answer) -> Result<(), Fault> {
        let (columns, rows) = (self.number()?, self.number()?);
        if columns > MOST_COLUMNS || rows > MOST_ROWS {
            return Err(Fault::Malformed("a block of more columns or rows than was asked for"));
        }
        let begin = answer.rows.len();
        for _ in 0..columns {
            let (_, kind) = (self.text()?, self.text()?);
            if rows == 0 {
                continue;
            }
            let value = value_of(&kind).ok_or(Fault::Malformed("a column that is neither string nor integer"))?;
            for row in 0..rows as usize {
                let text = value(self)?;
                match answer.rows.get_mut(begin + row) {
                    Some(known) => known.push(text),
                    None => answer.rows.push(vec![text]),
                }
            }
        }
        Ok(())
    }
}

/// Reads a value as text.
type Read = fn(&mut Reader<'_>) -> Result<String, Fault>;

/// How a value of a type is read.
fn value_of(kind: &str) -> Option<Read> {
    let read: Read = match kind {
        "String" => |from| from.text(),
        "UInt8" => |from| Ok(u8::from_le_bytes(from.array()?).to_string()),
        "UInt16" => |from| Ok(u16::from_le_bytes(from.array()?).to_string()),
        "UInt32" => |from| Ok(u32::from_le_bytes(from.array()?).to_string()),
        "UInt64" => |from| Ok(u64::from_le_bytes(from.array()?).to_string()),
        "Int8" => |from| Ok(i8::from_le_bytes(from.array()?).to_string()),
        "Int16" => |from| Ok(i16::from_le_bytes(from.array()?).to_string()),
        "Int32" => |from| Ok(i32::from_le_bytes(from.array()?).to_string()),
        "Int64" => |from| Ok(i64::from_le_bytes(from.array()?).to_string()),
        _ => return None,
    };
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A block as a server writes it.
    fn block(columns: &[(&str, Vec<String>)]) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(columns.len() as u64, &mut out);
        put_number(columns.first().map_or(0, |(_, rows)| rows.len()) as u64, &mut out);
        for (name, rows) in columns {
            put_text(name.as_bytes(), &mut out);
            put_text(b"String", &mut out);
            rows.iter().for_each(|row| put_text(row.as_bytes(), &mut out));
        }
        out
    }

    proptest! {
        #[test]
        fn numbers_read_back(number: u64) {
            let mut out = Vec::new();
            put_number(number, &mut out);
            prop_assert_eq!(Reader::new(&out).number(), Ok(number));
            prop_assert_eq!(Reader::new(&out[..out.len() - 1]).number(), Err(Fault::Short));
        }

        #[test]
        fn blocks_read_back_and_cut_ones_wait(rows in prop::collection::vec(".{0,200}", 0..9)) {
            let bytes = block(&[("a", rows.clone()), ("b", rows.clone())]);
            let mut answer = Answer::default();
            let mut from = Reader::new(&bytes);
            prop_assert_eq!(from.block(&mut answer), Ok(()));
            prop_assert!(from.is_empty());
            prop_assert_eq!(answer.rows, rows.iter().map(|row| vec![row.clone(), row.clone()]).collect::<Vec<_>>());
            for length in 0..bytes.len() {
                prop_assert_eq!(Reader::new(&bytes[..length]).block(&mut Answer::default()), Err(Fault::Short));
            }
        }
    }

    #[test]
    fn integers_are_read_as_texts() {
        // As a statement ON CLUSTER is answered.
        let mut out = vec![2, 2];
        for (kind, values) in [("UInt16", [&[0x28, 0x23][..], &[1, 0]]), ("Int64", [&[0xff; 8], &[0; 8]])] {
            put_text(b"a", &mut out);
            put_text(kind.as_bytes(), &mut out);
            values.iter().for_each(|value| out.extend_from_slice(value));
        }
        let mut answer = Answer::default();
        assert_eq!(Reader::new(&out).block(&mut answer), Ok(()));
        assert_eq!(answer.rows, [["9000", "-1"], ["1", "0"]]);
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let mut out = vec![1, 1];
        put_text(b"a", &mut out);
        put_text(b"Date", &mut out);
        assert!(matches!(Reader::new(&out).block(&mut Answer::default()), Err(Fault::Malformed(_))));
        assert!(matches!(Reader::new(&[0xff; 11]).number(), Err(Fault::Malformed(_))));
        assert!(matches!(
            Reader::new(&[0, 0xff, 0xff, 0xff, 0x7f]).block(&mut Answer::default()),
            Err(Fault::Malformed(_))
        ));
    }
}
