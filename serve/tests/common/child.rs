//! Children of the test program, which play a part of one of its tests.
#![allow(dead_code, reason = "each test binary uses a part")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

const NOT_RUN: &str = "NOT RUN: ";
const CASE: &str = "PERVMA_SERVE_TEST_CHILD";

/// Ends this program after a minute: a test that could wait for ever calls it first.
pub(crate) fn watch() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_secs(60));
            eprintln!("a test does not end");
            std::process::abort();
        });
    });
}

/// A command that runs the test `name` in a process of its own: in it, [`case`] is `Some(case)`.
pub(crate) fn command(name: &str, case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(CASE, case).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Runs the test `name` in a process of its own, which must pass, and says what it has not tried.
pub(crate) fn run(name: &str, case: &str) {
    watch();
    let output =
        command(name, case).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{case}: {}\n{stderr}", output.status);
    for line in stdout.lines().filter(|line| line.starts_with(NOT_RUN)) {
        println!("{line}");
    }
}

/// Runs a function in a process of its own that has one thread: a copy of this one, which must be
/// a child of the test (see [`run`]), so that no other thread is in the middle of anything. It must
/// not panic. Meanwhile `beside` gets the number of the process.
pub(crate) fn with_one_thread(function: impl FnOnce(), beside: impl FnOnce(u32)) -> ExitStatus {
    assert!(case().is_some());
    // SAFETY: the other threads wait, for this one or for the end of the time. The copy ends below.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let done = catch_unwind(AssertUnwindSafe(|| {
                // SAFETY: it takes a number. The signal ends this process.
                unsafe { libc::alarm(30) };
                function();
            }));
            // SAFETY: it takes a number, and does not return.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        child => {
            beside(child.cast_unsigned());
            let mut status = 0;
            // SAFETY: the kernel writes to `status`.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(waited, child);
            ExitStatus::from_raw(status)
        }
    }
}

/// Runs functions one after the other, each in a process of its own that has one thread, in which
/// it must not panic; in one more child of the test `name`.
pub(crate) fn alone<F: FnOnce()>(name: &str, functions: impl IntoIterator<Item = F>) {
    if case().is_none() {
        return run(name, "alone");
    }
    for function in functions {
        let status = with_one_thread(function, |_| ());
        assert!(status.success(), "{status}");
    }
}

/// The case to play, in a child.
pub(crate) fn case() -> Option<String> {
    let case = std::env::var(CASE).ok()?;
    watch();
    Some(case)
}

/// Says that a test returns without having tried all that its name says. CI lists these lines.
pub(crate) fn not_run(reason: impl std::fmt::Display) {
    println!("{NOT_RUN}{reason}");
}
