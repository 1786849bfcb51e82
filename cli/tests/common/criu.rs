//! What CRIU does, as `pervma lazy-pages` sees it: images of a checkpoint, and a restore from them.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use crate::client::{Client, send};
use crate::common::pervma;
use crate::daemon::Daemon;
use crate::memory::PAGE;

pub(crate) const IN_PARENT: u64 = 1;
pub(crate) const LAZY: u64 = 2;
pub(crate) const PRESENT: u64 = 4;

/// Where the memory of tasks begins.
pub(crate) const START: usize = 1 << 44;

/// A protobuf message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    fn varint(mut self, mut number: u64) -> Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    pub(crate) fn number(self, field: u64, number: u64) -> Self {
        self.varint(field << 3).varint(number)
    }

    fn message(self, field: u64, message: &Self) -> Self {
        let mut with = self.varint(field << 3 | 2).varint(message.0.len() as u64);
        with.0.extend(&message.0);
        with
    }
}

/// The bytes of an image file.
pub(crate) fn image(magic: u32, messages: &[Message]) -> Vec<u8> {
    let mut bytes = [0x5456_4319, magic].map(u32::to_le_bytes).concat();
    for message in messages {
        bytes.extend((message.0.len() as u32).to_le_bytes());
        bytes.extend(&message.0);
    }
    bytes
}

pub(crate) const INVENTORY: u32 = 0x5831_3116;
pub(crate) const PSTREE: u32 = 0x5027_3030;
pub(crate) const MM: u32 = 0x5749_2820;
pub(crate) const PAGEMAP: u32 = 0x5608_4025;

/// Writes what is there once in the images of tasks.
pub(crate) fn write_tasks(folder: &Path, tasks: &[u64]) {
    let inventory = Message::default().number(1, 2).number(2, 1).number(4, 1);
    fs::write(folder.join("inventory.img"), image(INVENTORY, &[inventory])).unwrap();
    let task = |&pid: &u64| {
        (2..=4).fold(Message::default().number(1, pid), |task, field| task.number(field, 1))
    };
    let tasks: Vec<_> = tasks.iter().map(task).collect();
    fs::write(folder.join("pstree.img"), image(PSTREE, &tasks)).unwrap();
}

/// The mapping of a task, as CRIU tells of one.
pub(crate) fn vma(range: &Range<usize>, flags: i32) -> Message {
    let fields = [(1, range.start as u64), (2, range.end as u64), (3, 0), (4, 0), (5, 3)];
    let vma =
        fields.iter().fold(Message::default(), |vma, &(field, number)| vma.number(field, number));
    vma.number(6, flags as u64).number(7, 0x201).number(8, 1)
}

/// Writes the mappings of a task.
pub(crate) fn write_mm(folder: &Path, pid: u64, vmas: &[Message]) {
    let mm = (1..=12).fold(Message::default(), |mm, field| mm.number(field, 0));
    let mm = vmas.iter().fold(mm, |mm, vma| mm.message(14, vma));
    fs::write(folder.join(format!("mm-{pid}.img")), image(MM, &[mm])).unwrap();
}

/// Pages of a task, by their numbers, and the flags of their entry in the pagemap.
pub(crate) type Entry = (Range<usize>, u64);

/// Writes the pages of a task whose memory has these bytes.
pub(crate) fn write_pages(folder: &Path, pid: u64, bytes: &[u8], entries: &[Entry]) {
    let mut messages = vec![Message::default().number(1, pid)];
    let mut pages = Vec::new();
    for (range, flags) in entries {
        let entry = Message::default().number(1, (START + range.start * PAGE) as u64);
        let entry = entry.number(2, range.len() as u64).number(4, *flags);
        messages.push(entry.number(5, range.len() as u64));
        if flags & (PRESENT | IN_PARENT) == PRESENT {
            pages.extend(&bytes[range.start * PAGE..range.end * PAGE]);
        }
    }
    fs::write(folder.join(format!("pagemap-{pid}.img")), image(PAGEMAP, &messages)).unwrap();
    fs::write(folder.join(format!("pages-{pid}.img")), pages).unwrap();
}

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
