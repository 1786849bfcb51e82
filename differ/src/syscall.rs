//! Steps that are system calls, as the registers of a process have them.

use libc::c_long;

use crate::child::{FIRST_FD, name_at};
use crate::op::Op;

/// The number of `mseal`, which `libc` does not have on all targets.
pub(crate) const SYS_MSEAL: c_long = 462;
/// `PR_SET_VMA`, which is used with `PR_SET_VMA_ANON_NAME`, which is 0.
pub(crate) const PR_SET_VMA: u64 = 0x5356_4d41;
/// `PR_SET_MM`.
const PR_SET_MM: u64 = 35;

/// The number of the system call, and its arguments.
pub(crate) fn system_call(op: &Op) -> (c_long, [u64; 6]) {
    let word = |word: usize| word as u64;
    let int = |int: i32| i64::from(int).cast_unsigned();
    let three = |addr, len, third| [word(addr), word(len), third, 0, 0, 0];
    match *op {
        Op::Mmap { addr, len, prot, flags, file, offset } => {
            // What is not in the list is not open.
            let index = file.and_then(|file| i32::try_from(file).ok());
            let file = int(index.map_or(-1, |index| FIRST_FD + index));
            (libc::SYS_mmap, [word(addr), word(len), prot, flags, file, offset])
        }
        Op::Munmap { addr, len } => (libc::SYS_munmap, three(addr, len, 0)),
        Op::Mprotect { addr, len, prot } => (libc::SYS_mprotect, three(addr, len, prot)),
        Op::PkeyMprotect { addr, len, prot, key } => {
            (libc::SYS_pkey_mprotect, [word(addr), word(len), prot, int(key), 0, 0])
        }
        Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
            let new = word(new_addr);
            (libc::SYS_mremap, [word(addr), word(old_len), word(new_len), flags, new, 0])
        }
        Op::Madvise { addr, len, advice } => (libc::SYS_madvise, three(addr, len, int(advice))),
        Op::Mlock { addr, len } => (libc::SYS_mlock, three(addr, len, 0)),
        Op::Mlock2 { addr, len, flags } => (libc::SYS_mlock2, three(addr, len, int(flags))),
        Op::Munlock { addr, len } => (libc::SYS_munlock, three(addr, len, 0)),
        Op::Mlockall { flags } => (libc::SYS_mlockall, [int(flags), 0, 0, 0, 0, 0]),
        Op::Munlockall => (libc::SYS_munlockall, [0; 6]),
        Op::Brk { addr } => (libc::SYS_brk, [word(addr), 0, 0, 0, 0, 0]),
        Op::Mseal { addr, len, flags } => (SYS_MSEAL, three(addr, len, flags)),
        Op::Msync { addr, len, flags } => (libc::SYS_msync, three(addr, len, int(flags))),
        Op::Mincore { addr, len, vector } => (libc::SYS_mincore, three(addr, len, word(vector))),
        Op::Name { addr, len, name } => {
            let name = name.map_or(0, |name| word(name_at(name)));
            (libc::SYS_prctl, [PR_SET_VMA, 0, word(addr), word(len), name, 0])
        }
        Op::SetAddress { option, addr, .. } => {
            (libc::SYS_prctl, [PR_SET_MM, int(option), word(addr), 0, 0, 0])
        }
        // These are no system calls of the process, or more than one.
        Op::Touch { .. }
        | Op::Force { .. }
        | Op::Fork { .. }
        | Op::Limit { .. }
        | Op::Capability { .. }
        | Op::Adopt
        | Op::Open { .. }
        | Op::AddSeals { .. }
        | Op::Truncate { .. }
        | Op::Rename { .. }
        | Op::Unlink { .. } => (libc::SYS_getpid, [0; 6]),
    }
}

/// The step that a system call is, if it is one of those whose arguments are numbers. The file of
/// an `mmap` has the number 0.
pub(crate) fn op_of(number: c_long, arguments: [u64; 6]) -> Option<Op> {
    let [a, b, c, d, e, f] = arguments;
    // Words have 64 bits.
    let word = |value: u64| value as usize;
    #[expect(clippy::cast_possible_truncation, reason = "as the kernel takes it")]
    let int = |value: u64| value as u32 as i32;
    let (addr, len) = (word(a), word(b));
    Some(match number {
        libc::SYS_mmap => {
            Op::Mmap { addr, len, prot: c, flags: d, file: (int(e) >= 0).then_some(0), offset: f }
        }
        libc::SYS_munmap => Op::Munmap { addr, len },
        libc::SYS_mprotect => Op::Mprotect { addr, len, prot: c },
        libc::SYS_pkey_mprotect => Op::PkeyMprotect { addr, len, prot: c, key: int(d) },
        libc::SYS_mremap => {
            Op::Mremap { addr, old_len: len, new_len: word(c), flags: d, new_addr: word(e) }
        }
        libc::SYS_madvise => Op::Madvise { addr, len, advice: int(c) },
        libc::SYS_mlock => Op::Mlock { addr, len },
        libc::SYS_mlock2 => Op::Mlock2 { addr, len, flags: int(c) },
        libc::SYS_munlock => Op::Munlock { addr, len },
        libc::SYS_mlockall => Op::Mlockall { flags: int(a) },
        libc::SYS_munlockall => Op::Munlockall,
        libc::SYS_brk => Op::Brk { addr },
        SYS_MSEAL => Op::Mseal { addr, len, flags: c },
        libc::SYS_msync => Op::Msync { addr, len, flags: int(c) },
        libc::SYS_mincore => Op::Mincore { addr, len, vector: word(c) },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let (addr, len) = (0x7000_0000_0000, 0x3000);
        for op in [
            Op::Mmap { addr, len, prot: 3, flags: 0x22, file: Some(0), offset: 0x1000 },
            Op::Mmap { addr: usize::MAX, len, prot: 3, flags: 0x22, file: None, offset: 0 },
            Op::Munmap { addr, len },
            Op::Mprotect { addr, len, prot: 7 },
            Op::PkeyMprotect { addr, len, prot: 1, key: -1 },
            Op::Mremap { addr, old_len: len, new_len: 1, flags: 3, new_addr: 0x1000 },
            Op::Madvise { addr, len, advice: -5 },
            Op::Mlock { addr, len },
            Op::Mlock2 { addr, len, flags: 1 },
            Op::Munlock { addr, len },
            Op::Mlockall { flags: 3 },
            Op::Munlockall,
            Op::Brk { addr },
            Op::Mseal { addr, len, flags: 0 },
            Op::Msync { addr, len, flags: 4 },
            Op::Mincore { addr, len, vector: 0x5000 },
        ] {
            let (number, arguments) = system_call(&op);
            assert_eq!(op_of(number, arguments), Some(op));
        }
        assert_eq!(op_of(libc::SYS_getpid, [0; 6]), None);
    }
}
