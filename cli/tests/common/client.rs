//! Clients of the daemon: processes of their own, which do what a test asks them to, as a virtual
//! machine monitor would.
#![allow(dead_code, reason = "each test binary uses a part")]
#![expect(clippy::disallowed_types, reason = "a flag that guards no memory")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::daemon::Place;
use crate::memory::{ALL_EVENTS, FORK, Kind, Memory, PAGE, in_child, userfaultfd};

const CLIENT: &str = "PERVMA_CLI_TEST_CLIENT";

/// A client's process, as the test sees it.
pub(crate) struct Client {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStderr>,
}

/// What a client has, and tells of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Has {
    /// So many pages, with the bytes of the memory file from page `first` on.
    pub(crate) count: usize,
    pub(crate) first: usize,
    /// So many of them, from the lowest address on, are told of.
    pub(crate) told: usize,
    /// Of the userfaultfd.
    pub(crate) features: u64,
    /// It keeps a copy of the userfaultfd, as Firecracker does.
    pub(crate) keeps: bool,
}

impl Has {
    /// The first pages of the memory file, told of as they are.
    pub(crate) fn pages(count: usize, features: u64) -> Self {
        Self { count, first: 0, told: count, features, keeps: false }
    }
}

impl Place {
    pub(crate) fn client(&self, has: Has) -> Client {
        Client::connect(&self.socket, &self.file, has).unwrap()
    }
}

impl Client {
    /// A client that has connected, and brought its memory; `None` if its connection was closed
    /// before.
    pub(crate) fn connect(socket: &Path, file: &Path, has: Has) -> Option<Self> {
        let mut client = Self::start();
        let (socket, file) = (socket.to_str().unwrap(), file.to_str().unwrap());
        let Has { count, first, told, features, keeps } = has;
        client.tell(&format!("connect {socket} {file} {first} {count} {told} {features} {keeps}"));
        match client.answer().as_str() {
            "done" => Some(client),
            "closed" => None,
            other => panic!("{other}"),
        }
    }

    /// A process that does nothing yet.
    pub(crate) fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["client_process", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(CLIENT, "").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stderr.take().unwrap());
        Self { child, commands, answers }
    }

    /// Tells it what to do.
    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    /// The answer to what it was told first of all that it has not answered; empty if it has ended.
    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    /// Has it do what must succeed.
    pub(crate) fn asked(&mut self, command: &str) {
        assert_eq!(self.ask(command), "done", "{command}");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.wait()
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Has it end, as one that is not needed any more.
    pub(crate) fn end(mut self) {
        self.tell("end");
        let status = self.wait();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended, perhaps.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All events that this user may have told: others are no part of the test then.
pub(crate) fn all_events() -> u64 {
    if userfaultfd(ALL_EVENTS).is_some() { ALL_EVENTS } else { ALL_EVENTS & !FORK }
}

/// Sends a message with descriptors.
pub(crate) fn send(connection: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    assert!(try_send(connection, bytes, descriptors));
}

/// Sends a message with descriptors, unless the connection is closed.
fn try_send(connection: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let sent = sendmsg(connection, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    assert!(matches!(sent, Ok(_) | Err(Errno::PIPE)), "{sent:?}");
    sent == Ok(bytes.len())
}

/// Firecracker's message: the address, the length and the offset of each region, in bytes.
pub(crate) fn message(regions: &[(usize, usize, usize)]) -> String {
    let mut text = String::new();
    for (start, len, offset) in regions {
        let separator = if text.is_empty() { '[' } else { ',' };
        write!(
            text,
            r#"{separator}{{"base_host_virt_addr":{start},"size":{len},"offset":{offset},"page_size":4096,"page_size_kib":4096}}"#
        )
        .unwrap();
    }
    text + "]"
}

/// Plays the client, in its process; elsewhere it does nothing.
pub(crate) fn play() {
    if std::env::var_os(CLIENT).is_none() {
        return;
    }
    // SAFETY: it takes two numbers: it ends with the test.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    catch_bus_errors();
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    let played = if first.starts_with("restore") {
        Played::restore(&first)
    } else {
        Played::connect(&first)
    };
    let Some(mut played) = played else {
        return eprintln!("closed");
    };
    eprintln!("done");
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<usize> = words[1..].iter().filter_map(|word| word.parse().ok()).collect();
        match (words[0], &numbers[..]) {
            ("check", []) => eprintln!("{}", played.check(0..played.expected.len() / PAGE)),
            ("check", &[start, end]) => eprintln!("{}", played.check(start..end)),
            ("touch", &[page]) => eprintln!("{}", touch(played.memory, page)),
            ("discard", &[start, end]) => {
                played.memory.pages(start..end).discard();
                played.expected[start * PAGE..end * PAGE].fill(0);
                eprintln!("done");
            }
            ("protect", &[start, end]) => {
                played.memory.pages(start..end).protect(libc::PROT_READ);
                eprintln!("done");
            }
            ("write", &[page]) => {
                played.memory.set(page * PAGE, 201);
                played.expected[page * PAGE] = 201;
                eprintln!("done");
            }
            ("fork", []) => eprintln!("{}", played.fork()),
            ("disconnect", []) => {
                played.connection = None;
                eprintln!("done");
            }
            ("end", []) => return,
            _ => panic!("{line}"),
        }
    }
}

/// The client, in its process.
struct Played {
    memory: Memory,
    /// What its memory must be.
    expected: Vec<u8>,
    connection: Option<UnixStream>,
    _kept: Option<OwnedFd>,
}

impl Played {
    fn connect(line: &str) -> Option<Self> {
        let [_, socket, file, first, count, told, features, keeps] =
            line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let number = |text: &str| text.parse::<usize>().unwrap();
        let (first, count, told) = (number(first), number(count), number(told));
        let expected = fs::read(file).unwrap()[first * PAGE..][..count * PAGE].to_vec();
        let fd = userfaultfd(number(features) as u64).unwrap();
        let memory = Memory::map(count * PAGE, Kind::Anonymous).unwrap().register(&fd);
        let connection = UnixStream::connect(socket).unwrap();
        let message = message(&[(memory.start, told * PAGE, first * PAGE)]);
        let is_sent = try_send(&connection, message.as_bytes(), &[fd.as_fd()]);
        let kept = (keeps == "true").then_some(fd);
        is_sent.then_some(Self { memory, expected, connection: Some(connection), _kept: kept })
    }

    /// As a task that is restored: its memory begins at an address, and has the bytes of a file.
    fn restore(line: &str) -> Option<Self> {
        let [_, relay, file, start, features] =
            line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let expected = fs::read(file).unwrap();
        let fd = userfaultfd(features.parse().unwrap()).unwrap();
        let memory = Memory::map_at(start.parse().unwrap(), expected.len()).register(&fd);
        let relay = UnixStream::connect(relay).unwrap();
        assert!(try_send(&relay, &[0], &[fd.as_fd()]));
        Some(Self { memory, expected, connection: None, _kept: None })
    }

    /// Compares pages, in another order than theirs.
    fn check(&self, pages: Range<usize>) -> String {
        let count = pages.len();
        for turn in 0..count {
            let page = pages.start + (turn * 31 + 7) % count;
            if self.memory.page(page).copy() != self.expected[page * PAGE..][..PAGE] {
                return format!("page {page} is wrong");
            }
        }
        "done".to_owned()
    }

    /// Has a forked child compare all pages.
    fn fork(&self) -> String {
        let code = in_child(|| {
            let pages = self.expected.chunks(PAGE).enumerate();
            let mut wrong = pages.filter(|(page, bytes)| {
                let here = self.memory.page(*page);
                (0..PAGE).any(|at| here.byte(at) != bytes[at])
            });
            wrong.next().map_or(0, |_| 1)
        });
        if code == 0 { "done".to_owned() } else { format!("the child has ended with {code}") }
    }
}

/// Whether the last access has failed.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// The first byte of a page, or that it cannot be had.
fn touch(memory: Memory, page: usize) -> String {
    HAS_FAILED.store(false, Relaxed);
    let byte = memory.byte(page * PAGE);
    // RELAXED: the handler runs on this thread.
    if HAS_FAILED.load(Relaxed) { "SIGBUS".to_owned() } else { format!("byte {byte}") }
}

/// An access that fails goes on, with a page of zeros in place of what cannot be had.
fn catch_bus_errors() {
    extern "C" fn handle(_: i32, about: *mut libc::siginfo_t, _: *mut libc::c_void) {
        HAS_FAILED.store(true, Relaxed);
        // SAFETY: the kernel passes it.
        let about = unsafe { &*about };
        // SAFETY: it is there for this signal.
        let addr = unsafe { about.si_addr() };
        let page = addr.map_addr(|addr| addr & !(PAGE - 1));
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: over a page of the test's.
        let mapped = unsafe { libc::mmap(page, PAGE, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            std::process::abort();
        }
    }
    // SAFETY: a struct of numbers.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler makes one system call.
    let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}
