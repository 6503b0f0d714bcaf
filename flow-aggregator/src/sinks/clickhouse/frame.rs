//! Compressed frames, as both the native protocol and the HTTP interface (`decompress=1`) take them: a checksum, the
//! method, both lengths, and LZ4's block.
//!
//! Takes bytes of any length, gives frames of at most [`FRAME`] raw bytes; and the first frame of an answer back.

use super::wire::{Fault, LONGEST_ANSWER, Reader};

/// Raw bytes in a frame.
const FRAME: usize = 1 << 20;
/// Says that the frame is LZ4's.
const LZ4: u8 = 0x82;
/// The method and both lengths, which count among the compressed bytes.
const HEADER: usize = 9;
const CHECKSUM: usize = 16;

/// Gathers bytes and compresses each full frame, or hands them on as they are.
#[derive(Debug)]
pub(super) struct Frames {
    out: Vec<u8>,
    /// What waits for its frame to be full; `None` where nothing is compressed.
    raw: Option<Vec<u8>>,
}

impl Frames {
    /// Compresses or not.
    pub(super) fn new(compress: bool) -> Frames {
        Frames { out: Vec::new(), raw: compress.then(|| Vec::with_capacity(FRAME)) }
    }

    /// Appends bytes.
    pub(super) fn put(&mut self, mut bytes: &[u8]) {
        let Some(raw) = &mut self.raw else { return self.out.extend_from_slice(bytes) };
        while let Some((fits, rest)) = bytes.split_at_checked(FRAME - raw.len()) {
            raw.extend_from_slice(fits);
            seal(raw, &mut self.out);
            raw.clear();
            bytes = rest;
        }
        raw.extend_from_slice(bytes);
    }

    /// All of it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if let Some(raw) = self.raw.take_if(|raw| !raw.is_empty()) {
            seal(&raw, &mut self.out);
        }
        self.out
    }
}

/// Appends one frame.
fn seal(raw: &[u8], out: &mut Vec<u8>) {
    let begin = out.len();
    let room = lz4_flex::block::get_maximum_output_size(raw.len());
    out.resize(begin + CHECKSUM + HEADER + room, 0);
    let packed =
        lz4_flex::block::compress_into(raw, &mut out[begin + CHECKSUM + HEADER..]).expect("room for the worst");
    out.truncate(begin + CHECKSUM + HEADER + packed);
    let frame = &mut out[begin + CHECKSUM..];
    frame[0] = LZ4;
    frame[1..5].copy_from_slice(&length(packed + HEADER));
    frame[5..9].copy_from_slice(&length(raw.len()));
    let checksum = checksum(frame);
    out[begin..begin + CHECKSUM].copy_from_slice(&checksum);
}

/// Lengths of a frame, which is far below 4 GiB.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

/// CityHash128 of version 1.0.2, the higher half first.
fn checksum(frame: &[u8]) -> [u8; 16] {
    cityhash_rs::cityhash_102_128(frame).rotate_left(64).to_le_bytes()
}

/// Reads one frame.
pub(super) fn open(from: &mut Reader<'_>) -> Result<Vec<u8>, Fault> {
    let known: [u8; CHECKSUM] = from.array()?;
    let mut ahead = *from;
    let header: [u8; HEADER] = ahead.array()?;
    let [method, a, b, c, d, e, f, g, h] = header;
    let [packed, raw] = [[a, b, c, d], [e, f, g, h]].map(|bytes| usize::try_from(u32::from_le_bytes(bytes)).ok());
    let packed = packed.filter(|length| *length >= HEADER);
    let packed = packed.ok_or(Fault::Malformed("a frame shorter than its header"))?;
    let raw = raw.filter(|length| method == LZ4 && *length <= LONGEST_ANSWER);
    let raw = raw.ok_or(Fault::Malformed("a frame that is not LZ4's, or too long"))?;
    let frame = from.bytes(packed)?;
    if checksum(frame) != known {
        return Err(Fault::Malformed("a frame's checksum does not fit"));
    }
    lz4_flex::block::decompress(frame.get(HEADER..).unwrap_or_default(), raw)
        .map_err(|_| Fault::Malformed("a frame that cannot be unpacked"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packed(parts: &[&[u8]]) -> Vec<u8> {
        let mut frames = Frames::new(true);
        parts.iter().for_each(|part| frames.put(part));
        frames.finish()
    }

    fn unpacked(bytes: &[u8]) -> Result<Vec<u8>, Fault> {
        let (mut from, mut all) = (Reader::new(bytes), Vec::new());
        while !from.is_empty() {
            all.extend(open(&mut from)?);
        }
        Ok(all)
    }

    proptest! {
        #[test]
        fn frames_read_back(a in prop::collection::vec(any::<u8>(), 0..5_000), repeats in 1_usize..30) {
            let long = a.repeat(repeats);
            prop_assert_eq!(unpacked(&packed(&[&a, &long, &a])), Ok([&a[..], &long, &a].concat()));
        }
    }

    #[test]
    fn full_frames_leave_at_once() {
        for length in [FRAME - 1, FRAME, FRAME + 1, 2 * FRAME] {
            let bytes = vec![7; length];
            assert_eq!(unpacked(&packed(&[&bytes])).as_deref(), Ok(&bytes[..]));
        }
        assert!(packed(&[]).is_empty());
    }

    #[test]
    fn a_spoilt_frame_is_told_from_a_cut_one() {
        let good = packed(&[b"some bytes, some bytes, some bytes"]);
        for length in 0..good.len() {
            assert_eq!(open(&mut Reader::new(&good[..length])), Err(Fault::Short));
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(open(&mut Reader::new(&bad)).is_err(), "byte {at}");
        }
    }
}
