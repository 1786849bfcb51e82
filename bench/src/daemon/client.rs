//! The process whose pages fault: this program, run once more, which does what it is asked to.
#![expect(clippy::disallowed_types, reason = "a flag that stops threads, and a count")]

use std::error::Error;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use super::guest;
use super::memory::{Missing, Userfaultfd};
use super::order::Order;
use crate::layout::PAGE;
use crate::summary::per_mille;

/// What a client is asked to do. Memory is named by its number, in the order of mapping.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// Map memory with a userfaultfd of its own, which tells of what is discarded if so asked.
    Map { len: usize, removes: bool },
    /// Touch a page of each of the first granules, in random order.
    Touch { memory: usize, granule: usize, count: usize, threads: usize, seed: u64 },
    /// Touch pages of a part in random order, and time each, for so long at most.
    Time { memory: usize, first: usize, pages: usize, span: Duration, seed: u64 },
    /// Discard so many pages from one on.
    Discard { memory: usize, first: usize, pages: usize },
    /// From now on, touch a page of the first half of a part every millisecond, or as soon as the
    /// last one has come, and discard a page of the other half every millisecond, if so asked; each
    /// from so many pages on.
    Disturb { memory: usize, first: usize, pages: usize, skip: usize, discards: bool },
    /// Disturb no more.
    Stop,
    /// Have a guest touch so many pages.
    Guest { memory: usize, pages: usize, order: Order },
}

/// What a client answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Mapped {
        start: usize,
        serves_system_calls: bool,
    },
    Took(Duration),
    Times(Times),
    /// So many pages a second were discarded.
    Stopped(f64),
    Failed(String),
}

/// Times of single touches, in µs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) half: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) longest: f64,
}

/// A client's process. It ends with this.
pub(super) struct Client {
    child: Child,
    socket: OwnedFd,
}

/// Memory of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// Its number.
    pub(super) number: usize,
    pub(super) start: usize,
    pub(super) len: usize,
    /// Faults of guests are told.
    pub(super) serves_system_calls: bool,
}

/// Of a message.
const MOST: usize = 4096;

impl Client {
    pub(super) fn start() -> Result<Self, Box<dyn Error>> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let child = std::process::Command::new(std::env::current_exe()?)
            .arg("client")
            .stdin(Stdio::from(its))
            .spawn()?;
        Ok(Self { child, socket })
    }

    /// Has it map memory; returns its userfaultfd too.
    pub(super) fn map(
        &self,
        number: usize,
        len: usize,
        removes: bool,
    ) -> Result<(Memory, OwnedFd), Box<dyn Error>> {
        self.tell(&Command::Map { len, removes })?;
        match self.answer()? {
            (Answer::Mapped { start, serves_system_calls }, Some(fd)) => {
                Ok((Memory { number, start, len, serves_system_calls }, fd))
            }
            (other, _) => Err(unexpected(other)),
        }
    }

    pub(super) fn took(&self, command: &Command) -> Result<Duration, Box<dyn Error>> {
        self.tell(command)?;
        self.wait()
    }

    pub(super) fn tell(&self, command: &Command) -> Result<(), Box<dyn Error>> {
        send(self.socket.as_fd(), command, &[])
    }

    /// How long it took to do what it was told.
    pub(super) fn wait(&self) -> Result<Duration, Box<dyn Error>> {
        match self.answer()?.0 {
            Answer::Took(time) => Ok(time),
            other => Err(unexpected(other)),
        }
    }

    pub(super) fn times(&self, command: &Command) -> Result<Times, Box<dyn Error>> {
        self.tell(command)?;
        self.wait_for_times()
    }

    /// The times of what it was told to time.
    pub(super) fn wait_for_times(&self) -> Result<Times, Box<dyn Error>> {
        match self.answer()?.0 {
            Answer::Times(times) => Ok(times),
            other => Err(unexpected(other)),
        }
    }

    /// Has it disturb no more; how many pages a second it has discarded.
    pub(super) fn stop(&self) -> Result<f64, Box<dyn Error>> {
        self.tell(&Command::Stop)?;
        match self.answer()?.0 {
            Answer::Stopped(rate) => Ok(rate),
            other => Err(unexpected(other)),
        }
    }

    fn answer(&self) -> Result<Received<Answer>, Box<dyn Error>> {
        receive(self.socket.as_fd())?.ok_or_else(|| "the client has ended".into())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended, perhaps.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unexpected(answer: Answer) -> Box<dyn Error> {
    match answer {
        Answer::Failed(why) => format!("a client has failed: {why}").into(),
        other => format!("a client has answered {other:?}").into(),
    }
}

fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Box<dyn Error>> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A message, and the descriptor that has come with it.
type Received<M> = (M, Option<OwnedFd>);

/// `None` when the other end is closed.
fn receive<M: for<'m> Deserialize<'m>>(
    socket: BorrowedFd<'_>,
) -> Result<Option<Received<M>>, Box<dyn Error>> {
    let mut bytes = [0; MOST];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let len = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..len])?, descriptor)))
}

/// Does what it is asked to, in the client's process, until nobody asks any more.
pub(crate) fn play() -> Result<(), Box<dyn Error>> {
    let stdin = std::io::stdin();
    let mut memory: Vec<Missing> = Vec::new();
    let mut disturbance = None;
    while let Some((command, _)) = receive(stdin.as_fd())? {
        let answer = match command {
            Command::Map { len, removes } => {
                let mapped = Userfaultfd::open(removes)
                    .and_then(|uffd| Ok((Missing::map(len, &uffd)?, uffd)));
                match mapped {
                    Ok((mapped, Userfaultfd { fd, serves_system_calls })) => {
                        memory.push(mapped);
                        let answer = Answer::Mapped { start: mapped.start, serves_system_calls };
                        // It is the handler's alone then.
                        send(stdin.as_fd(), &answer, &[fd.as_fd()])?;
                        continue;
                    }
                    Err(error) => Answer::Failed(error.to_string()),
                }
            }
            Command::Touch { memory: of, granule, count, threads, seed } => {
                Answer::Took(touch(memory[of], granule, count, threads, seed))
            }
            Command::Time { memory: of, first, pages, span, seed } => {
                Answer::Times(time(memory[of].part(first * PAGE, pages * PAGE), span, seed))
            }
            Command::Discard { memory: of, first, pages } => {
                let start = Instant::now();
                memory[of].part(first * PAGE, pages * PAGE).discard();
                Answer::Took(start.elapsed())
            }
            Command::Disturb { memory: of, first, pages, skip, discards } => {
                let part = memory[of].part(first * PAGE, pages * PAGE);
                disturbance = Some(Disturbance::start(part, skip, discards));
                Answer::Took(Duration::ZERO)
            }
            Command::Stop => {
                Answer::Stopped(disturbance.take().map_or(0.0, |disturbance| disturbance.stop()))
            }
            Command::Guest { memory: of, pages, order } => {
                match guest::touch(memory[of], pages, order) {
                    Ok(took) => Answer::Took(took),
                    Err(error) => Answer::Failed(error.to_string()),
                }
            }
        };
        send(stdin.as_fd(), &answer, &[])?;
    }
    Ok(())
}

/// Touches a page of each granule, and all pages of those that were touched last: what is still
/// being filled of them counts.
fn touch(memory: Missing, granule: usize, count: usize, threads: usize, seed: u64) -> Duration {
    let mut random = StdRng::seed_from_u64(seed);
    let mut granules: Vec<usize> = (0..count).collect();
    granules.shuffle(&mut random);
    let pages: Vec<usize> = granules
        .iter()
        .map(|number| number * granule + random.random_range(0..granule / PAGE) * PAGE)
        .collect();
    let begin = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let touchers: Vec<_> = pages
            .chunks(count.div_ceil(threads))
            .map(|pages| {
                let begin = &begin;
                scope.spawn(move || {
                    begin.wait();
                    for &page in pages {
                        memory.touch(page);
                    }
                    let last = pages.last().map_or(0, |page| page / granule * granule);
                    for page in (last..last + granule).step_by(PAGE) {
                        memory.touch(page);
                    }
                })
            })
            .collect();
        begin.wait();
        let start = Instant::now();
        for toucher in touchers {
            assert!(toucher.join().is_ok(), "touching does not panic");
        }
        start.elapsed()
    })
}

/// Times touches one by one.
fn time(memory: Missing, span: Duration, seed: u64) -> Times {
    let mut pages: Vec<usize> = (0..memory.len).step_by(PAGE).collect();
    pages.shuffle(&mut StdRng::seed_from_u64(seed));
    let mut times = Vec::with_capacity(pages.len());
    let start = Instant::now();
    for page in pages {
        let before = start.elapsed();
        memory.touch(page);
        let after = start.elapsed();
        times.push((after - before).as_nanos() as u64);
        if after >= span {
            break;
        }
    }
    times.sort_unstable();
    let [half, p99, p999, longest] =
        [500, 990, 999, 1000].map(|at| per_mille(&times, at) as f64 / 1e3);
    Times { half, p99, p999, longest }
}

/// Threads that touch and discard.
struct Disturbance {
    is_over: Arc<AtomicBool>,
    discarded: Arc<AtomicU64>,
    since: Instant,
    threads: Vec<JoinHandle<()>>,
}

/// Between two touches, and two discards.
const PACE: Duration = Duration::from_millis(1);

impl Disturbance {
    fn start(memory: Missing, skip: usize, discards: bool) -> Self {
        let (is_over, discarded) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let since = Instant::now();
        let mut threads = Vec::new();
        let half = memory.len / 2 / PAGE * PAGE;
        let mut repeat = |memory: Missing, work: fn(Missing, usize), count: Arc<AtomicU64>| {
            let is_over = Arc::clone(&is_over);
            threads.push(thread::spawn(move || {
                let mut pages: Vec<usize> = (0..memory.len).step_by(PAGE).collect();
                pages.shuffle(&mut StdRng::seed_from_u64(3));
                for (turn, &page) in pages.iter().cycle().skip(skip).enumerate() {
                    let next = since + PACE * turn as u32;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    // RELAXED: here and below, a flag and a count that guard nothing.
                    if is_over.load(Relaxed) {
                        return;
                    }
                    work(memory, page);
                    count.fetch_add(1, Relaxed);
                }
            }));
        };
        let touch = |memory: Missing, page| {
            memory.touch(page);
        };
        repeat(memory.part(0, half), touch, Arc::default());
        if discards {
            let discard = |memory: Missing, page| memory.part(page, PAGE).discard();
            repeat(memory.part(half, half), discard, Arc::clone(&discarded));
        }
        Self { is_over, discarded, since, threads }
    }

    fn stop(self) -> f64 {
        let rate = self.discarded.load(Relaxed) as f64 / self.since.elapsed().as_secs_f64();
        self.is_over.store(true, Relaxed);
        for thread in self.threads {
            assert!(thread.join().is_ok(), "what disturbs does not panic");
        }
        rate
    }
}
