//! What the tests share: random bytes, and children of the test itself that may die.
#![expect(dead_code, reason = "each test binary uses a part")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

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
