//! The daemon, `pervma serve`, with peers that are broken or mean harm: one line says what is wrong
//! with each, and others are served on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/memory.rs"]
mod memory;

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use client::{Client, Has, message, send};
use daemon::{Daemon, Place};
use memory::{Kind, Memory, PAGE, REMOVE, userfaultfd};
use rustix::fs::OFlags;

/// Where a client is run, which is a child of a test.
#[test]
fn client_process() {
    client::play();
}

const PAGES: usize = 64;

/// A daemon with a client that is to be served whatever comes.
struct Served {
    place: Place,
    daemon: Daemon,
    client: Client,
    /// So many of its pages were read.
    read: usize,
    refused: usize,
}

impl Served {
    fn new(more: &[&str]) -> Self {
        let place = Place::new(PAGES);
        let daemon = place.serve([more, &["--granule", "4K", "--ahead", "0"]].concat());
        let client = place.client(Has::pages(PAGES, REMOVE));
        Self { place, daemon, client, read: 0, refused: 0 }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.place.socket).unwrap()
    }

    /// Waits until a peer is refused for this reason, and its connection is closed; then the client
    /// reads one page more.
    fn refuses(&mut self, mut peer: UnixStream, why: &str) {
        let line = self.daemon.wait_for("a peer is refused: ");
        assert!(line.contains(why), "{line}");
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line}");
        // An error if it has not read all of it.
        assert_eq!(peer.read(&mut [0]).unwrap_or(0), 0);
        self.refused += 1;
        self.goes_on();
    }

    fn goes_on(&mut self) {
        self.client.asked(&format!("check {} {}", self.read, self.read + 1));
        self.read += 1;
    }

    /// The client has been served, and one line was said for each peer.
    fn ended(mut self, failed: usize) {
        self.client.asked("check");
        self.client.end();
        let ended = self.daemon.stop();
        assert_eq!(ended.exit, Some(i32::from(failed > 0)), "{ended:#?}");
        assert_eq!(ended.with("WARN").len(), self.refused, "{ended:#?}");
        assert_eq!(ended.with("ERROR").len(), failed, "{ended:#?}");
        let counts = format!("refused {}, failed {failed}", self.refused);
        assert!(ended.last().ends_with(&counts), "{ended:#?}");
    }
}

fn uffd() -> OwnedFd {
    userfaultfd(REMOVE).unwrap()
}

#[test]
fn messages_that_are_none() {
    let mut served = Served::new(&[]);
    let fd = uffd();
    let long = [" ".repeat(1 << 20), message(&[(1 << 30, PAGE, 0)])].concat();
    let many = vec![(1 << 30, PAGE, 0); 5000];
    let nested = "[".repeat(100_000);
    for (bytes, why) in [
        (&b"hello"[..], "no list of regions"),
        (b"\xff\xfe\x00\x1b[31m\n", "no list of regions"),
        (b"{\"regions\": 7}", "no list of regions"),
        (b"[{\"base_host_virt_addr\": -1, \"size\": 4096, \"offset\": 0}]", "no list of regions"),
        (
            b"[{\"base_host_virt_addr\": 1e300, \"size\": 4096, \"offset\": 0}]",
            "no list of regions",
        ),
        (b"[{\"size\": 4096, \"offset\": 0}]", "no list of regions"),
        (b"[]", "has no region"),
        (message(&many).as_bytes(), "more than 4096 regions"),
    ] {
        let peer = served.connect();
        send(&peer, bytes, &[fd.as_fd()]);
        served.refuses(peer, why);
    }
    for (text, why) in [(long, "longer than 1048576 bytes"), (nested, "closed the connection")] {
        let mut peer = served.connect();
        // It is refused meanwhile.
        let _ = peer.write_all(text.as_bytes());
        peer.shutdown(Shutdown::Write).unwrap();
        served.refuses(peer, why);
    }
    // One that never ends.
    let mut peer = served.connect();
    peer.write_all(b"[").unwrap();
    while peer.write_all(&[b' '; 4096]).is_ok() {}
    served.refuses(peer, "longer than 1048576 bytes");
    served.ended(0);
}

#[test]
fn descriptors_that_are_none() {
    let mut served = Served::new(&[]);
    let (fd, null) = (uffd(), File::open("/dev/null").unwrap());
    let good = message(&[(1 << 30, PAGE, 0)]);
    let (fd, null): (BorrowedFd<'_>, BorrowedFd<'_>) = (fd.as_fd(), null.as_fd());
    for (descriptors, why) in [
        (&[][..], "sent no userfaultfd"),
        (&[fd, fd, fd], "more than 2 descriptors"),
        (&[null], "/dev/null"),
        (&[null, null], "/dev/null"),
        (&[fd, fd], "two userfaultfds"),
    ] {
        let peer = served.connect();
        send(&peer, good.as_bytes(), descriptors);
        peer.shutdown(Shutdown::Write).unwrap();
        served.refuses(peer, why);
    }
    // SAFETY: opens a descriptor.
    let raw =
        unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_NONBLOCK | libc::O_CLOEXEC | 1) };
    // SAFETY: it is new.
    let not_set_up: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(raw as i32) };
    let peer = served.connect();
    send(&peer, good.as_bytes(), &[not_set_up.as_fd()]);
    served.refuses(peer, "has not been set up");
    served.ended(0);
}

#[test]
fn regions_that_are_none() {
    let mut served = Served::new(&[]);
    let fd = uffd();
    let at = 1 << 30;
    for (regions, why) in [
        (&[(at, 2 * PAGE, 0), (at + PAGE, PAGE, 0)][..], "overlap"),
        (&[(at, PAGE, 0), (at, PAGE, 0)], "overlap"),
        (&[(usize::MAX - PAGE + 1, PAGE, 0)], "beyond the last address"),
        (&[(usize::MAX - 2 * PAGE + 1, 4 * PAGE, 0)], "beyond the last address"),
        (&[(at + 1, PAGE, 0)], "not whole pages"),
        (&[(at, PAGE + 1, 0)], "not whole pages"),
        (&[(at, 0, 0)], "is empty"),
        (&[(at, PAGE, 1)], "within a page"),
        (&[(at, (PAGES + 1) * PAGE, 0)], "of the source, which has"),
        (&[(at, PAGE, PAGES * PAGE)], "of the source, which has"),
        (&[(at, PAGE, usize::MAX - PAGE + 1)], "of the source, which has"),
    ] {
        let peer = served.connect();
        send(&peer, message(regions).as_bytes(), &[fd.as_fd()]);
        served.refuses(peer, why);
    }
    served.ended(0);
}

/// Its regions are fine, and nothing of the kind is there.
#[test]
fn regions_of_memory_that_is_not_there() {
    let mut served = Served::new(&["--on-stop", "fail"]);
    let (fd, peer) = (uffd(), served.connect());
    let far = 0x7FFF_FFFF_0000;
    let regions = [(PAGE, PAGE, 0), (1 << 30, 4 * PAGE, 0), (far, 64 * PAGE, 0)];
    send(&peer, message(&regions).as_bytes(), &[fd.as_fd()]);
    served.daemon.wait_for("a client has come");
    served.goes_on();
    served.client.asked("check");
    let ended = served.daemon.stop();
    assert_eq!(ended.exit, Some(0), "{ended:#?}");
}

#[test]
fn peers_that_say_nothing() {
    let mut served = Served::new(&["--handshake-timeout", "20"]);
    let mut silent: Vec<UnixStream> = Vec::new();
    for _ in 0..300 {
        silent.push(served.connect());
    }
    for (number, peer) in silent.drain(..44).enumerate() {
        served.refuses(peer, "too many peers have not said what they want");
        assert!(number < PAGES);
    }
    // They are in nobody's way.
    let mut another = served.place.client(Has::pages(PAGES, REMOVE));
    served.refuses(silent.remove(0), "too many peers");
    another.asked("check");
    another.end();
    drop(silent);
    for _ in 0..255 {
        served.daemon.wait_for("has closed the connection");
        served.refused += 1;
    }
    served.ended(0);
}

#[test]
fn a_peer_that_takes_too_long() {
    let mut served = Served::new(&["--handshake-timeout", "1"]);
    let mut peer = served.connect();
    peer.write_all(b"[{\"size\": ").unwrap();
    served.refuses(peer, "not complete after 1s");
    served.ended(0);
}

/// A worker would wait for it, and serve nobody.
#[test]
fn userfaultfds_that_block() {
    let mut served = Served::new(&["--workers", "2", "--on-stop", "fail"]);
    let peers: Vec<_> = (0..4)
        .map(|number| {
            let fd = uffd();
            let memory = Memory::map(PAGE, Kind::Anonymous).unwrap().register(&fd);
            let block = || {
                let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
                rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK).unwrap();
            };
            if number % 2 == 0 {
                block();
            }
            let peer = served.connect();
            send(&peer, message(&[(memory.start, PAGE, 0)]).as_bytes(), &[fd.as_fd()]);
            served.daemon.wait_for("a client has come");
            block();
            // It has something to tell.
            memory.discard();
            served.goes_on();
            assert_eq!(memory.byte(7), 0, "it was discarded");
            (peer, memory, fd)
        })
        .collect();
    served.client.asked("check");
    served.client.end();
    for (_, memory, _) in &peers {
        memory.unmap();
    }
    assert_eq!(served.daemon.stop().exit, Some(0));
}

#[test]
fn a_memory_file_that_is_shortened() {
    let mut served = Served::new(&[]);
    served.client.asked("check 0 20");
    let file = File::options().write(true).open(&served.place.file).unwrap();
    // Within a page: what is gone of it may not read as zeros.
    file.set_len(32 * PAGE as u64 + 100).unwrap();
    // That is looked at once a millisecond.
    std::thread::sleep(std::time::Duration::from_millis(2));
    for page in [32, 33, PAGES - 1] {
        assert_eq!(served.client.ask(&format!("touch {page}")), "SIGBUS", "{page}");
    }
    served.client.asked("check 0 32");
    // It is not lost for others.
    let mut other = served.place.client(Has::pages(8, REMOVE));
    other.asked("check");
    drop((served.client, other));
    let ended = served.daemon.stop();
    assert_eq!(ended.with("cannot be read").len(), 3, "{ended:#?}");
}

#[test]
fn the_daemon_takes_all_descriptors_that_it_may_have() {
    let place = Place::new(1);
    let served = place.command(["--on-stop", "fail"]);
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", r#"ulimit -S -n 40; exec "$0" "$@""#]);
    command.arg(served.get_program()).args(served.get_args());
    let daemon = Daemon::start(command);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let [.., soft, hard, _] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{line}")
    };
    assert_eq!(soft, hard);
}

/// There are more clients than the daemon has descriptors for: who comes then is refused or waits,
/// and neither the daemon nor its log is kept busy by that.
#[test]
fn more_clients_than_descriptors() {
    let mut have_waited = 0;
    // A client takes three: they end with any of these.
    for limit in 39..42 {
        let place = Place::new(PAGES);
        let served = place.command(["--workers", "2", "--on-stop", "fail"]);
        let mut command = std::process::Command::new("/bin/sh");
        let script = format!(r#"ulimit -n {limit}; exec "$0" "$@""#);
        command.args(["-c", &script]).arg(served.get_program()).args(served.get_args());
        let mut daemon = Daemon::start(command);
        let has = Has::pages(PAGES, REMOVE);
        let mut first = place.client(has);
        daemon.wait_for("a client has come");
        let others: Vec<_> =
            (0..14).map(|_| Client::connect(&place.socket, &place.file, has)).collect();
        daemon.wait_for("WARN");
        first.asked("check");
        drop(others);
        daemon.wait_for("a client has gone");
        let mut another = place.client(has);
        another.asked("check");
        first.end();
        let ended = daemon.stop();
        have_waited += ended.with("a peer cannot be accepted").len();
        assert!(ended.with("WARN").len() < 200, "{} lines", ended.with("WARN").len());
    }
    assert!(have_waited > 0);
}
