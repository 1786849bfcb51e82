//! The machine and its kernel.

use std::fs;
use std::io;

use pervma_linux::abi;

use crate::child::read_limit;

/// The properties of the machine that results depend on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The release of the kernel.
    pub kernel: String,
    /// The first two numbers of the release.
    pub version: (u32, u32),
    /// The limit of mappings (`vm.max_map_count`).
    pub max_map_count: usize,
    /// The most pages that one call may commit.
    pub commit_limit: usize,
    /// Whether anonymous memory can have names.
    pub anon_names: bool,
    /// Whether the kernel was built with huge pages.
    pub huge_pages: bool,
    /// Whether the kernel knows `MADV_HWPOISON`.
    pub memory_failure: bool,
    /// The sizes of huge pages that there are pools of, as powers of two.
    pub huge_page_shifts: Vec<u32>,
}

/// The files that must be open at a time, since those of the process have certain numbers.
const MOST_FILES: u64 = 64;

/// The first version of the kernel whose rules the model has.
pub(crate) const OLDEST: (u32, u32) = (6, 17);
/// The last version of the kernel that the model was compared with.
pub(crate) const NEWEST: (u32, u32) = (6, 18);

impl Machine {
    /// Finds out about this machine.
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
            // The default size.
            0 => !self.huge_page_shifts.is_empty(),
            shift => self.huge_page_shifts.iter().any(|has| u64::from(*has) == shift),
        }
    }

    /// Returns why the comparison cannot be made here, or `None` if it can.
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

/// Whether the kernel takes this advice about an empty range.
fn knows_advice(advice: i32) -> bool {
    // SAFETY: an empty range, so that nothing happens to any memory.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, advice) == 0 }
}

/// Whether the kernel takes names of anonymous memory, for an empty range.
fn has_anon_names() -> bool {
    /// `PR_SET_VMA` and `PR_SET_VMA_ANON_NAME`.
    const SET: (libc::c_int, libc::c_ulong) = (0x5356_4d41, 0);
    // SAFETY: an empty range, so that nothing is named; no name, so that nothing is read.
    unsafe { libc::prctl(SET.0, SET.1, 0, 0, 0) == 0 }
}
