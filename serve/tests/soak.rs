//! Several processes at a time that discard, write, move, unmap and fork what is served to them, or
//! die in the middle of it. Each compares every byte that it reads with what belongs there.
//!
//! Half of them have memory of their own and fork, half have shared memory. The source has some of
//! its pages at hand, is slow with others, and fails now and then. Or they are tasks that
//! are restored: then all that they miss is filled meanwhile, and they make memory longer.
//!
//! Or the serving process dies again and again, at any time or at one of its steps, and another
//! program takes over each second.
//!
//! `PERVMA_SOAK_SECONDS` is how long; 5 without it. `PERVMA_SOAK_CLIENTS` is how many at a time,
//! and `PERVMA_SOAK_DEATHS` how many milliseconds a serving process lives, on average; 4, and 30.
//! What it does not do: huge pages, and sources that fail for good, which have tests of their own
//! (`clients.rs`); processes that die of a client (`keeper.rs`); children that share memory, since
//! what one process removes there is not told of another. A child looks at what its own thread had:
//! what another thread has moved at that time may be told in the wrong order. docs/serve.md has
//! both.
#![expect(clippy::disallowed_types, reason = "flags of tests")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/child.rs"]
mod child;
mod common;
#[path = "common/images.rs"]
mod images;

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{
    FORK, Kind, Memory, PAGE, REMAP, REMOVE, UNMAP, alone_for, random_bytes, userfaultfd,
};
use pervma_pager::{ReadFailed, Source};
use pervma_serve::images::Images;
use pervma_serve::{
    Keeper, Kept, Limits, Listen, OnStop, Options, Restores, Server, TakeOverSocket, TakenOver,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Of a client.
const PAGES: usize = 512;
const GRANULE: usize = 4 * PAGE;
/// Pages by which memory becomes longer.
const GROWTH: usize = 3;
/// A thread has these pages for itself, one behind the other, and others only look.
const THREADS: usize = 3;
const CLIENT: &str = "PERVMA_SOAK_CLIENT";
const DAEMON: &str = "PERVMA_SOAK_DAEMON";
const SEED: u64 = 17;
const SOCKET: &str = "socket";
const TAKE_OVER: &str = "take-over";

/// How clients arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    Firecracker,
    Criu,
}

/// What a page is to its thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Of the file, or zeros, or written.
    Byte(u8),
    Unmapped,
}

/// Has every third granule at hand, is slow with another third, and fails every eleventh read, but
/// not twice in a row from one place.
struct Moody {
    bytes: Vec<u8>,
    reads: AtomicUsize,
    /// Of each page, whether the last read from there has failed.
    has_failed: Vec<AtomicBool>,
}

impl Moody {
    fn of(bytes: Vec<u8>) -> Self {
        let has_failed = std::iter::repeat_with(AtomicBool::default).take(PAGES).collect();
        Self { bytes, reads: AtomicUsize::new(0), has_failed }
    }
}

impl Source for Moody {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let number = self.reads.fetch_add(1, Relaxed);
        let offset = offset as usize;
        let fails = number % 11 == 10;
        if !self.has_failed[offset / PAGE].swap(fails, Relaxed) && fails {
            return Err(ReadFailed);
        }
        if offset / GRANULE % 3 == 1 {
            std::thread::sleep(Duration::from_micros((number % 5) as u64 * 500));
        }
        buf.copy_from_slice(&self.bytes[offset..][..buf.len()]);
        Ok(())
    }

    fn resident(&self, range: Range<u64>) -> Option<*const [u8]> {
        let (start, end) = (range.start as usize, range.end as usize);
        let is_at_hand = (start / GRANULE..end.div_ceil(GRANULE)).all(|granule| granule % 3 == 0);
        is_at_hand.then(|| &raw const self.bytes[start..end])
    }
}

/// A thread's part of a client's memory.
struct Part {
    /// Where it is now.
    memory: Memory,
    /// Where it can move.
    place: Memory,
    states: Vec<State>,
    /// What makes its pages zeros.
    removal: i32,
    protocol: Protocol,
}

impl Part {
    fn check(&self, page: usize) {
        if let State::Byte(byte) = self.states[page] {
            let found = self.memory.byte(page * PAGE);
            assert_eq!(found, byte, "page {page} of {:x}", self.memory.start);
        }
    }

    fn step(&mut self, random: &mut StdRng, may_fork: bool) {
        let count = self.states.len();
        let page = random.random_range(0..count);
        let end = (page + random.random_range(1..=4)).min(count);
        let is_mapped = self.states[page..end].iter().all(|state| *state != State::Unmapped);
        match random.random_range(0..100) {
            0..55 => self.check(page),
            55..75 if is_mapped => {
                let byte = random.random();
                self.memory.set(page * PAGE, byte);
                self.states[page] = State::Byte(byte);
            }
            75..92 if is_mapped => {
                self.memory.pages(page..end).advise(self.removal);
                self.states[page..end].fill(State::Byte(0));
                (page..end).for_each(|page| self.check(page));
            }
            92..94 if self.states.iter().all(|state| *state != State::Unmapped) => {
                let grows = self.protocol == Protocol::Criu && count < 2 * PAGES / THREADS;
                self.memory = self.memory.relocate(self.place.start, 0);
                if grows {
                    // Memory that it has not told of.
                    self.memory = self.memory.lengthen(GROWTH * PAGE);
                    self.states.extend([State::Byte(0); GROWTH]);
                }
                self.place = Memory::map(self.memory.len, Kind::Anonymous).unwrap();
            }
            // Not twice: at its address another thread may have something by now.
            94 if self.states[page] != State::Unmapped && random.random_range(0..40) == 0 => {
                self.memory.page(page).unmap();
                self.states[page] = State::Unmapped;
            }
            95 if may_fork => {
                let wrong = common::in_child(|| {
                    let is_right = |page: &usize| match self.states[*page] {
                        State::Byte(byte) => self.memory.byte(page * PAGE) == byte,
                        State::Unmapped => true,
                    };
                    let all = (0..count).all(|page| is_right(&page));
                    if let Some(page) = (0..count).find(|&page| self.states[page] == State::Byte(0))
                    {
                        self.memory.page(page).advise(self.removal);
                        return i32::from(!all || self.memory.byte(page * PAGE) != 0);
                    }
                    i32::from(!all)
                });
                assert_eq!(wrong, 0, "in a child");
            }
            _ => {}
        }
    }
}

/// A client: connects, and does random things for so long.
fn client(protocol: Protocol, socket: &Path, seed: u64, time: Duration) {
    let events = userfaultfd(FORK | REMAP | REMOVE | UNMAP);
    let is_private = protocol == Protocol::Criu || seed.is_multiple_of(2);
    let may_fork = events.is_some() && is_private;
    let fd = events.or_else(|| userfaultfd(REMAP | REMOVE | UNMAP)).unwrap();
    let (kind, removal) = if is_private {
        (Kind::Anonymous, libc::MADV_DONTNEED)
    } else {
        (Kind::Shared, libc::MADV_REMOVE)
    };
    let memory = match protocol {
        Protocol::Firecracker => Memory::map(PAGES * PAGE, kind).unwrap(),
        Protocol::Criu => Memory::map_at(images::START, PAGES * PAGE),
    };
    let memory = memory.register(&fd);
    let connection = UnixStream::connect(socket).unwrap();
    let send = |bytes: &[u8], descriptors: &[BorrowedFd<'_>]| {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(with.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        sendmsg(&connection, &[IoSlice::new(bytes)], &mut with, SendFlags::empty()).unwrap();
    };
    match protocol {
        Protocol::Firecracker => {
            let message = format!(
                r#"[{{"base_host_virt_addr":{},"size":{},"offset":0,"page_size":4096}}]"#,
                memory.start, memory.len
            );
            send(message.as_bytes(), &[fd.as_fd()]);
        }
        Protocol::Criu => {
            send(&1_i32.to_ne_bytes(), &[]);
            send(&[0], &[fd.as_fd()]);
        }
    }
    drop(fd);

    let file = random_bytes(PAGES * PAGE, SEED);
    let each = PAGES / THREADS;
    let until = Instant::now() + time;
    // A fork while another thread holds the allocator would leave it locked in the child, which
    // allocates nothing; and one while another forks is as good as any.
    let steps = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (file, steps) = (&file, &steps);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed * 100 + thread as u64);
                let pages = thread * each..(thread + 1) * each;
                let states = pages.clone().map(|page| State::Byte(file[page * PAGE])).collect();
                let memory = memory.pages(pages);
                let place = Memory::map(memory.len, Kind::Anonymous).unwrap();
                let mut part = Part { memory, place, states, removal, protocol };
                while Instant::now() < until {
                    part.step(&mut random, may_fork && thread == 0);
                    steps.fetch_add(1, Relaxed);
                }
                (0..part.states.len()).for_each(|page| part.check(page));
            });
        }
        if protocol == Protocol::Criu {
            // What is missing is filled from now on.
            std::thread::sleep(time.mul_f64((seed % 8) as f64 / 8.0));
            send(&0x5253_5446_i32.to_ne_bytes(), &[]);
        }
    });
    println!("{} steps", steps.load(Relaxed));
}

fn start(test: &str, socket: &Path, seed: u64, time: Duration) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CLIENT, format!("{seed} {} {}", time.as_millis(), socket.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Plays a client, if this is the process of one.
fn play(protocol: Protocol) -> bool {
    let Ok(client_of) = std::env::var(CLIENT) else { return false };
    let mut words = client_of.splitn(3, ' ');
    let mut number = || words.next().unwrap().parse::<u64>().unwrap();
    let (seed, time) = (number(), Duration::from_millis(number()));
    client(protocol, Path::new(words.next().unwrap()), seed, time);
    true
}

fn seconds() -> u64 {
    std::env::var("PERVMA_SOAK_SECONDS").map_or(5, |text| text.parse().unwrap())
}

/// Clients at a time.
fn at_a_time() -> usize {
    std::env::var("PERVMA_SOAK_CLIENTS").map_or(4, |text| text.parse().unwrap())
}

fn log() {
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_ansi(false);
    let log = log.with_writer(std::io::stderr);
    // The other test has done so, perhaps.
    let _ = log.try_init();
}

/// Starts clients, of which some are killed; returns how many have ended by themselves, and how
/// many were killed.
fn run_clients(test: &str, socket: &Path, seconds: u64) -> (u32, u32) {
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut random = StdRng::seed_from_u64(seconds);
    let (mut ended, mut killed) = (0, 0);
    let mut count = |status: ExitStatus, may_be_killed: bool| {
        let by_us = may_be_killed && status.signal() == Some(libc::SIGKILL);
        assert!(status.success() || by_us, "a client has failed: {status}");
        *(if by_us { &mut killed } else { &mut ended }) += 1;
    };
    let mut clients: Vec<(Child, Option<Instant>)> = Vec::new();
    while Instant::now() < until {
        while clients.len() < at_a_time() {
            let time = Duration::from_millis(random.random_range(200..2000));
            let dies = random.random_range(0..3) == 0;
            let death = dies.then(|| Instant::now() + time.mul_f64(random.random_range(0.0..1.0)));
            clients.push((start(test, socket, random.next_u64() >> 32, time), death));
        }
        std::thread::sleep(Duration::from_millis(20));
        for (client, death) in &mut clients {
            if death.is_some_and(|death| death < Instant::now()) {
                client.kill().unwrap();
            }
        }
        clients.retain_mut(|(client, death)| match client.try_wait().unwrap() {
            None => true,
            Some(status) => {
                count(status, death.is_some());
                false
            }
        });
    }
    for (mut client, death) in clients {
        count(client.wait().unwrap(), death.is_some());
    }
    (ended, killed)
}

#[test]
fn clients_do_as_they_like() {
    if play(Protocol::Firecracker) {
        return;
    }
    let seconds = seconds();
    let _alone = alone_for(Duration::from_secs(2 * seconds + 120));
    log();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join(SOCKET);
    let bytes = random_bytes(PAGES * PAGE, SEED);
    let listen = Listen::at(&socket, Arc::new(Moody::of(bytes))).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();
    let options = Options::new().workers(3).granule(GRANULE).ahead(4);
    let server = Server::new(vec![listen], options, Limits::default())
        .on_stop(OnStop::Drain(Duration::from_secs(30)));
    let seen = Arc::new(Mutex::new((0, String::new())));
    let last = Arc::clone(&seen);
    let server = std::thread::spawn(move || {
        server.run(
            stopped.as_fd(),
            || Ok(()),
            move |pager, _| {
                let stats = pager.clients().into_iter().filter_map(|client| pager.stats(client));
                let mut sum = pervma_serve::Stats::default();
                stats.for_each(|stats| sum += stats);
                let mut last = last.lock().unwrap();
                if sum.faults > last.0 {
                    *last = (sum.faults, format!("{sum:?}"));
                }
            },
        )
    });

    let (ended, killed) = run_clients("clients_do_as_they_like", &socket, seconds);
    drop(stop);
    let outcome = server.join().unwrap().unwrap();
    assert_eq!(outcome.failed, 0);
    println!("{ended} clients have ended, {killed} were killed; {outcome:?}");
    println!("most at a time: {}", seen.lock().unwrap().1);
}

/// A daemon whose serving process dies again and again, if this is the process of one. It ends when
/// its standard input does.
fn keep(protocol: Protocol) -> bool {
    let Ok(daemon) = std::env::var(DAEMON) else { return false };
    let (folder, seconds) = daemon.split_once(' ').unwrap();
    let (folder, time) = (Path::new(folder), Duration::from_secs(seconds.parse().unwrap()));
    let (socket, take_over) = (folder.join(SOCKET), folder.join(TAKE_OVER));
    let serve = || {
        // Before it opens descriptors.
        let ask = || TakenOver::ask(&take_over).unwrap_or_else(|_| nothing_taken());
        let mut taken = take_over.exists().then(ask);
        // SAFETY: it takes a number: no alarm ends what lives as long as it is to.
        unsafe { libc::alarm(0) };
        let is_first = taken.is_none();
        let options = Options::new().workers(3).fillers(2).granule(GRANULE).ahead(4);
        let until = Instant::now() + time;
        let stop = std::io::stdin();
        let begin = |kept: &Kept| {
            log();
            pervma_serve::steps::die_at_random(often(), until).unwrap();
            println!("{} processes have died", kept.before());
        };
        let sockets = match &mut taken {
            Some(taken) => TakeOverSocket::taken(taken, &take_over),
            None => TakeOverSocket::at(&take_over),
        };
        let keeper = |taken| match taken {
            Some(taken) => Keeper::taking_over(&options, taken).unwrap(),
            None => Keeper::new(&options).unwrap(),
        };
        let limits = Limits::default();
        let ended = match protocol {
            Protocol::Firecracker => {
                let bytes = random_bytes(PAGES * PAGE, SEED);
                let source = Arc::new(Moody::of(bytes));
                let listen = match &mut taken {
                    Some(taken) => Listen::taken(taken, &socket, source),
                    None => Listen::at(&socket, source),
                };
                let server = Server::new(vec![listen.unwrap()], options.clone(), limits)
                    .take_over(sockets.unwrap())
                    .on_stop(OnStop::Drain(Duration::from_secs(30)));
                keeper(taken).run(|kept| {
                    begin(&kept);
                    let ended = server.run_kept(kept, stop.as_fd(), || Ok(()), |_, _| ()).unwrap();
                    println!("{ended:?}");
                    u8::from(ended.failed > 0)
                })
            }
            Protocol::Criu => {
                let images = Images::open(folder).unwrap();
                let restores = match &mut taken {
                    Some(taken) => Restores::taken(taken, &socket, images, options.clone(), limits),
                    None => Restores::at(&socket, images, options.clone(), limits),
                };
                let restores = restores.unwrap().take_over(sockets.unwrap());
                keeper(taken).run(|kept| {
                    begin(&kept);
                    let ended = restores.run_kept(kept, stop.as_fd(), || Ok(())).unwrap();
                    println!("{ended:?}");
                    0
                })
            }
        };
        match ended {
            Err(_) if !is_first => nothing_taken(),
            ended => assert_eq!(ended.unwrap(), 0),
        }
    };
    let status = child::with_one_thread(serve, |_| ());
    if status.code() == Some(NOTHING_TAKEN) {
        nothing_taken();
    }
    assert!(status.success(), "{status}");
    true
}

/// How a daemon ends that could not take over.
const NOTHING_TAKEN: i32 = 99;

fn nothing_taken() -> ! {
    std::process::exit(NOTHING_TAKEN)
}

/// Says that the clients are over, when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// How often serving processes die on average.
fn often() -> Duration {
    let millis = std::env::var("PERVMA_SOAK_DEATHS").map_or(30, |text| text.parse().unwrap());
    Duration::from_millis(millis)
}

fn die_again_and_again(protocol: Protocol, name: &str) {
    if play(protocol) || keep(protocol) {
        return;
    }
    let seconds = seconds();
    let _alone = alone_for(Duration::from_secs(2 * seconds + 120));
    let folder = tempfile::tempdir().unwrap();
    if protocol == Protocol::Criu {
        write_images(folder.path());
    }
    let socket = folder.path().join(SOCKET);
    let start = || {
        child::command(name, "keep")
            .env(DAEMON, format!("{} {seconds}", folder.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let end = |mut daemon: Child| {
        drop(daemon.stdin.take());
        let output = daemon.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}: {text}", output.status);
        let is_count = |line: &&str| line.contains("processes have died");
        text.lines().rfind(is_count).unwrap_or("0 processes have died").to_owned()
    };
    let mut daemon = start();
    while UnixStream::connect(&socket).is_err() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let is_over = &AtomicBool::new(false);
    let (ended, killed) = std::thread::scope(|scope| {
        let replace = scope.spawn(move || {
            let mut took_over = 0;
            while !is_over.load(Relaxed) {
                std::thread::sleep(Duration::from_secs(1));
                let mut next = start();
                // The other one ends as soon as this one has everything; or one of its processes
                // dies meanwhile, and this one ends.
                loop {
                    std::thread::sleep(Duration::from_millis(1));
                    if let Some(status) = daemon.try_wait().unwrap() {
                        assert!(status.success(), "{status}");
                        daemon = next;
                        took_over += 1;
                        break;
                    }
                    if let Some(status) = next.try_wait().unwrap() {
                        assert_eq!(status.code(), Some(NOTHING_TAKEN));
                        break;
                    }
                }
            }
            (daemon, took_over)
        });
        // Also if a client has failed.
        let over = Over(is_over);
        let count = run_clients(name, &socket, seconds);
        drop(over);
        let (daemon, took_over) = replace.join().unwrap();
        println!("{took_over} times another program has taken over; {}", end(daemon));
        count
    });
    println!("{ended} clients have ended, {killed} were killed");
}

#[test]
fn clients_do_as_they_like_while_the_serving_process_dies_again_and_again() {
    let name = "clients_do_as_they_like_while_the_serving_process_dies_again_and_again";
    die_again_and_again(Protocol::Firecracker, name);
}

#[test]
fn restored_tasks_do_as_they_like_while_the_serving_process_dies_again_and_again() {
    let name = "restored_tasks_do_as_they_like_while_the_serving_process_dies_again_and_again";
    die_again_and_again(Protocol::Criu, name);
}

fn write_images(folder: &Path) {
    let bytes = random_bytes(PAGES * PAGE, SEED);
    images::write_tasks(folder, &[1]);
    let place = images::START..images::START + bytes.len();
    images::write_mm(folder, 1, &[images::vma(&place, 0x22)]);
    let entries = [(0..PAGES, images::LAZY | images::PRESENT)];
    images::write_pages(folder, 1, &bytes, &entries);
}

#[test]
fn restored_tasks_do_as_they_like() {
    if play(Protocol::Criu) {
        return;
    }
    let seconds = seconds();
    let _alone = alone_for(Duration::from_secs(2 * seconds + 120));
    log();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join(SOCKET);
    write_images(folder.path());
    let images = Images::open(folder.path()).unwrap();
    let options = Options::new().workers(3).fillers(2).granule(GRANULE);
    let restores = Restores::at(&socket, images, options, Limits::default()).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();
    let restores = std::thread::spawn(move || restores.run(stopped.as_fd(), || Ok(())));

    let (ended, killed) = run_clients("restored_tasks_do_as_they_like", &socket, seconds);
    drop(stop);
    let outcome = restores.join().unwrap().unwrap();
    // A task that is killed before its restore has finished is a restore that fails.
    assert!(outcome.failed + outcome.refused <= u64::from(killed), "{outcome:?}");
    assert!(outcome.complete >= u64::from(ended), "{ended}: {outcome:?}");
    println!("{ended} tasks have ended, {killed} were killed; {outcome:?}");
}
