//! The two programs, and the one that drives them and ours.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, LruHashMap, ProgramArray};
use aya_ebpf::programs::TcContext;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

#[repr(C)]
#[derive(Clone, Copy)]
struct Key {
    src: [u32; 4],
    dst: [u32; 4],
    ports: [u16; 2],
    protocol: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Flow {
    packets: u64,
    bytes: u64,
    first_ns: u64,
    last_ns: u64,
}

#[map(name = "flows")]
static FLOWS: LruHashMap<Key, Flow> = LruHashMap::with_max_entries(1, 0);

/// Does nothing: what a run costs by itself.
#[classifier]
fn empty(_context: TcContext) -> i32 {
    -1
}

/// Counts IPv4 packets with ports.
#[classifier]
fn textbook(context: TcContext) -> i32 {
    if let Some(key) = parse(&context) {
        count(&key, context.len() as u64);
    }
    -1
}

#[inline(always)]
fn parse(context: &TcContext) -> Option<Key> {
    let (data, end) = (context.data(), context.data_end());
    if data + 14 + 20 > end {
        return None;
    }
    // SAFETY: within the packet, as tested.
    unsafe {
        if *((data + 12) as *const u16) != 0x0800_u16.to_be() {
            return None;
        }
        let ip = data + 14;
        let transport = ip + (*(ip as *const u8) & 15) as usize * 4;
        if transport + 20 > end {
            return None;
        }
        Some(Key {
            src: [*((ip + 12) as *const u32), 0, 0, 0],
            dst: [*((ip + 16) as *const u32), 0, 0, 0],
            ports: [*(transport as *const u16), *((transport + 2) as *const u16)],
            protocol: *((ip + 9) as *const u8) as u32,
        })
    }
}

#[inline(always)]
fn count(key: &Key, bytes: u64) {
    // SAFETY: a helper without arguments; an element is memory while the program runs.
    unsafe {
        let flow = FLOWS.get_ptr_mut(key);
        let now = bpf_ktime_get_ns();
        match flow {
            Some(flow) => {
                atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*flow).packets, 1);
                atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*flow).bytes, bytes);
                (*flow).last_ns = now;
            }
            None => {
                let _ = FLOWS.insert(key, Flow { packets: 1, bytes, first_ns: now, last_ns: now }, 0);
            }
        }
    }
}

/// Programs to measure: [`driver`] runs the first, or the first and the second by turns.
#[map(name = "targets")]
static TARGETS: ProgramArray = ProgramArray::with_max_entries(2, 0);

/// Where [`driver`] stands: the flow of the next packet, how many flows there are, how many programs take turns, whose turn it is.
#[map(name = "course")]
static COURSE: Array<[u32; 4]> = Array::with_max_entries(1, 0);

/// Makes each packet of a repeated test run one of the next flow, by its source address, and runs a program on it.
#[classifier]
fn driver(context: TcContext) -> i32 {
    let (data, end) = (context.data(), context.data_end());
    let Some(course) = COURSE.get_ptr_mut(0) else { return -1 };
    if data + 14 + 20 > end {
        return -1;
    }
    // SAFETY: within the packet, as tested; the map is this program's alone.
    unsafe {
        let [flow, flows, programs, turn] = *course;
        let next_turn = if turn + 1 >= programs { 0 } else { turn + 1 };
        if next_turn == 0 {
            (*course)[0] = if flow + 1 >= flows { 0 } else { flow + 1 };
        }
        (*course)[3] = next_turn;
        *((data + 26) as *mut u32) = (0x0a00_0000 | flow).to_be();
        let _ = TARGETS.tail_call(&context, turn);
    }
    -1
}
