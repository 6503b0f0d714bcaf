//! Tells of every connection that the kernel begins and ceases to track, with a copy of what it knows of it.
//!
//! Each event has programs for several kinds of hook; the agent attaches one of each that the kernel takes. A connection begins
//! when `__nf_conntrack_confirm` has entered it into the table, and ends when `nf_ct_delete` takes it out; where the compiler has
//! split that function, when its memory is given back. Connections that netlink or BPF puts into the table are not told of when
//! they begin. Nothing is decoded here, and nothing changed.

use crate::maps::{CALLS, COUNTERS, Calls, END, LAYOUT, NEW, loaded};
use crate::words;
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns, bpf_probe_read_kernel,
};
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::maps::RingBuf;
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::mem::MaybeUninit;
use flow_common::abi::{
    CONN_WORDS, CONNTRACK_END, CONNTRACK_NEW, ConntrackCounters, ConntrackEvent, PART_ACCOUNTING, PART_LABELS,
    PART_TIMES,
};

/// The packet goes on: what the function returns when the connection is in the table.
const ACCEPT: u32 = 1;
/// Bits of `nf_conn.status`.
const CONFIRMED: u64 = 1 << 3;
const DYING: u64 = 1 << 9;
/// In `sk_buff._nfct`, what is not the connection's address.
const PACKET_STATE: u64 = 7;

/// `int __nf_conntrack_confirm(struct sk_buff *skb)` has returned.
#[fexit]
fn confirm_exit(context: FExitContext) -> u32 {
    // The value returned stands behind the only argument; the helper for it came with 5.17.
    if context.arg::<u64>(1) as u32 == ACCEPT {
        begin(context.arg(0));
    }
    0
}

/// `bool nf_ct_delete(struct nf_conn *ct, u32 portid, int report)` has returned: true for the one caller that took it out.
/// Every caller holds a reference, so the connection's memory is still its own.
#[fexit]
fn delete_exit(context: FExitContext) -> u32 {
    if context.arg::<u64>(3) as u8 != 0 {
        tell(CONNTRACK_END, context.arg(0));
    }
    0
}

/// `void nf_ct_destroy(struct nf_conntrack *nfct)` or `nf_conntrack_destroy`, about to free it. What was never in the table had
/// no beginning.
#[fentry]
fn destroy_entry(context: FEntryContext) -> u32 {
    destroyed(context.arg(0))
}

/// As [`confirm_exit`], the call.
#[kprobe]
fn confirm_call(context: ProbeContext) -> u32 {
    if let Some(skb) = context.arg(0) {
        push(task(), skb);
    }
    0
}

/// As [`confirm_exit`], the return.
#[kretprobe]
fn confirm_return(context: RetProbeContext) -> u32 {
    let skb = pop(task());
    if skb != 0 && context.ret::<u64>() as u32 == ACCEPT {
        begin(skb);
    }
    0
}

/// `nf_ct_delete` is called, by the first of its callers. Two at one moment both are: the agent sees to that.
#[kprobe]
fn delete_call(context: ProbeContext) -> u32 {
    if let Some(conn) = context.arg(0)
        && status(conn) & DYING == 0
    {
        tell(CONNTRACK_END, conn);
    }
    0
}

/// As [`destroy_entry`].
#[kprobe]
fn destroy_call(context: ProbeContext) -> u32 {
    context.arg(0).map_or(0, destroyed)
}

/// Of two packets that begin one connection at one moment, one moves over to the other's connection; that is told a second
/// time then.
#[inline(always)]
fn begin(skb: u64) {
    let conn = read::<u64>(skb, loaded(&LAYOUT.skb_conntrack)) & !PACKET_STATE;
    if conn != 0 && status(conn) & CONFIRMED != 0 {
        tell(CONNTRACK_NEW, conn);
    }
}

#[inline(always)]
fn destroyed(conn: u64) -> u32 {
    if status(conn) & CONFIRMED != 0 {
        tell(CONNTRACK_END, conn);
    }
    0
}

#[inline(always)]
fn status(conn: u64) -> u64 {
    read(conn, loaded(&LAYOUT.conn_status))
}

/// Puts a connection of the agent's network namespace on its ring.
#[inline(always)]
fn tell(kind: u32, conn: u64) {
    let namespace = read::<u32>(read::<u64>(conn, loaded(&LAYOUT.conn_net)), loaded(&LAYOUT.net_inum));
    if namespace != loaded(&LAYOUT.namespace) {
        return;
    }
    let Some(mut slot) = ring(kind).reserve::<ConntrackEvent>(0) else {
        count(kind, false);
        return;
    };
    let event = slot.as_mut_ptr();
    // SAFETY: the slot is this event's until it is submitted; the helpers write no more than they are told and fail on
    // addresses that are none.
    unsafe {
        (*event).at_ns = bpf_ktime_get_ns();
        (*event).jiffies = bpf_jiffies64();
        (*event).address = conn;
        (*event).kind = kind;
        (*event).namespace = namespace;
        copy(&raw mut (*event).seed, loaded(&LAYOUT.seed));
        let length = loaded(&LAYOUT.conn_bytes);
        // Never true; the verifier wants to see that.
        let length = if length > 8 * CONN_WORDS as u32 { 0 } else { length };
        bpf_probe_read_kernel((&raw mut (*event).conn).cast(), length, conn as *const _);
        (*event).length = length;
        (*event).parts = extensions(event, read(conn, loaded(&LAYOUT.conn_extensions)));
    }
    slot.submit(aya_ebpf::bindings::BPF_RB_NO_WAKEUP as u64);
    count(kind, true);
}

/// Reads what is kept outside a `struct nf_conn` and gives which of it there was.
#[inline(always)]
fn extensions(event: *mut ConntrackEvent, extensions: u64) -> u32 {
    if extensions == 0 {
        return 0;
    }
    let offsets = read::<[u64; 2]>(extensions, loaded(&LAYOUT.extension_offsets));
    // A connection may lack one: its offset is 0 then.
    let offset = |position: u32| match position {
        0..8 => offsets[0] >> (position * 8) & 0xff,
        8..16 => offsets[1] >> ((position - 8) * 8) & 0xff,
        _ => 0,
    };
    let (accounting, times, labels) =
        (offset(loaded(&LAYOUT.accounting)), offset(loaded(&LAYOUT.times)), offset(loaded(&LAYOUT.labels)));
    let mut parts = 0;
    // SAFETY: as in `tell`.
    unsafe {
        if accounting != 0 && copy(&raw mut (*event).accounting, extensions + accounting) {
            parts |= PART_ACCOUNTING;
        }
        if times != 0 && copy(&raw mut (*event).times, extensions + times) {
            parts |= PART_TIMES;
        }
        if labels != 0 && copy(&raw mut (*event).labels, extensions + labels) {
            parts |= PART_LABELS;
        }
    }
    parts
}

#[inline(always)]
fn ring(kind: u32) -> &'static RingBuf {
    if kind == CONNTRACK_NEW { &NEW } else { &END }
}

/// Atomically: a program of an exit hook may be interrupted by one of a packet's on the same CPU.
#[inline(always)]
fn count(kind: u32, told: bool) {
    let Some(counters) = COUNTERS.get_ptr_mut(0) else { return };
    // SAFETY: elements of an array are memory.
    unsafe {
        let ConntrackCounters { told: [new_told, end_told], lost: [new_lost, end_lost] } = &mut *counters;
        let counter = match (kind == CONNTRACK_NEW, told) {
            (true, true) => new_told,
            (true, false) => new_lost,
            (false, true) => end_told,
            (false, false) => end_lost,
        };
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1);
    }
}

/// Who calls: a task, or a CPU that idles.
#[inline(always)]
fn task() -> u64 {
    const IDLE: u64 = 1 << 63;
    // SAFETY: helpers without arguments.
    unsafe {
        match bpf_get_current_pid_tgid() {
            0 => bpf_get_smp_processor_id() as u64 | IDLE,
            task => task,
        }
    }
}

#[inline(always)]
fn push(task: u64, skb: u64) {
    let mut first = MaybeUninit::<Calls>::uninit();
    // SAFETY: integers only, on this stack.
    let first = unsafe {
        words::clear(first.as_mut_ptr());
        let first = first.assume_init_mut();
        (first.depth, first.skb[0]) = (1, skb);
        first
    };
    match CALLS.get_ptr_mut(&task) {
        // SAFETY: the entry is this task's alone, which is here.
        Some(calls) => unsafe {
            let depth = (*calls).depth;
            if depth < 4 {
                (*calls).skb[(depth & 3) as usize] = skb;
                (*calls).depth = depth + 1;
            } else {
                // No task is so deep in it: returns went unseen.
                words::copy(first, calls);
            }
        },
        None => {
            if CALLS.insert(&task, &*first, 0).is_err() {
                count(CONNTRACK_NEW, false);
            }
        }
    }
}

/// What the call was passed that returns now, or 0.
#[inline(always)]
fn pop(task: u64) -> u64 {
    let Some(calls) = CALLS.get_ptr_mut(&task) else { return 0 };
    // SAFETY: as in `push`.
    unsafe {
        let depth = (*calls).depth.wrapping_sub(1);
        let skb = (*calls).skb[(depth & 3) as usize];
        (*calls).depth = depth;
        if depth == 0 {
            let _ = CALLS.remove(&task);
        }
        skb
    }
}

/// A value in the kernel's memory (an integer or an array of them); zeroes where the address is none.
#[inline(always)]
fn read<T: Copy>(base: u64, offset: u32) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper fills all of it, with zeroes where it fails, and any bytes are a `T`: an integer or an array of them.
    unsafe {
        copy(value.as_mut_ptr(), base + offset as u64);
        value.assume_init()
    }
}

/// Copies from the kernel's memory; false where the address is none.
///
/// # Safety
/// `to` is valid for writes, and any bytes are a `T`.
#[inline(always)]
unsafe fn copy<T>(to: *mut T, from: u64) -> bool {
    // SAFETY: by the caller's word; the helper checks `from`.
    unsafe { bpf_probe_read_kernel(to.cast(), size_of::<T>() as u32, from as *const _) == 0 }
}
