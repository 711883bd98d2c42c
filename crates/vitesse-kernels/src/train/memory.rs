//! Memory for results: not cleared before it is written, and kept by the process when it is freed.

use std::mem::MaybeUninit;

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

/// Makes the process keep the memory that it frees, for its next use.
///
/// A training step allocates the same large tensors each time. By default the C library returns such memory to the
/// system at once, and each page costs an interruption when it is asked for again: a tenth of a step and more. Does
/// nothing on systems without the GNU C library.
pub fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGEST: libc::c_int = i32::MAX;
        // SAFETY: settings of the allocator, which take effect for what is allocated later.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGEST);
        }
    }
}
