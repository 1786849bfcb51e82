//! Running the command on a terminal.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::ptr;

/// Starts the command with a terminal as its standard error; returns it and what it shows there.
pub(crate) fn on_terminal(mut command: Command) -> (Child, Terminal) {
    let (mut ours, mut its) = (-1, -1);
    let (name, settings, size) = (ptr::null_mut(), ptr::null(), ptr::null());
    // SAFETY: the kernel writes two descriptors to two places.
    let opened = unsafe { libc::openpty(&raw mut ours, &raw mut its, name, settings, size) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just opened, and owned by nothing else.
    let ours = unsafe { OwnedFd::from_raw_fd(ours) };
    // SAFETY: as above.
    let its = unsafe { OwnedFd::from_raw_fd(its) };
    let child = command.stdout(Stdio::piped()).stderr(its).env("TERM", "xterm").spawn().unwrap();
    // Only the child has the other end from here on.
    drop(command);
    (child, Terminal { file: ours.into(), shown: String::new() })
}

/// What is shown on a terminal.
pub(crate) struct Terminal {
    file: File,
    shown: String,
}

impl Terminal {
    /// Reads until a text is shown; fails when the command has ended before.
    pub(crate) fn wait_for(&mut self, text: &str) {
        while !self.shown.contains(text) {
            assert!(self.read_more(), "{text} was not shown: {}", self.shown);
        }
    }

    /// All that is shown to the end.
    pub(crate) fn rest(&mut self) -> &str {
        while self.read_more() {}
        &self.shown
    }

    fn read_more(&mut self) -> bool {
        let mut bytes = [0; 4096];
        // An error says that the other end is closed.
        let read = self.file.read(&mut bytes).unwrap_or(0);
        self.shown.push_str(&String::from_utf8_lossy(&bytes[..read]));
        read > 0
    }
}
