//! Copies and zeroes by words of eight bytes.
//!
//! Left to itself, LLVM makes calls of `memset` and `memmove` of plain assignments to map values, and for BPF those are loops over
//! single bytes, which cost more than all the rest. Volatile stores stay what they are.

/// Writes a value to a map, a word at a time.
///
/// # Safety
/// `to` is valid for writes of a `T`, whose size is a multiple of eight and which has no padding.
#[inline(always)]
pub(crate) unsafe fn copy<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>() % 8 == 0 && align_of::<T>() == 8) }
    let mut word = 0;
    while word < size_of::<T>() / 8 {
        // SAFETY: within both, by the caller's word.
        unsafe { core::ptr::write_volatile(to.cast::<u64>().add(word), *from.cast::<u64>().add(word)) };
        word += 1;
    }
}

/// Fills a value of a map with zeroes, a word at a time.
///
/// # Safety
/// As [`copy`].
#[inline(always)]
pub(crate) unsafe fn clear<T>(to: *mut T) {
    const { assert!(size_of::<T>() % 8 == 0 && align_of::<T>() == 8) }
    let mut word = 0;
    while word < size_of::<T>() / 8 {
        // SAFETY: within the value, by the caller's word.
        unsafe { core::ptr::write_volatile(to.cast::<u64>().add(word), 0) };
        word += 1;
    }
}
