//! SipHash-2-4, with which the kernel makes the numbers of its connections. Keyed by a secret of the kernel's; nothing here
//! relies on its strength.

/// The hash of `bytes` under a key of two words.
pub(super) fn hash([first, second]: [u64; 2], bytes: &[u8]) -> u64 {
    let mut state = State([
        first ^ 0x736f_6d65_7073_6575,
        second ^ 0x646f_7261_6e64_6f6d,
        first ^ 0x6c79_6765_6e65_7261,
        second ^ 0x7465_6462_7974_6573,
    ]);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        state.take(little(word));
    }
    state.take(little(words.remainder()) | (bytes.len() as u64) << 56);
    state.finish()
}

/// Up to eight bytes, the first the lowest.
fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

struct State([u64; 4]);

impl State {
    fn take(&mut self, word: u64) {
        self.0[3] ^= word;
        self.rounds(2);
        self.0[0] ^= word;
    }

    fn finish(mut self) -> u64 {
        self.0[2] ^= 0xff;
        self.rounds(4);
        self.0.into_iter().fold(0, |hash, word| hash ^ word)
    }

    fn rounds(&mut self, count: u32) {
        let Self([a, b, c, d]) = self;
        for _ in 0..count {
            *a = a.wrapping_add(*b);
            *b = b.rotate_left(13) ^ *a;
            *a = a.rotate_left(32);
            *c = c.wrapping_add(*d);
            *d = d.rotate_left(16) ^ *c;
            *a = a.wrapping_add(*d);
            *d = d.rotate_left(21) ^ *a;
            *c = c.wrapping_add(*b);
            *b = b.rotate_left(17) ^ *c;
            *c = c.rotate_left(32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the paper's appendix, and the first of its authors' vectors: key and message are 0, 1, 2 and so on.
    #[test]
    fn the_authors_vectors_hold() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let message: Vec<u8> = (0..15).collect();
        assert_eq!(hash(key, &message), 0xa129_ca61_49be_45e5);
        assert_eq!(hash(key, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(hash(key, &message[..8]), 0x93f5_f579_9a93_2462);
    }
}
