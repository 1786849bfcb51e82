//! What CRIU does, as `pervma lazy-pages` sees it: a restore from images.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use crate::client::{Client, send};
use crate::common::pervma;
use crate::daemon::Daemon;
use crate::images::{Entry, START, vma, write_mm, write_pages, write_tasks};

/// Images of a checkpoint, each task with one mapping; and the memory of each task, in a file.
pub(crate) struct Checkpoint {
    pub(crate) folder: TempDir,
    pub(crate) tasks: Vec<u64>,
}

impl Checkpoint {
    /// Of each task its number, the bytes that its memory has, and which of them the images have.
    pub(crate) fn new(tasks: &[(u64, &[u8], &[Entry])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let numbers: Vec<u64> = tasks.iter().map(|(pid, ..)| *pid).collect();
        write_tasks(folder.path(), &numbers);
        let checkpoint = Self { folder, tasks: numbers };
        for (pid, bytes, entries) in tasks {
            let path = checkpoint.folder.path();
            write_mm(path, *pid, &[vma(&(START..START + bytes.len()), 0x22)]);
            write_pages(path, *pid, bytes, entries);
            fs::write(checkpoint.memory(*pid), bytes).unwrap();
        }
        checkpoint
    }

    /// The file with a task's memory.
    fn memory(&self, pid: u64) -> PathBuf {
        self.folder.path().join(format!("memory-{pid}"))
    }

    pub(crate) fn command(&self, more: &[&str]) -> Command {
        let mut command = pervma(["lazy-pages", "-v3", "-D"]);
        command.arg(self.folder.path()).args(more);
        command
    }

    /// The daemon, which is ready.
    pub(crate) fn daemon(&self, more: &[&str]) -> Daemon {
        Daemon::start(self.command(more))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("lazy-pages.socket")
    }

    /// A restore that has begun.
    pub(crate) fn restore(&self) -> Restore {
        Restore { connection: Some(UnixStream::connect(self.socket()).unwrap()) }
    }

    /// A restore of all tasks, which has not finished; and the tasks.
    pub(crate) fn restore_all(&self, features: u64) -> (Restore, Vec<Client>) {
        let restore = self.restore();
        let tasks = self.tasks.iter().map(|&pid| restore.task(self, pid, features)).collect();
        (restore, tasks)
    }
}

/// A restore.
pub(crate) struct Restore {
    pub(crate) connection: Option<UnixStream>,
}

impl Restore {
    pub(crate) fn connection(&self) -> &UnixStream {
        self.connection.as_ref().unwrap()
    }

    /// Starts a task, and tells the daemon of it.
    pub(crate) fn task(&self, of: &Checkpoint, pid: u64, features: u64) -> Client {
        let (task, userfaultfd) = task(of, pid, features);
        send(self.connection(), &(pid as i32).to_ne_bytes(), &[]);
        send(self.connection(), &[0], &[userfaultfd.as_fd()]);
        task
    }

    /// Tells that the tasks run.
    pub(crate) fn finish(&mut self) {
        send(self.connection(), &0x5253_5446_u32.to_ne_bytes(), &[]);
        self.connection = None;
    }
}

/// Starts a task whose memory is registered with what is returned beside it.
pub(crate) fn task(of: &Checkpoint, pid: u64, features: u64) -> (Client, OwnedFd) {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut task = Client::start();
    let (socket, memory) = (socket.display(), of.memory(pid));
    task.tell(&format!("restore {socket} {} {START} {features}", memory.display()));
    let (from_task, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut bytes = [std::io::IoSliceMut::new(&mut byte)];
    recvmsg(&from_task, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let userfaultfd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    assert_eq!(task.answer(), "done");
    (task, userfaultfd.unwrap())
}
