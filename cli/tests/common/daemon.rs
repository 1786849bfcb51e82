//! The daemon, as a process of its own.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::common::pervma;
use crate::memory::{PAGE, random_bytes};

/// How long anything may take that is waited for.
const MOST: Duration = Duration::from_secs(30);

/// A folder with a memory file, and a place for sockets.
pub(crate) struct Place {
    folder: TempDir,
    pub(crate) file: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

impl Place {
    /// With a memory file of so many pages, no page of which is zeros.
    pub(crate) fn new(pages: usize) -> Self {
        watch();
        let folder = tempfile::tempdir().unwrap();
        let (file, socket) = (folder.path().join("memory"), folder.path().join("socket"));
        let bytes = random_bytes(pages * PAGE, 1);
        std::fs::write(&file, &bytes).unwrap();
        Self { folder, file, socket, bytes }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command that serves the memory file at the socket.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, more: impl IntoIterator<Item = A>) -> Command {
        let mut command = pervma(["serve"]);
        command.arg("--socket").arg(&self.socket).arg("--memory").arg(&self.file).args(more);
        command
    }

    /// The daemon, which is ready.
    pub(crate) fn serve<A: AsRef<OsStr>>(&self, more: impl IntoIterator<Item = A>) -> Daemon {
        Daemon::start(self.command(more))
    }
}

/// A daemon that is running.
pub(crate) struct Daemon {
    child: Child,
    lines: Receiver<String>,
    /// Those that were looked at.
    said: Vec<String>,
    stdout: Option<std::thread::JoinHandle<String>>,
}

impl Daemon {
    /// Starts it, and waits until it is in its sandbox.
    pub(crate) fn start(command: Command) -> Self {
        Self::start_with(command, Stdio::piped())
    }

    /// Starts it with another standard output.
    pub(crate) fn start_with(mut command: Command, stdout: Stdio) -> Self {
        watch();
        let ends_with_the_test = || {
            // SAFETY: it takes two numbers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            Ok(())
        };
        // SAFETY: it makes one system call.
        unsafe { command.pre_exec(ends_with_the_test) };
        let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // The test may have ended.
                let _ = send.send(line);
            }
        });
        // The command has the other end of a pipe that was given.
        drop(command);
        let stdout = child.stdout.take().map(|mut stdout| {
            std::thread::spawn(move || {
                let mut text = String::new();
                stdout.read_to_string(&mut text).unwrap();
                text
            })
        });
        let mut daemon = Self { child, lines, said: Vec::new(), stdout };
        daemon.wait_for("sandbox: ");
        daemon
    }

    /// Waits for a line with this text, behind those that were waited for before.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        loop {
            let line = match self.lines.recv_timeout(MOST) {
                Ok(line) => line,
                Err(why) => panic!("{text:?} was not said ({why}), but {:#?}", self.said),
            };
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process of the keeper's that serves; `None` if there is none now.
    pub(crate) fn serving(&self) -> Option<Pid> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let is_one = |child: &&str| {
            // The one that runs commands has closed its descriptors.
            std::fs::read_dir(format!("/proc/{child}/fd")).is_ok_and(|open| open.count() > 4)
        };
        let child = children.split(' ').find(is_one)?;
        Pid::from_raw(child.parse().ok()?)
    }

    /// Kills the serving process, and waits until the next one is there.
    pub(crate) fn kill_serving(&self) {
        let killed = self.serving().unwrap();
        kill_process(killed, Signal::KILL).unwrap();
        while self.serving().is_none_or(|next| next == killed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills the keeper, and waits until it is dead: who serves is its child up to then.
    pub(crate) fn kill_keeper(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Waits for its end: its exit code, what it has printed, and all that it has said.
    pub(crate) fn ended(mut self) -> Ended {
        let exit = self.child.wait().unwrap().code();
        let mut said = std::mem::take(&mut self.said);
        said.extend(self.lines.iter());
        let stdout = self.stdout.take().map(|text| text.join().unwrap()).unwrap_or_default();
        Ended { exit, stdout, said }
    }

    /// Tells it to stop, and waits for its end.
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.ended()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It outlives the keeper. Either has ended, perhaps.
        let serving = self.serving();
        let _ = self.child.kill();
        let _ = serving.map(|serving| kill_process(serving, Signal::KILL));
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon has said: {:#?}", self.said);
        }
    }
}

/// How a daemon has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) exit: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) said: Vec<String>,
}

impl Ended {
    /// The lines with a text.
    pub(crate) fn with(&self, text: &str) -> Vec<&str> {
        self.said.iter().map(String::as_str).filter(|line| line.contains(text)).collect()
    }

    pub(crate) fn last(&self) -> &str {
        self.said.last().unwrap()
    }
}

/// Whether a socket is there.
pub(crate) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Ends this program after two minutes, and with it what it has started.
fn watch() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_secs(120));
            eprintln!("a test does not end");
            std::process::abort();
        });
    });
}
