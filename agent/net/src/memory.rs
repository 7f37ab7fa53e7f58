//! The allocator's free memory, which glibc keeps for later unless it is asked.

/// Bytes that were freed and that the allocator keeps, whether or not the system has them back.
#[must_use]
pub fn free_bytes() -> usize {
    // SAFETY: it has no arguments, and takes the locks of what it looks at by itself.
    unsafe { libc::mallinfo2() }.fordblks
}

/// Gives all whole pages of free memory back to the system. Who allocates meanwhile may wait for
/// some milliseconds.
pub fn trim() {
    // SAFETY: it touches free memory only, under the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: usize = 64 * 1024;
    const BYTES: usize = 1024;

    #[test]
    fn what_was_freed_between_used_blocks_goes_back() {
        let mut blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; BYTES]).collect();
        // The last one keeps the heap's end where it is.
        blocks.drain(..BLOCKS - 1);
        assert!(free_bytes() > BLOCKS / 2 * BYTES, "{}", free_bytes());
        let before = resident_bytes();
        trim();
        let after = resident_bytes();
        assert!(after + BLOCKS / 2 * BYTES < before, "{before} before, {after} after");
    }

    fn resident_bytes() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }
}
