//! The two ways to a packet's bytes in the kernel: direct and cheap, or by a helper and complete.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use core::mem::MaybeUninit;
use flow_ebpf::parse::{Header, Load};

/// Loads from the linear part of the packet, at the price of a bounds check each.
#[derive(Clone, Copy)]
pub(crate) struct Direct {
    data: usize,
    end: usize,
}

impl Direct {
    /// Of a socket buffer.
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { Self { data: (*skb).data as usize, end: (*skb).data_end as usize } }
    }
}

impl Load for Direct {
    #[inline(always)]
    fn load<T: Header>(&self, offset: u32) -> Option<T> {
        let at = self.data + offset as usize;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the packet, as just tested and as the verifier tests again; any bytes are a `T`. BPF loads need no
        // alignment where the verifier lets the program pass, and an unaligned read would become loads of single bytes.
        Some(unsafe { *(at as *const T) })
    }
}

/// Loads by a helper from all of the packet, paged data included.
#[derive(Clone, Copy)]
pub(crate) struct Whole(pub(crate) *mut __sk_buff);

impl Load for Whole {
    #[inline(always)]
    fn load<T: Header>(&self, offset: u32) -> Option<T> {
        let mut header = MaybeUninit::<T>::uninit();
        // SAFETY: the helper fills the header or fails, and a failure is not read.
        unsafe {
            match bpf_skb_load_bytes(self.0.cast(), offset, header.as_mut_ptr().cast(), size_of::<T>() as u32) {
                0 => Some(header.assume_init()),
                _ => None,
            }
        }
    }
}
