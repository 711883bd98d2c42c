//! Memory for results: not cleared before it is written, and kept by the process when it is freed.

use std::mem::MaybeUninit;

use super::blocks::SIDE;

/// Room for so many numbers, which are yet to be written.
pub(super) fn unwritten(len: usize) -> Vec<MaybeUninit<f32>> {
    let mut room = Vec::with_capacity(len);
    // SAFETY: what may be uninitialised needs no initialisation.
    unsafe { room.set_len(len) };
    room
}

/// The same numbers.
///
/// # Safety
/// All of them were written.
pub(super) unsafe fn written(numbers: Vec<MaybeUninit<f32>>) -> Vec<f32> {
    let mut numbers = std::mem::ManuallyDrop::new(numbers);
    let (start, len, capacity) = (numbers.as_mut_ptr(), numbers.len(), numbers.capacity());
    // SAFETY: the same allocation, whose numbers the caller has written; both types have one layout.
    unsafe { Vec::from_raw_parts(start.cast(), len, capacity) }
}

/// Writes as many of `from` as there is room for.
#[inline(always)]
pub(super) fn put(from: &[f32; SIDE], to: &mut [MaybeUninit<f32>]) {
    if let Ok(to) = <&mut [MaybeUninit<f32>; SIDE]>::try_from(&mut *to) {
        // Of known length, which needs no call.
        for (to, from) in to.iter_mut().zip(from) {
            to.write(*from);
        }
    } else {
        to.write_copy_of_slice(&from[..to.len()]);
    }
}

/// Gives back to the system what [`keep_memory`] has kept: between two pieces of work of different size.
pub fn release_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: concerns free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes the process keep the memory that it frees, for its next use.
///
/// A training step allocates the same large tensors each time. By default the C library returns such memory to the
/// system at once, and each page costs an interruption when it is asked for again. Does nothing on systems without the
/// GNU C library.
pub fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The most that the library accepts: larger pieces are mapped, and unmapped, by themselves.
        const LARGEST_KEPT: libc::c_int = 32 << 20;
        // SAFETY: settings of the allocator, which take effect for what is allocated later.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_KEPT);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            // Threads' own heaps are small mappings that come and go; the common one only grows.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}
