//! Capabilities of this process.

use std::fs;

/// Whether this process has a capability, which processes that it starts may keep.
pub(crate) fn has(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() >> number & 1 != 0
}

/// `CAP_CHECKPOINT_RESTORE`, with which a process may open what is mapped.
pub(crate) const CHECKPOINT_RESTORE: u32 = 40;
