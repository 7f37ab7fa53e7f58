//! Memory of this process, and the part that it can give back: the allocator's free
//! memory, which glibc keeps for later unless it is asked, and the program's own pages.

use std::ffi::{c_int, c_void};
use std::{fs, io, ptr, slice};

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of it. Most is the program itself: pages of files, which processes share, and which the
    /// system can have back at any time. How many of them are counted depends on the kernel.
    pub resident: u64,
    /// Private memory: heap and stacks.
    pub anonymous: u64,
    /// Its share: what several processes use is divided between them. None if the kernel doesn't say.
    pub proportional: Option<u64>,
}

/// Asks the kernel.
///
/// # Errors
/// When there is no `/proc`.
pub fn usage() -> io::Result<Usage> {
    let status = fs::read_to_string("/proc/self/status")?;
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    Ok(Usage {
        resident: bytes(&status, "VmRSS:").unwrap_or_default(),
        anonymous: bytes(&status, "RssAnon:").unwrap_or_default(),
        proportional: bytes(&rollup, "Pss:"),
    })
}

/// The value of a line such as `VmRSS:     1234 kB`.
fn bytes(table: &str, name: &str) -> Option<u64> {
    let value = table.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Gives back the pages of the program and its libraries that nobody writes to: what only the start
/// needed stays away, the rest comes again from the system's cache of files as it is used.
pub fn give_program_back() {
    // SAFETY: `give_back` is what the C library calls, keeps nothing of what it is shown, and the
    // library holds its own lock meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(give_back), ptr::null_mut()) };
}

/// One object's pages. Zero: go on with the next.
unsafe extern "C" fn give_back(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: the C library shows an object that stays for the time of the call, with all its headers.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    // SAFETY: both only read what the kernel told at the start.
    let (kernels_own, page) =
        unsafe { (libc::getauxval(libc::AT_SYSINFO_EHDR), libc::sysconf(libc::_SC_PAGESIZE)) };
    let Some(page) = u64::try_from(page).ok().filter(|page| page.is_power_of_two()) else {
        return 0;
    };
    if base == kernels_own {
        return 0;
    }
    // What is writable now, or was until it was relocated (RELRO), is in other segments: it differs
    // from the file. Pages at the edges stay, lest they hold something of a neighbour.
    for segment in
        headers.iter().filter(|it| it.p_type == libc::PT_LOAD && it.p_flags & libc::PF_W == 0)
    {
        let start = (base + segment.p_vaddr).next_multiple_of(page);
        let end = (base + segment.p_vaddr + segment.p_memsz) & !(page - 1);
        if let Some(length) = end.checked_sub(start).and_then(|it| usize::try_from(it).ok()) {
            // SAFETY: these pages are mapped from the object's file and as they are in it, so that they
            // read the same afterwards, also for threads that run in them meanwhile.
            unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
        }
    }
    0
}

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
        usize::try_from(usage().unwrap().resident).unwrap()
    }

    /// In a process of its own: other tests use the same program meanwhile.
    #[test]
    fn the_programs_pages_go_back_and_come_again_as_they_were() {
        const TOLD: &str = "ISTHMUS_TEST_GIVES_PROGRAM_BACK";
        if std::env::var_os(TOLD).is_none() {
            let name = "memory::tests::the_programs_pages_go_back_and_come_again_as_they_were";
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let ended = again.args([name, "--exact", "--test-threads=1"]).env(TOLD, "1").status();
            return assert!(ended.unwrap().success());
        }
        let (pages, before) = (pages_of_program(), usage().unwrap());
        give_program_back();
        let after = usage().unwrap();
        let files = |usage: Usage| usage.resident - usage.anonymous;
        assert!(files(after) * 3 < files(before) * 2, "{before:?} before, {after:?} after");
        assert!(after.anonymous + 65_536 > before.anonymous, "nothing that was written to");
        assert!(after.proportional.is_some_and(|it| it <= after.resident));
        assert_eq!(pages_of_program(), pages);
    }

    /// Sums of all pages that nobody writes to: reading them makes them resident.
    fn pages_of_program() -> Vec<u64> {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let ranges = maps.lines().filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            let is_file = rest.starts_with("r-") && line.contains(" /");
            is_file.then_some((number(start)?, number(end)?))
        });
        let sum = |(start, end): (usize, usize)| {
            // SAFETY: mapped, readable, and nobody unmaps or writes it.
            let bytes = unsafe { slice::from_raw_parts(start as *const u8, end - start) };
            bytes.iter().fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(*byte))
        };
        ranges.map(sum).collect()
    }
}
