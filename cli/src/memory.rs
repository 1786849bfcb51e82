//! How much memory there is to be had.

use std::hint::black_box;
use std::path::Path;
use std::{fs, io};

/// What this process can still take without swapping or hitting the limit of a control group, in
/// bytes; `None` where the kernel does not say.
pub(crate) fn available() -> Option<u64> {
    [of_machine(), of_groups(Path::new("/sys/fs/cgroup"))].into_iter().flatten().min()
}

/// Whether a thread can be started and still leave room for what threads allocate as they start
/// and end, which aborts the process when it fails.
///
/// # Errors
///
/// When the address space is nearly full (`ulimit -v`).
pub(crate) fn headroom() -> io::Result<()> {
    // A stack of 2 MiB, and far more than a thread allocates as it starts.
    const ROOM: usize = 32 << 20;
    // Reserved for a moment, not touched.
    let mut room = Vec::<u8>::new();
    let found = room.try_reserve_exact(ROOM);
    black_box(&mut room);
    found.map_err(|_| io::ErrorKind::OutOfMemory.into())
}

fn of_machine() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The tightest of the process's control groups (version 2), each of which bounds those below it.
fn of_groups(mounted: &Path) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    mounted
        .join(path)
        .ancestors()
        .take_while(|group| group.starts_with(mounted))
        .filter_map(left_in)
        .min()
}

/// What a group with a limit has left.
fn left_in(group: &Path) -> Option<u64> {
    let number = |file| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_left_what_it_does_not_use() {
        let group = tempfile::tempdir().unwrap();
        let write = |file, text| fs::write(group.path().join(file), text).unwrap();
        assert_eq!(left_in(group.path()), None, "no such files, as in the root group");
        write("memory.current", "3000\n");
        write("memory.max", "max\n");
        assert_eq!(left_in(group.path()), None, "no limit");
        write("memory.max", "10000\n");
        assert_eq!(left_in(group.path()), Some(7000));
        write("memory.max", "10\n");
        assert_eq!(left_in(group.path()), Some(0));
    }

    #[test]
    fn this_machine_has_some() {
        assert!(available().is_some_and(|bytes| bytes > 0));
    }
}
