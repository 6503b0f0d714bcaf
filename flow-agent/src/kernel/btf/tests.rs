//! Types put together by hand, bytes that nobody wrote, and the running kernel's own.

use super::*;
use proptest::prelude::*;
use std::time::{Duration, Instant};

/// Puts sections together.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Offset of the first string.
    base: u32,
}

impl Builder {
    fn kernel() -> Self {
        Self { strings: vec![0], ..Self::default() }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let offset = self.base + u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(name.bytes().chain([0]));
        offset
    }

    fn add(&mut self, name: &str, information: u32, size_or_type: u32, rest: &[u32]) {
        let name = self.name(name);
        for word in [name, information, size_or_type].iter().chain(rest) {
            self.types.extend(word.to_ne_bytes());
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let size = |part: &[u8]| u32::try_from(part.len()).unwrap();
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, size(&self.types), size(&self.types), size(&self.strings)] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

/// `struct inner { u8 a; union { u16 b; u8 c[2]; }; }` and `struct outer { const struct inner array[3]; int : 4; void *p; }`,
/// an enumeration and a function.
fn kernel() -> Builder {
    let mut b = Builder::kernel();
    b.add("u8", 1 << 24, 1, &[8]); // 1
    b.add("u16", 1 << 24, 2, &[16]); // 2
    b.add("", 3 << 24, 0, &[1, 1, 2]); // 3: u8[2]
    let (in_b, in_c) = (b.name("b"), b.name("c"));
    b.add("", 5 << 24 | 2, 2, &[in_b, 2, 0, in_c, 3, 0]); // 4
    let in_a = b.name("a");
    b.add("inner", 4 << 24 | 2, 4, &[in_a, 1, 0, 0, 4, 16]); // 5
    b.add("", 10 << 24, 5, &[]); // 6: const
    b.add("", 3 << 24, 0, &[6, 1, 3]); // 7
    b.add("", 2 << 24, 0, &[]); // 8: pointer
    let (array, bits, pointer) = (b.name("array"), b.name("bits"), b.name("pointer"));
    // With the flag of bit fields: width above, offset below.
    let members = [array, 7, 0, bits, 1, 4 << 24 | 96, pointer, 8, 128];
    b.add("outer", 1 << 31 | 4 << 24 | 3, 24, &members); // 9
    let (one, two) = (b.name("ONE"), b.name("TWO"));
    b.add("numbers_reason", 6 << 24 | 2, 4, &[one, 1, two, 7]); // 10
    b.add("wide_reason", 19 << 24 | 1, 8, &[one, 5, 9]); // 11
    b.add("", 13 << 24, 0, &[]); // 12
    b.add("run", 12 << 24, 12, &[]); // 13
    b
}

fn module(kernel: &Builder) -> Builder {
    let mut b = Builder { base: u32::try_from(kernel.strings.len()).unwrap(), ..Builder::default() };
    let count = b.name("count");
    b.add("own", 4 << 24 | 1, 32, &[count, 9, 64]); // 14
    b.add("walk", 12 << 24, 12, &[]); // 15
    b
}

fn at(offset: u32, size: u32) -> Option<Member> {
    Some(Member { offset, size })
}

#[test]
fn members_are_found_by_their_path() {
    let kernel = kernel();
    let btf = Btf::parse(kernel.bytes(), Some(module(&kernel).bytes())).expect("well formed");
    assert_eq!(btf.member("outer", "array"), at(0, 12));
    assert_eq!(btf.member("outer", "array[2].a"), at(8, 1));
    assert_eq!(btf.member("outer", "array[1].c[1]"), at(4 + 2 + 1, 1), "through an anonymous union");
    assert_eq!(btf.member("outer", "pointer"), at(16, 8));
    assert_eq!(btf.member("own", "count.array[1].b"), at(8 + 4 + 2, 2), "from the module into the kernel");
    for missing in ["bits", "array[3]", "array[x]", "array[1", "a", "array.a", "pointer.a", "", "array[1]."] {
        assert_eq!(btf.member("outer", missing), None, "{missing}");
    }
    assert_eq!((btf.size("outer"), btf.size("own"), btf.size("run")), (Some(24), Some(32), None));
}

#[test]
fn values_and_functions_are_found_by_name() {
    let kernel = kernel();
    let btf = Btf::parse(kernel.bytes(), Some(module(&kernel).bytes())).expect("well formed");
    assert_eq!(btf.value("numbers_reason", "TWO"), Some(7));
    assert_eq!(btf.value("numbers_reason", "THREE"), None);
    let reasons = btf.enumerations(|name| name.ends_with(b"_reason"));
    let names: Vec<&[u8]> = reasons.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, [b"numbers_reason".as_slice(), b"wide_reason"]);
    assert_eq!(reasons[1].1, [(b"ONE".as_slice(), 5)]);
    assert_eq!(btf.function("run"), Some(Function { id: 13, of_module: false }));
    assert_eq!(btf.function("walk"), Some(Function { id: 15, of_module: true }));
    assert_eq!(btf.function("outer"), None, "no function");
}

#[test]
fn types_that_lie_in_themselves_end() {
    let mut b = Builder::kernel();
    b.add("loop", 4 << 24 | 1, 8, &[0, 1, 0]);
    b.add("", 10 << 24, 2, &[]);
    b.add("", 3 << 24, 0, &[3, 1, 2]);
    let name = b.name("array");
    b.add("holder", 4 << 24 | 1, 8, &[name, 3, 0]);
    let btf = Btf::parse(b.bytes(), None).expect("well formed");
    assert_eq!((btf.member("loop", "x"), btf.member("holder", "array")), (None, None));
}

#[test]
fn the_running_kernels_types_are_read_at_once() {
    let bytes = std::fs::read("/sys/kernel/btf/vmlinux").expect("a kernel with BTF");
    let begin = Instant::now();
    let btf = Btf::parse(bytes, None).expect("well formed");
    let member = |path| btf.member("sk_buff", path).unwrap_or_else(|| panic!("sk_buff.{path}"));
    assert_eq!((member("head").size, member("_nfct").size, member("protocol").size), (8, 8, 2));
    let (next, net) = (btf.member("net_device", "ifindex"), btf.member("net", "ns.inum"));
    assert!(next.is_some_and(|member| member.size == 4) && net.is_some_and(|member| member.size == 4));
    assert!(member("head").offset + 8 <= btf.size("sk_buff").expect("a size"));
    let reasons = btf.enumerations(|name| name == b"skb_drop_reason");
    let count = reasons.first().map_or(0, |(_, values)| values.len());
    assert!(count > 20 || reasons.is_empty(), "{count}");
    assert!(btf.function("kfree_skb_list_reason").or(btf.function("kfree_skb")).is_some_and(|f| !f.of_module));
    // Generous: tests run without optimisation, and beside each other.
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

/// Looks everything up that the product looks up.
fn look(btf: &Btf) {
    for path in ["array[1].c[1]", "pointer", "bits", "count.array[2].b"] {
        let _ = (btf.member("outer", path), btf.member("own", path), btf.member("inner", path));
    }
    let _ = (btf.size("outer"), btf.size("own"), btf.value("numbers_reason", "TWO"), btf.function("run"));
    let _ = btf.enumerations(|_| true);
}

proptest! {
    #[test]
    fn bytes_that_nobody_wrote_are_no_harm(bytes: Vec<u8>, more: Vec<u8>) {
        if let Ok(btf) = Btf::parse(bytes, Some(more)) {
            look(&btf);
        }
    }

    /// Sections with some words changed, and cut anywhere.
    #[test]
    fn damaged_types_are_no_harm(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        of_module: bool,
        cut in 0_usize..64,
    ) {
        let kernel = kernel();
        let (mut first, mut second) = (kernel.bytes(), module(&kernel).bytes());
        let damaged = if of_module { &mut second } else { &mut first };
        for (at, value) in damage {
            // The magic stays, so that the rest is looked at.
            let at = 4 + at.index(damaged.len() - 4);
            damaged[at] = value;
        }
        damaged.truncate(damaged.len().saturating_sub(cut / 16));
        if let Ok(btf) = Btf::parse(first, Some(second)) {
            look(&btf);
        }
    }
}
