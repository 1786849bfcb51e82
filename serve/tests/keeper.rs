//! The serving process dies at each of its steps in turn, or of a client: what is noted is enough
//! for the next one, and who is deadly is served no more.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/child.rs"]
mod child;
mod common;

use std::io::{BufRead, BufReader, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use common::{
    FORK, Kind, Memory, PAGE, REMAP, REMOVE, UNMAP, alone, in_child, random_bytes, userfaultfd,
};
use pervma_pager::{ReadFailed, Source};
use pervma_serve::exec_helper::ExecHelper;
use pervma_serve::{
    Ended, FailedClient, Keeper, Limits, Listen, OnFailure, OnStop, Options, Server, Tell, steps,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process};

const PAGES: usize = 64;
const GRANULE: usize = 4 * PAGE;
const SEED: u64 = 5;
const DAEMON: &str = "PERVMA_KEEPER_DAEMON";
/// A file in which it is told of clients that have failed.
const TOLD: &str = "PERVMA_KEEPER_TOLD";
/// Set if no user is served.
const NOBODY: &str = "PERVMA_KEEPER_NOBODY";
const CLIENT: &str = "PERVMA_KEEPER_CLIENT";

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
        let helper = std::env::var_os(TOLD).map(|file| {
            let script = r#"echo "$2 $3" >> "$1""#.into();
            let command = ["/bin/sh".into(), "-c".into(), script, "script".into(), file];
            ExecHelper::start(&command).unwrap()
        });
        let keeper = Keeper::new(&options).unwrap();
        let listen = Listen::at(Path::new(&socket), Arc::new(Deadly(bytes.to_vec()))).unwrap();
        let mut server =
            Server::new(vec![listen], options, Limits::default()).on_stop(OnStop::Fail);
        if std::env::var_os(NOBODY).is_some() {
            server = server.only_users(Vec::new());
        }
        let code = keeper.run(|kept| {
            let before = kept.before();
            println!("serves {before} {}", std::process::id());
            steps::die_after(deaths.get(before as usize).copied().unwrap_or(0));
            let (tell, teller) = helper.map(teller).unzip();
            if let Some(tell) = tell {
                server = server.on_failure(OnFailure::Tell(tell));
            }
            let ended = server.run_kept(kept, std::io::stdin().as_fd(), || Ok(()), |_, _| ());
            let ended = ended.unwrap();
            if let Some(teller) = teller {
                teller.join().unwrap();
            }
            let Ended { clients, refused, failed, .. } = ended;
            println!("ended {clients} {refused} {failed}");
            0
        });
        assert_eq!(code.unwrap(), 0);
    };
    let status = child::with_one_thread(serve, |_| ());
    assert!(status.success(), "{status}");
    true
}

/// Tells of clients that have failed as `pervma serve` does.
fn teller(helper: ExecHelper) -> (Box<Tell>, JoinHandle<()>) {
    let (send, failures) = channel::<FailedClient>();
    let teller = std::thread::spawn(move || {
        for failed in failures {
            let (id, pid) = (failed.id().number(), failed.peer().pid);
            helper.run(id, pid, &failed.failure().to_string()).unwrap();
            failed.note_told();
        }
    });
    (Box::new(move |failed| send.send(failed).unwrap()), teller)
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
        Self::with(tempfile::tempdir().unwrap(), test, workers, deaths, None)
    }

    fn with(
        folder: tempfile::TempDir,
        test: &str,
        workers: usize,
        deaths: &[u64],
        more: Option<(&str, PathBuf)>,
    ) -> Self {
        let socket = folder.path().join("socket");
        let deaths: Vec<_> = deaths.iter().map(u64::to_string).collect();
        let daemon = format!("{} {workers} {}", socket.display(), deaths.join(" "));
        let mut command = child::command(test, "daemon");
        let mut child = command
            .envs(more)
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
        connect(&self.socket, PAGES)
    }

    /// Tells it to stop, and returns how many processes there were, and what they have counted: how
    /// many clients came, were refused, and have failed.
    fn end(self) -> (u64, [u64; 3]) {
        self.end_with(|| ()).1
    }

    /// As [`end`](Self::end), and what is there then.
    fn end_with<T>(mut self, look: impl FnOnce() -> T) -> (T, (u64, [u64; 3])) {
        drop(self.child.stdin.take());
        let mut counted = None;
        for line in self.lines.by_ref().map(Result::unwrap) {
            if let Some(serving) = Self::serving(&line) {
                self.serving = serving;
            } else if let Some((_, counts)) = line.split_once("ended ") {
                let counts: Vec<_> =
                    counts.split(' ').map(|count| count.parse().unwrap()).collect();
                counted = Some(counts.try_into().unwrap());
            }
        }
        assert!(self.child.wait().unwrap().success());
        (look(), (self.serving.0 + 1, counted.unwrap()))
    }
}

/// A client that tells of so many of its pages.
fn connect(socket: &Path, told: usize) -> (Memory, UnixStream) {
    let (memory, connection, rest) = connect_in_part(socket, told);
    rustix::net::send(&connection, &rest, SendFlags::empty()).unwrap();
    (memory, connection)
}

/// A client that has sent its descriptor and a part of what it tells, and the rest of that.
fn connect_in_part(socket: &Path, told: usize) -> (Memory, UnixStream, Vec<u8>) {
    let features = REMAP | REMOVE | UNMAP;
    let fd = userfaultfd(features | FORK).or_else(|| userfaultfd(features)).unwrap();
    let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap().register(&fd);
    let connection = UnixStream::connect(socket).unwrap();
    let message = format!(
        r#"[{{"base_host_virt_addr":{},"size":{},"offset":0,"page_size":4096}}]"#,
        memory.start,
        told * PAGE
    );
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    let descriptors = [fd.as_fd()];
    assert!(with.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let (first, second) = message.as_bytes().split_at(10);
    sendmsg(&connection, &[IoSlice::new(first)], &mut with, SendFlags::empty()).unwrap();
    (memory, connection, second.to_vec())
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
            let (processes, counted) = daemon.end();
            assert_eq!(counted, [1, 0, 0], "{first}");
            if processes == 1 {
                most = most.max(first);
                break;
            }
        }
    }
    assert!(most > 50, "{most} steps");
    println!("{most} steps");
}

#[test]
fn of_a_client_that_fails_is_told_once_whenever_processes_die() {
    const NAME: &str = "of_a_client_that_fails_is_told_once_whenever_processes_die";
    let bytes = bytes();
    if let Some(socket) = std::env::var_os(CLIENT) {
        // It has not told of the page that it touches, and dies.
        let (memory, _connection) = connect(Path::new(&socket), PAGES - 1);
        memory.byte(0);
        memory.byte((PAGES - 1) * PAGE);
        return;
    }
    if play(&bytes) {
        return;
    }
    let _alone = alone();
    for first in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let daemon =
            Daemon::with(folder, NAME, 1, &[first, first % 7 + 1], Some((TOLD, told.clone())));
        let mut client =
            child::command(NAME, "client").env(CLIENT, &daemon.socket).spawn().unwrap();
        let pid = client.id();
        let status = client.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{first} {status}");
        // It has gone by now.
        while !told.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (text, (processes, counted)) =
            daemon.end_with(|| std::fs::read_to_string(&told).unwrap());
        let mut lines = text.lines();
        let line = lines.next().unwrap();
        assert!(line.starts_with(&format!("{pid} a fault at ")), "{first}: {line}");
        assert_eq!((lines.next(), counted), (None, [1, 0, 1]), "{first}");
        if processes == 1 {
            assert!(first > 10, "{first} steps");
            break;
        }
    }
}

#[test]
fn a_peer_that_is_refused_is_counted_once_whenever_processes_die() {
    const NAME: &str = "a_peer_that_is_refused_is_counted_once_whenever_processes_die";
    let bytes = bytes();
    if let Some(socket) = std::env::var_os(CLIENT) {
        let (memory, connection, _) = connect_in_part(Path::new(&socket), PAGES);
        rustix::net::send(&connection, b"\"}]", SendFlags::empty()).unwrap();
        memory.byte(0);
        return;
    }
    if play(&bytes) {
        return;
    }
    let _alone = alone();
    for first in 1.. {
        let daemon = Daemon::start(NAME, 1, &[first, first % 7 + 1]);
        let mut peer = child::command(NAME, "client").env(CLIENT, &daemon.socket).spawn().unwrap();
        assert_eq!(peer.wait().unwrap().signal(), Some(libc::SIGBUS), "{first}");
        let (processes, counted) = daemon.end();
        assert_eq!(counted, [0, 1, 0], "{first}");
        if processes == 1 {
            assert!(first > 10, "{first} steps");
            break;
        }
    }
}

#[test]
fn a_peer_of_another_user_is_served_by_no_process() {
    const NAME: &str = "a_peer_of_another_user_is_served_by_no_process";
    let bytes = bytes();
    if let Some(socket) = std::env::var_os(CLIENT) {
        let (memory, _connection) = connect(Path::new(&socket), PAGES);
        memory.byte(0);
        return;
    }
    if play(&bytes) {
        return;
    }
    let _alone = alone();
    for first in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::with(folder, NAME, 1, &[first], Some((NOBODY, PathBuf::new())));
        let mut peer = child::command(NAME, "client").env(CLIENT, &daemon.socket).spawn().unwrap();
        // Its connection may be closed before it has sent anything.
        let _ = peer.wait().unwrap();
        let (processes, counted) = daemon.end();
        assert_eq!(counted, [0, 1, 0], "{first}");
        if processes == 1 {
            assert!(first > 1, "{first} steps");
            break;
        }
    }
}

#[test]
fn a_peer_whose_message_is_damaged_reads_no_zeros() {
    const NAME: &str = "a_peer_whose_message_is_damaged_reads_no_zeros";
    // Of an inbox: the version; how much has come; how many descriptors have.
    const WORDS: [u64; 3] = [0, 1, 3];
    let bytes = bytes();
    if let Some(socket) = std::env::var_os(CLIENT) {
        let (memory, _connection, _) = connect_in_part(Path::new(&socket), PAGES);
        memory.byte(0);
        return;
    }
    if play(&bytes) {
        return;
    }
    let _alone = alone();
    for word in WORDS {
        let mut daemon = Daemon::start(NAME, 1, &[]);
        let mut peer = child::command(NAME, "client").env(CLIENT, &daemon.socket).spawn().unwrap();
        let open = |kind: &str| -> Vec<PathBuf> {
            let all = std::fs::read_dir(format!("/proc/{}/fd", daemon.serving.1)).unwrap();
            let paths = all.map(|entry| entry.unwrap().path());
            let is_it = |path: &PathBuf| {
                std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains(kind))
            };
            paths.filter(is_it).collect()
        };
        while open("userfaultfd").is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // The table has more.
        let mut inboxes = open("pervma-state");
        inboxes.retain(|path| std::fs::metadata(path).is_ok_and(|about| about.len() < 16 << 20));
        assert!(!inboxes.is_empty());
        for inbox in inboxes {
            let file = std::fs::File::options().write(true).open(inbox).unwrap();
            file.write_all_at(&[0xEE; 4], word * 8).unwrap();
        }
        kill_process(daemon.serving.1, Signal::KILL).unwrap();
        daemon.next();
        assert_eq!(peer.wait().unwrap().signal(), Some(libc::SIGBUS), "word {word}");
        daemon.end();
    }
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
    assert_eq!(daemon.end(), (4, [2, 0, 1]));
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
    assert_eq!(daemon.end(), (9, [1, 0, 0]));
}
