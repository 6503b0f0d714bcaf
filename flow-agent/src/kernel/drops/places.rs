//! Names of the kernel's functions by address, from /proc/kallsyms. Addresses there are zero for who may not read them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use flow_common::abi::drop::Places;

/// The kernel's symbols.
pub(super) const SYMBOLS: &str = "/proc/kallsyms";
/// What a place is called whose name may not be read.
const UNREADABLE: &str = "unknown location: CAP_SYSLOG";
/// What a place is called that no symbol is before.
const UNKNOWN: &str = "unknown location";

/// Functions in which netfilter drops, on kernels that give no reasons.
const NETFILTER: [&str; 2] = ["nf_hook_slow", "nft_do_chain"];

/// Names that were looked up.
#[derive(Debug)]
pub(super) struct Symbols {
    path: PathBuf,
    names: HashMap<u64, String>,
}

impl Symbols {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), names: HashMap::new() }
    }

    /// Looks the names of some places up, reading the symbols at most once.
    pub(super) fn resolve(&mut self, places: impl Iterator<Item = u64>) {
        let mut asked: Vec<u64> = places.filter(|place| !self.names.contains_key(place)).collect();
        asked.sort_unstable();
        asked.dedup();
        if asked.is_empty() {
            return;
        }
        // Per place, the last function between the place before it and itself. What calls lies behind its function's first byte.
        let mut best: Vec<(u64, String)> = vec![(0, UNKNOWN.to_owned()); asked.len()];
        let mut readable = false;
        each(&self.path, |address, name| {
            readable |= address != 0;
            let next = asked.partition_point(|place| *place <= address);
            if let Some(best) = best.get_mut(next).filter(|best| best.0 < address) {
                best.0 = address;
                // A module's name follows behind a tab.
                best.1 = name.replace('\t', " ");
            }
        });
        // Where there is none, the two places are in one function.
        for at in 1..best.len() {
            if best[at].0 == 0 {
                best[at] = best[at - 1].clone();
            }
        }
        for (place, (_, name)) in asked.into_iter().zip(best) {
            self.names.insert(place, if readable { name } else { UNREADABLE.to_owned() });
        }
    }

    /// The function at a place; one that was not looked up is its address.
    pub(super) fn name(&self, place: u64) -> String {
        self.names.get(&place).cloned().unwrap_or_else(|| format!("{place:#x}"))
    }
}

/// Where netfilter drops; none if the addresses may not be read.
pub(super) fn netfilter(path: &Path) -> Option<Places> {
    let mut places = Places::default();
    let mut begins = [0_u64; NETFILTER.len()];
    each(path, |address, name| {
        let name = name.split_whitespace().next().unwrap_or_default();
        if let Some(at) = NETFILTER.iter().position(|function| *function == name) {
            begins[at] = address;
        }
    });
    let mut ends = [u64::MAX; NETFILTER.len()];
    each(path, |address, _| {
        for (begin, end) in begins.iter().zip(&mut ends) {
            if address > *begin && address < *end {
                *end = address;
            }
        }
    });
    for ((place, begin), end) in places.iter_mut().zip(begins).zip(ends) {
        // A symbol that is not there, or of which nothing says how long it is.
        if begin != 0 && end != u64::MAX {
            *place = [begin, end];
        }
    }
    (places != Places::default()).then_some(places)
}

/// Every function: "ffffffff81000000 T name [module]", a line each.
fn each(path: &Path, mut visit: impl FnMut(u64, &str)) {
    let Ok(file) = File::open(path) else { return };
    let mut lines = BufReader::with_capacity(1 << 16, file);
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
        let mut words = line.trim_end().splitn(3, ' ');
        if let (Some(address), Some("t" | "T" | "w" | "W"), Some(name)) = (words.next(), words.next(), words.next())
            && let Ok(address) = u64::from_str_radix(address, 16)
        {
            visit(address, name);
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn symbols(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("there is room");
        file
    }

    const TEXT: &str = "\
ffffffff81000300 T nf_hook_slow\nffffffff81000100 t first\nffffffff81000400 T last\nffffffff81000380 d data\n\
ffffffffc0000000 t nft_do_chain\t[nf_tables]\nffffffffc0000200 t nft_do_other\t[nf_tables]\n";

    #[test]
    fn a_place_is_in_the_last_function_that_begins_before_it() {
        let file = symbols(TEXT);
        let mut symbols = Symbols::new(file.path());
        let places = [0xffff_ffff_8100_0390, 0xffff_ffff_8100_0100, 0xffff_ffff_8100_0400, 0xffff_ffff_c000_0010];
        symbols.resolve(places.into_iter());
        // What returns to a function's first byte was called by the one before it, as its last instruction.
        let names = places.map(|place| symbols.name(place));
        assert_eq!(names, ["nf_hook_slow", UNKNOWN, "nf_hook_slow", "nft_do_chain [nf_tables]"]);
    }

    #[test]
    fn addresses_that_may_not_be_read_are_said_to_be_so() {
        let file = symbols("0000000000000000 T nf_hook_slow\n0000000000000000 t first\n");
        let mut symbols = Symbols::new(file.path());
        symbols.resolve([5].into_iter());
        assert_eq!(symbols.name(5), UNREADABLE);
        assert_eq!(netfilter(file.path()), None);
    }

    #[test]
    fn netfilters_functions_end_where_the_next_begins() {
        let file = symbols(TEXT);
        let [slow, chain] = netfilter(file.path()).expect("both are there");
        assert_eq!(slow, [0xffff_ffff_8100_0300, 0xffff_ffff_8100_0400]);
        assert_eq!(chain, [0xffff_ffff_c000_0000, 0xffff_ffff_c000_0200]);
    }
}
