//! What the kernel's list of symbols tells of connection tracking: whether it is there, whether the compiler has split its functions,
//! and where it keeps a secret of its own.

use std::fs::File;
use std::io::{self, BufReader};

const SYMBOLS: &str = "/proc/kallsyms";

/// Names that everyone may read; addresses only with CAP_SYSLOG.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Symbols {
    /// There is connection tracking.
    pub(super) confirm: bool,
    /// A part of `nf_ct_delete` is a function of its own, which callers inside the module go to directly.
    pub(super) delete_is_split: bool,
    /// Every release goes through this one from 5.18 on.
    pub(super) destroy: bool,
    /// Address of the seed of connections' numbers; 0 where it is hidden.
    pub(super) seed: u64,
}

impl Symbols {
    pub(super) fn read() -> io::Result<Self> {
        Self::parse(BufReader::with_capacity(1 << 16, File::open(SYMBOLS)?))
    }

    fn parse(mut lines: impl io::BufRead) -> io::Result<Self> {
        let mut symbols = Self::default();
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? != 0 {
            symbols.take(&line);
            line.clear();
        }
        Ok(symbols)
    }

    /// An address, a letter, a name, and the module in brackets where it is one's.
    fn take(&mut self, line: &[u8]) {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next()) else { return };
        match name {
            b"__nf_conntrack_confirm" => self.confirm = true,
            b"nf_ct_destroy" => self.destroy = true,
            _ if name.starts_with(b"nf_ct_delete.") => self.delete_is_split = true,
            _ if is_seed(name) => {
                let address = std::str::from_utf8(address).ok();
                self.seed = address.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default();
            }
            _ => {}
        }
    }
}

/// A static of a function: compilers add a number, or the function's name.
fn is_seed(name: &[u8]) -> bool {
    const SEED: &[u8] = b"ct_id_seed";
    match name.strip_prefix(SEED) {
        Some(rest) => rest.is_empty() || rest.starts_with(b"."),
        None => name.strip_suffix(SEED).is_some_and(|before| before.ends_with(b".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_function_and_the_seed_are_found() {
        let list = "ffffffff81000000 T _stext\n\
            ffffffffc0a01230 t nf_ct_delete.part.0\t[nf_conntrack]\n\
            ffffffffc0a01300 T nf_ct_delete\t[nf_conntrack]\n\
            ffffffffc0a02000 T __nf_conntrack_confirm\t[nf_conntrack]\n\
            ffffffffc0b00020 d ct_id_seed.5\t[nf_conntrack]\n\
            ffffffffc0b00040 b exp_id_seed.2\t[nf_conntrack_netlink]\n";
        let symbols = Symbols::parse(list.as_bytes()).expect("in memory");
        let expected = Symbols { confirm: true, delete_is_split: true, destroy: false, seed: 0xffff_ffff_c0b0_0020 };
        assert_eq!(symbols, expected);
    }

    #[test]
    fn hidden_addresses_are_none() {
        let list = "0000000000000000 d ct_id_seed\n0000000000000000 T nf_ct_destroy\n junk\n\n\u{ff}\n";
        let symbols = Symbols::parse(list.as_bytes()).expect("in memory");
        assert_eq!(symbols, Symbols { destroy: true, ..Symbols::default() });
        let named = Symbols::parse(&b"12 d nf_ct_get_id.ct_id_seed\n"[..]).expect("in memory");
        assert_eq!(named.seed, 0x12);
    }
}
