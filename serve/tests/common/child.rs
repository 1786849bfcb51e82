//! Children of the test program, which play a part of one of its tests.
#![allow(dead_code, reason = "each test binary uses a part")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Stdio};
use std::time::Duration;

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

/// Runs the test `name` in a process of its own, which must pass.
pub(crate) fn run(name: &str, case: &str) {
    let output = command(name, case).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{case}: {}\n{stderr}", output.status);
}

/// The case to play, in a child.
pub(crate) fn case() -> Option<String> {
    let case = std::env::var(CASE).ok()?;
    watch();
    Some(case)
}

/// Says that a test returns without having tried all that its name says. CI lists these lines.
pub(crate) fn not_run(reason: impl std::fmt::Display) {
    println!("NOT RUN: {reason}");
}
