//! What is to be known about the machine and its kernel.

use std::fs;
use std::io;

use pervma_linux::abi;

use crate::child::read_limit;

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// Its first two numbers.
    pub version: (u32, u32),
    /// `vm.max_map_count`.
    pub max_map_count: usize,
    /// The most pages that one call may promise.
    pub commit_limit: usize,
    /// Whether anonymous memory can have names.
    pub anon_names: bool,
    /// Whether the kernel was built with huge pages.
    pub huge_pages: bool,
    /// Whether it can be told that memory fails.
    pub memory_failure: bool,
    /// The sizes of huge pages that it has pools of, as powers of two.
    pub huge_page_shifts: Vec<u32>,
}

/// How many files it takes: they have certain numbers in the process.
const MOST_FILES: u64 = 64;

/// The first version whose rules the model has.
pub(crate) const OLDEST: (u32, u32) = (6, 17);
/// The last one it has been compared with.
pub(crate) const NEWEST: (u32, u32) = (6, 18);

impl Machine {
    /// Looks around.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn here() -> io::Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let mut numbers = kernel.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let commit_limit = match number("/proc/sys/vm/overcommit_memory")? {
            1 => usize::MAX,
            _ => memory()?,
        };
        Ok(Self {
            kernel,
            version,
            max_map_count: number("/proc/sys/vm/max_map_count")?,
            commit_limit,
            anon_names: has_anon_names(),
            huge_pages: knows_advice(abi::MADV_HUGEPAGE),
            memory_failure: knows_advice(abi::MADV_HWPOISON),
            huge_page_shifts: huge_page_shifts(),
        })
    }

    /// Whether there is a pool of huge pages of the size that the flags of `mmap` ask for.
    pub fn has_huge_pages(&self, flags: u64) -> bool {
        match flags >> 26 & 0x3f {
            // The usual size.
            0 => !self.huge_page_shifts.is_empty(),
            shift => self.huge_page_shifts.iter().any(|has| u64::from(*has) == shift),
        }
    }

    /// Why the comparison cannot be made here, if so.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn unfit(&self) -> io::Result<Option<String>> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Ok(Some("it needs Linux on x86-64".to_owned()));
        }
        if self.version < OLDEST || NEWEST < self.version {
            let (major, minor) = self.version;
            return Ok(Some(format!(
                "the rules are those of Linux 6.17 and 6.18, not {major}.{minor}"
            )));
        }
        let files = read_limit(0, libc::RLIMIT_NOFILE)?.rlim_cur;
        if files < MOST_FILES {
            return Ok(Some(format!(
                "{files} files may be open (ulimit -n), and {MOST_FILES} are needed"
            )));
        }
        if number("/proc/sys/vm/overcommit_memory")? == 2 {
            return Ok(Some("vm.overcommit_memory is 2".to_owned()));
        }
        let flags = fs::read_to_string("/proc/cpuinfo")?;
        let unmodelled = ["ospke", "la57"].into_iter();
        let has = |wanted: &&str| flags.split_ascii_whitespace().any(|flag| flag == *wanted);
        Ok(unmodelled.into_iter().find(has).map(|flag| format!("the processor has {flag}")))
    }
}

fn huge_page_shifts() -> Vec<u32> {
    let pools = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let shift = |pool: fs::DirEntry| -> Option<u32> {
        let name = pool.file_name();
        let kilobytes = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        Some(kilobytes.parse::<u64>().ok()?.trailing_zeros() + 10)
    };
    pools.filter_map(shift).collect()
}

fn number(path: &str) -> io::Result<usize> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

/// Pages of memory and swap.
fn memory() -> io::Result<usize> {
    let about = fs::read_to_string("/proc/meminfo")?;
    let kilobytes = |name: &str| -> usize {
        let line = about.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_ascii_whitespace().next());
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Ok((kilobytes("MemTotal:") + kilobytes("SwapTotal:")) * 1024 / abi::PAGE)
}

/// Tries: advice about nothing.
fn knows_advice(advice: i32) -> bool {
    // SAFETY: an empty range, so that nothing happens to any memory.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, advice) == 0 }
}

/// Tries: nothing is mapped where it asks for.
fn has_anon_names() -> bool {
    /// `PR_SET_VMA` and `PR_SET_VMA_ANON_NAME`.
    const SET: (libc::c_int, libc::c_ulong) = (0x5356_4d41, 0);
    // SAFETY: an empty range, so that nothing is named; no name, so that nothing is read.
    unsafe { libc::prctl(SET.0, SET.1, 0, 0, 0) == 0 }
}
