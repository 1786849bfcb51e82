//! Calls with arguments from a string of bytes, and what must hold after each of them: shared by a
//! test and a fuzz target.

use std::sync::Arc;

use pervma_linux::{
    Access, Backing, Config, Counts, Errno, File, FileFacts, Layout, Mm, NotNow, OpenFile, Part,
    Refusal, StdPlatform, VmFlags, abi,
};

/// Memory in which some pages cannot be made present, and some advice cannot be followed.
struct Unwilling;

impl Backing for Unwilling {
    fn fault(&self, part: Part<'_>, _access: Access) -> Result<(), Refusal> {
        match part.range.clone().step_by(abi::PAGE).take(64).find(|addr| addr >> 12 & 7 == 5) {
            None => Ok(()),
            Some(addr) if addr & 0x8000 != 0 => Err(Refusal::Guard { addr }),
            Some(addr) if addr & 0x1_0000 != 0 => Err(Refusal::Bus),
            Some(_) => Err(Refusal::OutOfMemory),
        }
    }

    fn advise(&self, part: Part<'_>, _advice: i32) -> Result<(), Errno> {
        if part.range.end >> 12 & 7 == 6 { Err(Errno::EBUSY) } else { Ok(()) }
    }

    fn sync(&self, part: Part<'_>) -> Result<(), Errno> {
        self.advise(part, 0)
    }
}

/// Reads arguments from bytes; zeros when there are no more.
struct Arguments<'a>(&'a [u8]);

impl Arguments<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (now, later) = self.0.split_at(N.min(self.0.len()));
        self.0 = later;
        let mut bytes = [0; N];
        bytes[..now.len()].copy_from_slice(now);
        bytes
    }

    /// Reads any 64 bits; or, so that calls meet each other's mappings, one of a few pages; or a
    /// number near some limit.
    fn word(&mut self) -> u64 {
        let [how, few] = self.bytes();
        match how % 8 {
            0 => u64::from_le_bytes(self.bytes()),
            1 => u64::from(few),
            2 => u64::MAX - u64::from(few),
            3 => 0x7fff_ffff_f000_u64.wrapping_add(u64::from(few)).wrapping_sub(128),
            4 => 1 << (few % 64),
            5 => 0x7fff_f7ff_f000 - u64::from(few % 32) * 4096,
            _ => 0x1_0000 + u64::from(few % 32) * 4096,
        }
    }

    fn addr(&mut self) -> usize {
        usize::try_from(self.word()).unwrap_or(usize::MAX)
    }

    /// Reads a length, mostly of a few pages.
    fn len(&mut self) -> usize {
        let [few] = self.bytes();
        if few < 32 { self.addr() } else { usize::from(few % 8) * 4096 }
    }

    fn int(&mut self) -> i32 {
        let [few] = self.bytes();
        if few < 16 { i32::from_le_bytes(self.bytes()) } else { i32::from(few % 104) }
    }

    fn flags(&mut self) -> u64 {
        let [few] = self.bytes();
        match few {
            0..16 => self.word(),
            16..128 => abi::MAP_PRIVATE | abi::MAP_ANONYMOUS,
            128..192 => abi::MAP_PRIVATE | abi::MAP_ANONYMOUS | abi::MAP_FIXED,
            _ => u64::from(u32::from_le_bytes(self.bytes()) & 0x1f_ffff),
        }
    }
}

/// Makes calls until the bytes are used up.
///
/// # Panics
///
/// When something does not hold.
pub(crate) fn run(bytes: &[u8]) {
    let mut arguments = Arguments(bytes);
    let [strict, unlimited] = arguments.bytes();
    let config = Config {
        strict: strict & 1 != 0,
        max_map_count: if strict & 2 != 0 { 12 } else { 65530 },
        may_lock: unlimited & 1 != 0,
        may_map_low: unlimited & 2 != 0,
        may_set_addresses: unlimited & 4 != 0,
        ..Config::default()
    };
    let file: Arc<dyn File> = Arc::new(OpenFile::new("/file", FileFacts::new()));
    let mut mm = Mm::new(Unwilling, config);
    while !arguments.0.is_empty() {
        let before = (mm.config().strict).then(|| state(&mm));
        let result = call(&mut mm, &mut arguments, &file);
        if let (Some(before), Err(error)) = (before, result) {
            assert_eq!(before, state(&mm), "{error} has left something changed");
        }
        check(&mm);
    }
}

/// Returns what may not change when a call fails. A mark of guard pages may: it is about pages.
fn state(mm: &Mm<Unwilling, StdPlatform>) -> (Result<String, NotNow>, Vec<VmFlags>, Counts) {
    let mut flags = Vec::new();
    let seen = mm.for_each(|_, vma| flags.push(vma.flags | VmFlags::MAYBE_GUARD));
    (seen.and_then(|()| mm.maps()), flags, mm.counts())
}

fn call(
    mm: &mut Mm<Unwilling, StdPlatform>,
    arguments: &mut Arguments<'_>,
    file: &Arc<dyn File>,
) -> Result<(), Errno> {
    let [which] = arguments.bytes();
    let (addr, len) = (arguments.addr(), arguments.len());
    match which % 24 {
        0..5 => {
            let (prot, flags) = (arguments.word(), arguments.flags());
            let file = (which & 0x80 != 0).then_some(file);
            mm.mmap(addr, len, prot, flags, file, arguments.word()).map(drop)
        }
        5 => mm.munmap(addr, len),
        6 => mm.mprotect(addr, len, arguments.word()),
        7 => mm.pkey_mprotect(addr, len, arguments.word(), arguments.int()),
        8 | 9 => {
            let (new_len, flags) = (arguments.len(), arguments.word() % 9);
            mm.mremap(addr, len, new_len, flags, arguments.addr()).map(drop)
        }
        10 => mm.madvise(addr, len, arguments.int()),
        11 => mm.mlock2(addr, len, arguments.int() % 3),
        12 => mm.munlock(addr, len),
        13 => mm.mlockall(arguments.int()),
        14 => {
            let brk = mm.brk(addr);
            assert_eq!(mm.brk(0), brk);
            Ok(())
        }
        15 => mm.mseal(addr, len, arguments.word() % 2),
        16 => mm.msync(addr, len, arguments.int()),
        17 => mm.set_anon_name(addr, len, [None, Some("name")][usize::from(which >> 7)]),
        18 => {
            let access = [Access::Read, Access::Write, Access::Execute][usize::from(which % 3)];
            // A signal is no failed call: a stack that cannot grow has its first page then.
            let _ = mm.fault(addr, access);
            Ok(())
        }
        19 => mm.mincore(addr, len % (1 << 30), arguments.addr()),
        20 => mm.set_address(arguments.int() % 16, addr),
        21 => {
            let layout = mm.config().layout;
            let (start_brk, brk) = (addr, addr.wrapping_add(len));
            mm.set_addresses(Layout { start_brk, brk, start_stack: arguments.addr(), ..layout })
        }
        22 => mm.configure(|config| {
            config.may_lock = which & 0x80 != 0;
            config.max_map_count = arguments.len();
            config.mmap_min_addr = addr;
        }),
        _ => {
            *mm = mm.fork(Unwilling)?;
            Ok(())
        }
    }
}

/// Checks that the counts are right, and that no two mappings should be one.
fn check(mm: &Mm<Unwilling, StdPlatform>) {
    let mut counted = Counts::default();
    let mut last_end = 0;
    let seen = mm.for_each(|range, vma| {
        assert!(last_end <= range.start && range.start < range.end);
        assert!(range.start % 4096 == 0 && range.end % 4096 == 0);
        assert!(range.end <= mm.config().layout.task_size);
        last_end = range.end;
        let pages = (range.end - range.start) / 4096;
        counted.total += pages;
        let kind = |flags: VmFlags| vma.flags.has(flags);
        let stack = kind(VmFlags::GROWSDOWN);
        if kind(VmFlags::EXEC) && !kind(VmFlags::WRITE) && !stack {
            counted.exec += pages;
        } else if stack {
            counted.stack += pages;
        } else if kind(VmFlags::WRITE) && !kind(VmFlags::SHARED) {
            counted.data += pages;
        }
    });
    assert_eq!(seen, Ok(()));
    let counts = mm.counts();
    // What is locked may be counted twice: see `Counts::locked`.
    assert_eq!(Counts { locked: 0, ..counts }, counted);
}
