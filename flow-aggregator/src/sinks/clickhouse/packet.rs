//! Packets of ClickHouse's native protocol: what we say as bytes, and what a server says out of bytes.
//!
//! We declare [`REVISION`], which servers from 2018 to today speak: settings are texts, and nothing that came later
//! (traces, chunks, serializations of a column's own) stands on the wire. With an older server its revision counts.
//! Nothing here reads a socket or panics.

use super::{
    error::Refusal,
    frame::{self, Frames},
    wire::{Answer, Fault, Reader, put_number, put_text},
};

/// Of the protocol that we speak.
pub const REVISION: u64 = 54_429;

/// Revisions from which a server has a field.
mod since {
    pub(super) const TIMEZONE: u64 = 54_058;
    pub(super) const QUOTA_KEY: u64 = 54_060;
    pub(super) const DISPLAY_NAME: u64 = 54_372;
    pub(super) const PATCH: u64 = 54_401;
    pub(super) const WRITTEN: u64 = 54_420;
    pub(super) const TEXT_SETTINGS: u64 = 54_429;
}

const CLIENT_HELLO: u64 = 0;
const CLIENT_QUERY: u64 = 1;
const CLIENT_DATA: u64 = 2;

/// What we call ourselves in the server's log of queries.
const CLIENT: &[u8] = b"flow-aggregator";

/// A server's packet, as far as we use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// It knows us; of its revision and ours the smaller is spoken.
    Hello {
        /// That is spoken.
        revision: u64,
    },
    /// A block.
    Data(Answer),
    /// It refuses.
    Exception(Refusal),
    /// The query is done.
    End,
    /// How far it is, and other things that we do not use.
    Other,
}

/// The first packet.
pub fn hello(database: &str, user: &str, password: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(CLIENT_HELLO, &mut out);
    put_text(CLIENT, &mut out);
    version(&mut out);
    put_number(REVISION, &mut out);
    for text in [database, user, password] {
        put_text(text.as_bytes(), &mut out);
    }
    out
}

/// A query, and that no table comes with it. Old servers take no settings.
pub fn query(revision: u64, sql: &str, settings: &[(&str, &str)], compressed: bool) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(CLIENT_QUERY, &mut out);
    // The server draws the query's id.
    put_text(b"", &mut out);
    client(revision, &mut out);
    if revision >= since::TEXT_SETTINGS {
        for (name, value) in settings {
            put_text(name.as_bytes(), &mut out);
            // Important: a server that does not know the setting must refuse, not ignore it.
            put_number(1, &mut out);
            put_text(value.as_bytes(), &mut out);
        }
    }
    put_text(b"", &mut out);
    // To the last stage.
    put_number(2, &mut out);
    put_number(u64::from(compressed), &mut out);
    put_text(sql.as_bytes(), &mut out);
    out.extend(no_data(compressed));
    out
}

/// What stands before the columns of a block.
pub fn begin_data(compressed: bool) -> Vec<u8> {
    data(&BLOCK_INFO, compressed)
}

/// An empty block, which says that no more comes.
pub fn no_data(compressed: bool) -> Vec<u8> {
    data(&[&BLOCK_INFO[..], &[0, 0]].concat(), compressed)
}

/// Not an overflow row, of no bucket, no more fields.
const BLOCK_INFO: [u8; 8] = [1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0];

fn data(block: &[u8], compressed: bool) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(CLIENT_DATA, &mut out);
    put_text(b"", &mut out);
    let mut frames = Frames::new(compressed);
    frames.put(block);
    out.extend(frames.finish());
    out
}

/// Whom the query comes from: nobody but ourselves.
fn client(revision: u64, out: &mut Vec<u8>) {
    const INITIAL_QUERY: u8 = 1;
    const TCP: u8 = 1;
    out.push(INITIAL_QUERY);
    for text in [&b""[..], b"", b"0.0.0.0:0"] {
        put_text(text, out);
    }
    out.push(TCP);
    for text in [&b""[..], b"", CLIENT] {
        put_text(text, out);
    }
    version(out);
    put_number(REVISION, out);
    if revision >= since::QUOTA_KEY {
        put_text(b"", out);
    }
    if revision >= since::PATCH {
        put_number(0, out);
    }
}

/// Ours, major and minor.
fn version(out: &mut Vec<u8>) {
    for part in [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR")] {
        put_number(part.parse().unwrap_or(0), out);
    }
}

/// Reads a server's packet; what it says of itself in [`Packet::Hello`] decides about `revision`, which is
/// [`REVISION`] before that.
pub fn read(from: &mut Reader<'_>, revision: u64, compressed: bool) -> Result<Packet, Fault> {
    match from.number()? {
        0 => read_hello(from),
        1 | 7 | 8 => {
            from.text()?;
            read_block(from, compressed).map(Packet::Data)
        }
        2 => read_exception(from).map(Packet::Exception),
        3 => {
            let fields = if revision >= since::WRITTEN { 5 } else { 3 };
            (0..fields).try_for_each(|_| from.number().map(drop))?;
            Ok(Packet::Other)
        }
        4 => Ok(Packet::Other),
        5 => Ok(Packet::End),
        6 => {
            (0..3).try_for_each(|_| from.number().map(drop))?;
            from.array::<1>()?;
            from.number()?;
            from.array::<1>()?;
            Ok(Packet::Other)
        }
        // Defaults of a table's columns.
        11 => {
            (0..2).try_for_each(|_| from.text().map(drop))?;
            Ok(Packet::Other)
        }
        _ => Err(Fault::Malformed("an unknown packet")),
    }
}

fn read_hello(from: &mut Reader<'_>) -> Result<Packet, Fault> {
    from.text()?;
    let [_, _, revision] = [from.number()?, from.number()?, from.number()?];
    let revision = revision.min(REVISION);
    if revision >= since::TIMEZONE {
        from.text()?;
    }
    if revision >= since::DISPLAY_NAME {
        from.text()?;
    }
    if revision >= since::PATCH {
        from.number()?;
    }
    Ok(Packet::Hello { revision })
}

fn read_block(from: &mut Reader<'_>, compressed: bool) -> Result<Answer, Fault> {
    let mut answer = Answer::default();
    if compressed {
        // The only blocks that come so are those that name columns: one frame is more than they need.
        let bytes = frame::open(from)?;
        let mut block = Reader::new(&bytes);
        block
            .block_info()
            .and_then(|()| block.block(&mut answer))
            .map_err(|_| Fault::Malformed("a block in a frame"))?;
    } else {
        from.block_info()?;
        from.block(&mut answer)?;
    }
    Ok(answer)
}

/// The outermost of nested ones: the others say what led to it.
fn read_exception(from: &mut Reader<'_>) -> Result<Refusal, Fault> {
    let mut outermost = None;
    // A server nests a few; bytes from outside could nest for ever.
    for _ in 0..64 {
        let code = i32::from_le_bytes(from.array()?);
        let (_, message, _) = (from.text()?, from.text()?, from.text()?);
        let refusal = Refusal::new(u32::try_from(code).unwrap_or(0), &message);
        outermost.get_or_insert(refusal);
        if from.array()? == [0] {
            return outermost.ok_or(Fault::Short);
        }
    }
    Err(Fault::Malformed("exceptions without end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exception(nested: u8) -> Vec<u8> {
        let mut out = vec![2];
        for (code, nested) in [(60_i32, nested), (1000, 0)].into_iter().take(1 + usize::from(nested)) {
            out.extend(code.to_le_bytes());
            for text in ["DB::Exception", "Table is gone. Stack trace: 0. main", "0. main"] {
                put_text(text.as_bytes(), &mut out);
            }
            out.push(nested);
        }
        out
    }

    #[test]
    fn packets_wait_until_they_are_whole() {
        let mut hello = vec![0];
        put_text(b"ClickHouse", &mut hello);
        [18, 16, 54_412].into_iter().for_each(|number| put_number(number, &mut hello));
        [&b"UTC"[..], b"db"].into_iter().for_each(|text| put_text(text, &mut hello));
        put_number(1, &mut hello);
        let refusal = Refusal { code: 60, message: "Table is gone.".into() };
        let mut empty = vec![1, 0];
        empty.extend(&no_data(false)[2..]);
        let mut packed = vec![1, 0];
        packed.extend(&no_data(true)[2..]);
        for (bytes, compressed, packet) in [
            (hello, false, Packet::Hello { revision: 54_412 }),
            (exception(0), false, Packet::Exception(refusal.clone())),
            (exception(1), false, Packet::Exception(refusal)),
            (empty, false, Packet::Data(Answer::default())),
            (packed, true, Packet::Data(Answer::default())),
            (vec![3, 1, 2, 3, 4, 5], false, Packet::Other),
            (vec![5], false, Packet::End),
        ] {
            let mut from = Reader::new(&bytes);
            assert_eq!(read(&mut from, REVISION, compressed), Ok(packet));
            assert!(from.is_empty());
            for length in 0..bytes.len() {
                assert_eq!(read(&mut Reader::new(&bytes[..length]), REVISION, compressed), Err(Fault::Short));
            }
        }
        assert!(matches!(read(&mut Reader::new(b"HTTP/1.1 400"), REVISION, false), Err(Fault::Malformed(_))));
    }
}
