//! Memory that is given back to the system must be asked for again, page by page.

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
