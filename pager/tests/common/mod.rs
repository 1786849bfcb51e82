//! What the tests share: random bytes, and children of the test itself that may die.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use pervma_pager::sys::Errno;
use pervma_pager::{FileSource, LiveRegion, MemorySource, Options};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

pub const PAGE: usize = 4096;

const CHILD: &str = "PERVMA_PAGER_TEST_CHILD";

/// Random bytes, the same for the same seed.
pub fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(bytes.as_mut_slice());
    bytes
}

/// How a child ended, and what it wrote to its standard error.
#[derive(Debug)]
pub struct Ended {
    pub exit: Option<i32>,
    pub signal: Option<i32>,
    pub stderr: String,
}

/// Runs `case` of the test `name` in a process of its own: in it, [`child_case`] is `Some(case)`.
pub fn run_child(name: &str, case: &str) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    let Output { status, stderr, .. } = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, case)
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Ended { exit: status.code(), signal: status.signal(), stderr }
}

/// The case to play, in a child.
pub fn child_case() -> Option<String> {
    let case = std::env::var(CHILD).ok()?;
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
    // A child that hangs is a failure, not a hang of the test.
    // SAFETY: no condition.
    unsafe { libc::alarm(30) };
    Some(case)
}

pub fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// How many huge pages the system could give out.
pub fn free_huge_pages() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap();
    free.trim().parse().unwrap()
}

/// Who serves a region's faults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Signal,
    Thread,
}

pub const MODES: [Mode; 2] = [Mode::Signal, Mode::Thread];

/// Memory and file, with these bytes and options that both modes have.
pub fn regions(bytes: &[u8], mode: Mode, set: fn(Options) -> Options) -> [LiveRegion; 2] {
    let memory = MemorySource::new(bytes);
    let file = FileSource::new(file_with(bytes)).unwrap();
    match mode {
        Mode::Signal => [set(Options::new()).map(memory), set(Options::new()).map(file)],
        Mode::Thread => {
            let set = set(Options::new()).in_thread();
            [set.clone().map(memory), set.map(file)]
        }
    }
    .map(|region| region.unwrap())
}

pub fn byte(region: &LiveRegion, offset: usize) -> u8 {
    let mut byte = [0];
    region.read(offset, &mut byte);
    byte[0]
}

pub fn bytes(region: &LiveRegion) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.read(0, &mut bytes);
    bytes
}

/// How many pages of a region are in memory, as the kernel says.
pub fn pages_in_memory(region: &LiveRegion) -> usize {
    let mut pages = vec![0_u8; region.len().div_ceil(PAGE)];
    let start = region.as_ptr().cast();
    // SAFETY: asks about the region's memory, and writes a byte for each page of it.
    let asked = unsafe { libc::mincore(start, region.len(), pages.as_mut_ptr()) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&page| page & 1 != 0).count()
}

/// Makes a system call fail in this thread from now on, as filters of containers do.
pub fn refuse(call: libc::c_long, errno: Errno) {
    let filter = SeccompFilter::new(
        [(call, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.raw_os_error().cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}
