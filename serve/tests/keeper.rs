//! The serving process dies at each of its steps in turn, or of a client: what is noted is enough
//! for the next one, and who is deadly is served no more.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/child.rs"]
mod child;
mod common;

use std::io::{BufRead, BufReader, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{
    FORK, Kind, Memory, PAGE, REMAP, REMOVE, UNMAP, alone, in_child, random_bytes, userfaultfd,
};
use pervma_pager::{ReadFailed, Source};
use pervma_serve::{Keeper, Limits, Listen, OnStop, Options, Server, steps};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process};

const PAGES: usize = 64;
const GRANULE: usize = 4 * PAGE;
const SEED: u64 = 5;
const DAEMON: &str = "PERVMA_KEEPER_DAEMON";

/// Who reads a page dies, if its first byte says so.
struct Deadly(Vec<u8>);

const ABORTS: u8 = 201;
const FAULTS: u8 = 202;
const EXITS: u8 = 203;

impl Source for Deadly {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let bytes = &self.0[offset as usize..][..buf.len()];
        match bytes[0] {
            ABORTS => std::process::abort(),
            FAULTS => {
                let nowhere: *const u8 = std::ptr::without_provenance(8);
                // SAFETY: there is none: it ends this process, which is what is tested.
                buf[0] = unsafe { nowhere.read_volatile() };
            }
            EXITS => std::process::exit(7),
            _ => buf.copy_from_slice(bytes),
        }
        Ok(())
    }

    fn resident(&self, _: Range<u64>) -> Option<*const [u8]> {
        None
    }
}

fn bytes() -> Vec<u8> {
    let mut bytes = random_bytes(PAGES * PAGE, SEED);
    for page in bytes.chunks_mut(PAGE) {
        page[0] %= 200;
    }
    bytes
}

/// Plays the daemon, if this is its process. Its first processes die after so many steps each, as
/// its command says.
fn play(bytes: &[u8]) -> bool {
    let Ok(daemon) = std::env::var(DAEMON) else { return false };
    let mut words = daemon.split(' ');
    let socket = words.next().unwrap().to_owned();
    let workers: usize = words.next().unwrap().parse().unwrap();
    let deaths: Vec<u64> = words.map(|steps| steps.parse().unwrap()).collect();
    let serve = || {
        let options = Options::new().workers(workers).granule(GRANULE);
        let keeper = Keeper::new(&options).unwrap();
        let listen = Listen::at(Path::new(&socket), Arc::new(Deadly(bytes.to_vec()))).unwrap();
        let server = Server::new(vec![listen], options, Limits::default()).on_stop(OnStop::Fail);
        let code = keeper.run(|kept| {
            let before = kept.before();
            println!("serves {before} {}", std::process::id());
            steps::die_after(deaths.get(before as usize).copied().unwrap_or(0));
            let ended = server.run_kept(kept, std::io::stdin().as_fd(), || Ok(()), |_, _| ());
            let ended = ended.unwrap();
            println!("failed {}", ended.failed);
            0
        });
        assert_eq!(code.unwrap(), 0);
    };
    let status = child::with_one_thread(serve, |_| ());
    assert!(status.success(), "{status}");
    true
}

/// A daemon, as its test sees it.
struct Daemon {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    socket: std::path::PathBuf,
    /// The last serving process that is known, and its number.
    serving: (u64, Pid),
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(test: &str, workers: usize, deaths: &[u64]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let deaths: Vec<_> = deaths.iter().map(u64::to_string).collect();
        let daemon = format!("{} {workers} {}", socket.display(), deaths.join(" "));
        let mut child = child::command(test, "daemon")
            .env(DAEMON, daemon.trim_end())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let serving = (0, rustix::process::getpid());
        let mut daemon = Self { child, lines, socket, serving, _folder: folder };
        daemon.next();
        daemon
    }

    /// Waits until the next process serves.
    fn next(&mut self) {
        let mut lines = self.lines.by_ref().map(Result::unwrap);
        let line = lines.find(|line| line.contains("serves ")).unwrap();
        self.serving = Self::serving(&line).unwrap();
    }

    fn serving(line: &str) -> Option<(u64, Pid)> {
        let (before, process) = line.split_once("serves ")?.1.split_once(' ')?;
        Some((before.parse().ok()?, Pid::from_raw(process.parse().ok()?)?))
    }

    /// A client with all of the daemon's pages.
    fn client(&self) -> (Memory, UnixStream) {
        let features = REMAP | REMOVE | UNMAP;
        let fd = userfaultfd(features | FORK).or_else(|| userfaultfd(features)).unwrap();
        let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap().register(&fd);
        let connection = UnixStream::connect(&self.socket).unwrap();
        let message = format!(
            r#"[{{"base_host_virt_addr":{},"size":{},"offset":0,"page_size":4096}}]"#,
            memory.start, memory.len
        );
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        let descriptors = [fd.as_fd()];
        assert!(with.push(SendAncillaryMessage::ScmRights(&descriptors)));
        // In two parts, of which one has the descriptor.
        let (first, second) = message.as_bytes().split_at(10);
        sendmsg(&connection, &[IoSlice::new(first)], &mut with, SendFlags::empty()).unwrap();
        rustix::net::send(&connection, second, SendFlags::empty()).unwrap();
        (memory, connection)
    }

    /// Tells it to stop, and returns how many processes there were, and how many clients failed.
    fn end(mut self) -> (u64, u64) {
        drop(self.child.stdin.take());
        let mut failed = 0;
        for line in self.lines.by_ref().map(Result::unwrap) {
            if let Some(serving) = Self::serving(&line) {
                self.serving = serving;
            } else if let Some((_, count)) = line.split_once("failed ") {
                failed = count.parse().unwrap();
            }
        }
        assert!(self.child.wait().unwrap().success());
        (self.serving.0 + 1, failed)
    }
}

/// All that clients do, once, with every byte compared.
fn use_all(memory: Memory, bytes: &[u8], may_fork: bool) {
    let mut expected: Vec<Option<Vec<u8>>> =
        bytes.chunks(PAGE).map(|page| Some(page.to_vec())).collect();
    let check = |memory: Memory, page: usize, expected: &Option<Vec<u8>>| {
        if let Some(expected) = expected {
            assert!(memory.page(page).copy() == *expected, "page {page}");
        }
    };
    check(memory, 0, &expected[0]);
    memory.pages(2..6).discard();
    memory.pages(20..22).discard();
    for page in [2, 3, 4, 5, 20, 21] {
        expected[page] = Some(vec![0; PAGE]);
    }
    check(memory, 3, &expected[3]);
    if may_fork {
        let is_right = || {
            [1, 5, 20, 30].iter().all(|&page| {
                let expected = expected[page].as_ref().unwrap();
                (0..PAGE).step_by(512).all(|at| memory.page(page).byte(at) == expected[at])
            })
        };
        assert_eq!(in_child(|| i32::from(!is_right())), 0, "in a child");
    }
    // A part moves away, and what was there is unmapped.
    let place = Memory::map(8 * PAGE, Kind::Anonymous).unwrap();
    let moved = memory.pages(40..48).relocate(place.start, 0);
    check(moved, 0, &expected[40]);
    moved.pages(2..3).discard();
    assert_eq!(moved.byte(2 * PAGE), 0);
    for (page, expected) in expected[40..48].iter().enumerate().filter(|(page, _)| *page != 2) {
        check(moved, page, expected);
    }
    memory.pages(50..52).unmap();
    for page in (40..48).chain(50..52) {
        expected[page] = None;
    }
    expected.iter().enumerate().for_each(|(page, expected)| check(memory, page, expected));
}

#[test]
fn it_dies_at_each_step_in_turn() {
    const NAME: &str = "it_dies_at_each_step_in_turn";
    let bytes = bytes();
    if play(&bytes) {
        return;
    }
    let _alone = common::alone_for(Duration::from_secs(600));
    let may_fork = userfaultfd(FORK).is_some();
    if !may_fork {
        println!("NOT RUN: forks, which take privileges");
    }
    let mut most = 0;
    for workers in [1, 3] {
        for first in 1.. {
            // The second one dies in what it has to take over, or a little later.
            let daemon = Daemon::start(NAME, workers, &[first, first % 13 + 1]);
            let (memory, _connection) = daemon.client();
            use_all(memory, &bytes, may_fork);
            let (processes, failed) = daemon.end();
            assert_eq!(failed, 0, "{first}");
            if processes == 1 {
                most = most.max(first);
                break;
            }
        }
    }
    assert!(most > 50, "{most} steps");
    println!("{most} steps");
}

/// A page of which a first byte says how its reader dies, and another client's memory beside it.
fn dies_of_a_client(test: &str, how: u8) {
    let mut bytes = bytes();
    // A granule that is read alone.
    let page = 32;
    bytes[page * PAGE] = how;
    if play(&bytes) {
        return;
    }
    let _alone = alone();
    if userfaultfd(FORK).is_none() {
        return println!("NOT RUN: forks, which take privileges");
    }
    let mut daemon = Daemon::start(test, 2, &[]);
    let (other, _other) = daemon.client();
    let (memory, _connection) = daemon.client();
    assert_eq!(other.byte(0), bytes[0]);
    std::thread::scope(|scope| {
        // A child, which is a client too: it dies of the signal that this one lives on after.
        let touch = scope.spawn(|| in_child(|| i32::from(memory.byte(page * PAGE))));
        for _ in 0..3 {
            daemon.next();
            // Others are served meanwhile; a client that is not in hand is not to blame.
            assert!(other.pages(0..8).copy() == bytes[..8 * PAGE]);
        }
        assert_eq!(touch.join().unwrap(), -libc::SIGBUS);
        assert!(other.pages(40..64).copy() == bytes[40 * PAGE..]);
    });
    let (processes, failed) = daemon.end();
    assert_eq!((processes, failed), (4, 1));
}

#[test]
fn a_client_whose_source_aborts_is_set_apart() {
    dies_of_a_client("a_client_whose_source_aborts_is_set_apart", ABORTS);
}

#[test]
fn a_client_whose_source_faults_is_set_apart() {
    dies_of_a_client("a_client_whose_source_faults_is_set_apart", FAULTS);
}

#[test]
fn a_client_whose_source_exits_is_set_apart() {
    dies_of_a_client("a_client_whose_source_exits_is_set_apart", EXITS);
}

#[test]
fn signals_of_others_are_held_against_no_client() {
    let bytes = bytes();
    if play(&bytes) {
        return;
    }
    let _alone = alone();
    let mut daemon = Daemon::start("signals_of_others_are_held_against_no_client", 2, &[]);
    let (memory, _connection) = daemon.client();
    for turn in 0..8 {
        assert_eq!(memory.byte(turn * PAGE), bytes[turn * PAGE]);
        let signal = [Signal::KILL, Signal::SEGV, Signal::ABORT, Signal::BUS][turn % 4];
        kill_process(daemon.serving.1, signal).unwrap();
        daemon.next();
    }
    assert!(memory.copy() == bytes);
    assert_eq!(daemon.end(), (9, 0));
}
