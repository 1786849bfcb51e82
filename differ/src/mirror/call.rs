//! Calls of a traced program, by their registers.

use std::ops::Range;

use libc::{c_int, c_long, pid_t, user_regs_struct};
use pervma_linux::abi;

use crate::mirror::tracee::{STOPS, read, read_words};
use crate::op::Op;
use crate::syscall::{PR_SET_VMA, op_of};

/// A call, before the kernel makes it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The name of the system call.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

/// What a call is.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// One that the model makes, with the descriptor of an `mmap`.
    Op(Op, Option<c_int>),
    /// `PR_SET_VMA_ANON_NAME`; the name is one that is not valid if it cannot be read.
    Name {
        addr: usize,
        len: usize,
        name: Option<String>,
    },
    /// `process_madvise`, with the descriptor of a process, and the ranges or the error about them.
    ProcessMadvise {
        process: c_int,
        ranges: Result<Vec<(usize, usize)>, c_int>,
        advice: i32,
    },
    /// A new thread or a process that shares the memory.
    Share {
        is_thread: bool,
    },
    /// A new process with a copy of the memory.
    Fork,
    /// `setrlimit` of a process or a thread, where 0 is the caller: which one, and the new soft and
    /// hard limit.
    Limit {
        process: pid_t,
        which: u64,
        new: Option<[u64; 2]>,
    },
    /// `setuid` and the like, which may take capabilities away.
    Privileges,
    /// `shmat`, `shmdt` of an address.
    Attach,
    Detach(usize),
    /// `io_setup` with a pointer to the ring, `io_destroy` of a ring.
    Ring(u64),
    RingEnds(usize),
    /// One that the model does not know: what it was.
    Unknown(&'static str),
    /// One that has nothing to do with mappings.
    Other,
}

const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x1_0000;
/// The personalities `READ_IMPLIES_EXEC` and `ADDR_COMPAT_LAYOUT`.
pub(crate) const UNKNOWN_PERSONALITY: u64 = 0x0040_0000 | 0x0020_0000;
/// `process_madvise` takes no more ranges.
const MOST_RANGES: u64 = 1024;

impl Call {
    /// The call that a thread is stopped at.
    pub(crate) fn of(tid: pid_t, registers: &user_regs_struct) -> Self {
        let user_regs_struct { rdi, rsi, rdx, r10, r8, r9, orig_rax, .. } = *registers;
        let number = c_long::try_from(orig_rax).unwrap_or(-1);
        let arguments = [rdi, rsi, rdx, r10, r8, r9];
        let known = STOPS.iter().find(|(stop, _)| *stop == number);
        let name = known.map_or("unknown", |(_, name)| name);
        Self { name, kind: kind(tid, number, name, arguments) }
    }

    /// Whether other calls on the same memory must wait for its end.
    pub(crate) fn takes_turns(&self) -> bool {
        !matches!(self.kind, Kind::Share { .. } | Kind::Other)
    }

    /// The ranges that it is about, as far as they are known before.
    pub(crate) fn ranges(&self, brk: usize) -> Vec<Range<usize>> {
        let between = |start: usize, end: usize| start..end;
        let range = |addr: usize, len: usize| between(addr, addr.saturating_add(len));
        let everything = || vec![between(0, usize::MAX)];
        match self.kind {
            Kind::Op(ref op, _) => match *op {
                Op::Mmap { addr, len, flags, .. } => {
                    let fixed = flags & (abi::MAP_FIXED | abi::MAP_FIXED_NOREPLACE) != 0;
                    if fixed { vec![range(addr, len)] } else { Vec::new() }
                }
                Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
                    let mut ranges = vec![range(addr, old_len.max(new_len))];
                    if flags & abi::MREMAP_FIXED != 0 {
                        ranges.push(range(new_addr, new_len));
                    }
                    ranges
                }
                Op::Munmap { addr, len }
                | Op::Mprotect { addr, len, .. }
                | Op::PkeyMprotect { addr, len, .. }
                | Op::Madvise { addr, len, .. }
                | Op::Mlock { addr, len }
                | Op::Mlock2 { addr, len, .. }
                | Op::Munlock { addr, len }
                | Op::Mseal { addr, len, .. } => vec![range(addr, len)],
                Op::Brk { addr } => vec![between(addr.min(brk), addr.max(brk))],
                Op::Mincore { len, vector, .. } => vec![range(vector, len.div_ceil(abi::PAGE))],
                Op::Mlockall { .. } | Op::Munlockall => everything(),
                _ => Vec::new(),
            },
            Kind::Name { addr, len, .. } => vec![range(addr, len)],
            Kind::ProcessMadvise { ref ranges, .. } => {
                ranges.iter().flatten().map(|(addr, len)| range(*addr, *len)).collect()
            }
            Kind::Fork => everything(),
            Kind::Detach(addr) | Kind::RingEnds(addr) => vec![between(addr, addr)],
            Kind::Share { .. }
            | Kind::Limit { .. }
            | Kind::Privileges
            | Kind::Attach
            | Kind::Ring(_)
            | Kind::Unknown(_)
            | Kind::Other => Vec::new(),
        }
    }

    /// The ranges in which pages that are written after the call were written by other threads.
    pub(crate) fn written_by_others(&self) -> Vec<Range<usize>> {
        match self.kind {
            Kind::Op(
                Op::Munmap { .. }
                | Op::Mprotect { .. }
                | Op::PkeyMprotect { .. }
                | Op::Munlock { .. }
                | Op::Mseal { .. },
                _,
            )
            | Kind::Name { .. } => self.ranges(0),
            Kind::Op(Op::Madvise { advice, .. }, _) if advice != abi::MADV_POPULATE_WRITE => {
                self.ranges(0)
            }
            _ => Vec::new(),
        }
    }

    /// The range that it has newly mapped, after it has returned this address.
    pub(crate) fn mapped(&self, result: usize) -> Option<Range<usize>> {
        let pages = |len: usize| len.checked_next_multiple_of(abi::PAGE);
        let len = match self.kind {
            Kind::Op(Op::Mmap { len, .. }, _) => pages(len)?,
            Kind::Op(Op::Mremap { new_len, .. }, _) => pages(new_len)?,
            _ => return None,
        };
        Some(result..result.checked_add(len)?)
    }
}

fn kind(tid: pid_t, number: c_long, name: &'static str, arguments: [u64; 6]) -> Kind {
    /// `PR_SET_MM`, `PR_SET_MDWE`, `PR_SET_MEMORY_MERGE`, `ARCH_SHSTK_ENABLE`.
    const UNKNOWN: [(u64, &str); 4] = [
        (35, "prctl(PR_SET_MM)"),
        (65, "prctl(PR_SET_MDWE)"),
        (67, "prctl(PR_SET_MEMORY_MERGE)"),
        (0x5001, "arch_prctl(ARCH_SHSTK_ENABLE)"),
    ];
    /// The question which personality it is.
    const QUESTION: u64 = 0xffff_ffff;
    let [a, b, c, d, e, _] = arguments;
    if let Some(op) = op_of(number, arguments) {
        let file = matches!(op, Op::Mmap { file: Some(_), .. }).then_some(int(e));
        return Kind::Op(op, file);
    }
    // Words have 64 bits.
    let word = |word: u64| word as usize;
    match name {
        "prctl" if (a, b) == (PR_SET_VMA, 0) => {
            let name = (e != 0).then(|| string(tid, e));
            Kind::Name { addr: word(c), len: word(d), name }
        }
        "prctl" | "arch_prctl" => UNKNOWN
            .iter()
            .find(|(which, _)| *which == a)
            .map_or(Kind::Other, |(_, name)| Kind::Unknown(name)),
        "personality" if a & QUESTION != QUESTION && a & UNKNOWN_PERSONALITY != 0 => {
            Kind::Unknown("personality")
        }
        "personality" => Kind::Other,
        "process_madvise" => process_madvise(tid, arguments),
        "clone" => process(a),
        "clone3" => process(read_words::<1>(tid, a).map_or(0, |[flags]| flags)),
        "fork" => process(0),
        "vfork" => process(CLONE_VM),
        "setrlimit" => Kind::Limit { process: 0, which: a, new: read_words(tid, b).ok() },
        // Without a new limit it is a question.
        "prlimit64" if c == 0 => Kind::Other,
        "prlimit64" => Kind::Limit { process: int(a), which: b, new: read_words(tid, c).ok() },
        "setuid" | "setreuid" | "setresuid" | "capset" => Kind::Privileges,
        "shmat" => Kind::Attach,
        "shmdt" => Kind::Detach(word(a)),
        "io_setup" => Kind::Ring(b),
        "io_destroy" => Kind::RingEnds(word(a)),
        "ioctl" => Kind::Unknown("userfaultfd"),
        name => Kind::Unknown(name),
    }
}

/// An argument that is an `int`.
#[expect(clippy::cast_possible_truncation, reason = "as the kernel takes it")]
fn int(argument: u64) -> c_int {
    argument as u32 as c_int
}

fn process(flags: u64) -> Kind {
    if flags & CLONE_VM != 0 {
        Kind::Share { is_thread: flags & CLONE_THREAD != 0 }
    } else {
        Kind::Fork
    }
}

fn process_madvise(tid: pid_t, arguments: [u64; 6]) -> Kind {
    let [process, vector, count, advice, flags, _] = arguments;
    let ranges = if int(flags) == 0 { ranges(tid, vector, count) } else { Err(libc::EINVAL) };
    Kind::ProcessMadvise { process: int(process), ranges, advice: int(advice) }
}

/// Reads a vector of ranges as the kernel does.
fn ranges(tid: pid_t, vector: u64, count: u64) -> Result<Vec<(usize, usize)>, c_int> {
    /// No more bytes are taken, and no range that ends behind the memory of a program.
    const MOST_BYTES: usize = 0x7fff_f000;
    const END: usize = 0x7fff_ffff_f000;
    let count = count & u64::from(u32::MAX);
    if count > MOST_RANGES {
        return Err(libc::EINVAL);
    }
    let mut ranges = Vec::new();
    for number in 0..count {
        let at = vector.wrapping_add(16 * number);
        let [addr, len] = read_words(tid, at).map_err(|_| libc::EFAULT)?;
        if len.cast_signed() < 0 {
            return Err(libc::EINVAL);
        }
        ranges.push((addr as usize, len as usize));
    }
    let mut left = MOST_BYTES;
    for (addr, len) in &mut ranges {
        // The length of the only range is cut before it is looked at.
        let looked_at = if count == 1 { (*len).min(left) } else { *len };
        if addr.checked_add(looked_at).is_none_or(|end| end > END) {
            return Err(libc::EFAULT);
        }
        *len = (*len).min(left);
        left -= *len;
    }
    Ok(ranges)
}

/// A string of the program's. One that cannot be read is not valid as a name either.
fn string(tid: pid_t, addr: u64) -> String {
    let mut bytes = [0; 128];
    let len = read(tid, addr, &mut bytes).unwrap_or(0);
    let end = bytes[..len].iter().position(|byte| *byte == 0);
    end.map_or_else(
        || "\u{1}".repeat(bytes.len()),
        |end| String::from_utf8_lossy(&bytes[..end]).into_owned(),
    )
}
