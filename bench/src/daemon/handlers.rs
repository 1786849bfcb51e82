//! What pervma's pager is compared with: handlers as in the usual example code, a floor, and one
//! lock around everything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use pervma_pager::Source;
use pervma_pager::sys::{CopyError, Errno, Event, Message, RemoteUserfaultfd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};

use super::client::Memory;
use super::content::Mapped;
use crate::layout::PAGE;

/// How a thread waits for the next fault: it sleeps, or looks again and again for so long first.
pub(super) type Spin = Duration;

/// A handler; its threads end with this.
pub(super) struct Handler {
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

/// Of one client: its userfaultfd, and its memory, which has the source's bytes from the start on.
struct Served {
    userfaultfd: RemoteUserfaultfd,
    memory: Memory,
}

impl Handler {
    /// One thread, which reads one message at a time and fills the granule, from a file that is
    /// mapped. It knows of no events but faults.
    pub(super) fn minimal(
        clients: Vec<(Memory, OwnedFd)>,
        bytes: &File,
        granule: usize,
        spin: Spin,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let bytes = Mapped::new(bytes)?;
        let clients = served(clients)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .spawn(move || serve_alone(&clients, &bytes, granule, spin, &stopped))?;
        Ok(Self { stop, threads: vec![thread] })
    }

    /// So many threads, for one client whose faults are filled page by page. With a `lock` around
    /// what was removed, which is held to search, to read and to fill, and exclusively for each
    /// removal; without it, removals are read and nothing else.
    pub(super) fn shared(
        (memory, userfaultfd): (Memory, OwnedFd),
        source: Arc<dyn Source>,
        lock: bool,
        threads: usize,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let userfaultfd = RemoteUserfaultfd::new(userfaultfd)?;
        for (number, ready) in
            [rustix::fd::AsFd::as_fd(&userfaultfd), rustix::fd::AsFd::as_fd(&stop)]
                .into_iter()
                .enumerate()
        {
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&epoll, ready, data, epoll::EventFlags::IN)?;
        }
        let removed = lock.then(|| RwLock::new(Removed::default()));
        let shared =
            Arc::new(Shared { epoll, client: Served { userfaultfd, memory }, source, removed });
        let threads: io::Result<Vec<_>> = (0..threads)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::Builder::new().spawn(move || shared.work())
            })
            .collect();
        Ok(Self { stop, threads: threads? })
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        assert!(told.is_ok(), "it counts far");
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok(), "a handler serves what comes");
        }
    }
}

fn served(
    clients: Vec<(Memory, OwnedFd)>,
) -> Result<Vec<Served>, pervma_pager::sys::NotUserfaultfd> {
    let served = |(memory, fd)| Ok(Served { userfaultfd: RemoteUserfaultfd::new(fd)?, memory });
    clients.into_iter().map(served).collect()
}

/// The thread of the minimal handler.
fn serve_alone(clients: &[Served], bytes: &Mapped, granule: usize, spin: Spin, stop: &OwnedFd) {
    let mut polled: Vec<_> =
        clients.iter().map(|client| PollFd::new(&client.userfaultfd, PollFlags::IN)).collect();
    polled.push(PollFd::new(stop, PollFlags::IN));
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut spin_until = Instant::now();
    loop {
        let spins = !spin.is_zero() && Instant::now() < spin_until;
        match poll(&mut polled, spins.then_some(&zero)) {
            Ok(0) => continue,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => std::process::abort(),
        }
        if !polled[clients.len()].revents().is_empty() {
            return;
        }
        for (client, polled) in clients.iter().zip(&polled) {
            if polled.revents().is_empty() {
                continue;
            }
            let mut message = [Message::default()];
            let read = client.userfaultfd.read(&mut message);
            assert!(read.is_ok(), "a userfaultfd can be read");
            if let Event::Fault(fault) = message[0].take() {
                let offset = (fault.addr - client.memory.start) / granule * granule;
                let len = granule.min(client.memory.len - offset);
                match client.copy(offset, bytes.part(offset, len)) {
                    Ok(()) => {}
                    Err(CopyError::AlreadyPresent | CopyError::Again { .. }) => {
                        client.wake(offset, len);
                    }
                    // It has ended.
                    Err(CopyError::ProcessGone) => {}
                    Err(_) => std::process::abort(),
                }
            }
        }
        if !spin.is_zero() {
            spin_until = Instant::now() + spin;
        }
    }
}

impl Served {
    fn copy(&self, offset: usize, bytes: *const [u8]) -> Result<(), CopyError> {
        self.userfaultfd.copy(self.memory.start + offset, bytes, true)
    }

    fn wake(&self, offset: usize, len: usize) {
        let woken = self.userfaultfd.wake(self.memory.start + offset, len);
        assert!(woken.is_ok(), "whole pages can be woken");
    }
}

/// What several threads have in common.
struct Shared {
    epoll: OwnedFd,
    client: Served,
    source: Arc<dyn Source>,
    removed: Option<RwLock<Removed>>,
}

/// Ranges that were removed, by their starts: they do not overlap.
#[derive(Default)]
struct Removed(BTreeMap<usize, usize>);

impl Removed {
    fn add(&mut self, start: usize, end: usize) {
        let before: Vec<_> =
            self.0.range(..=end).rev().take_while(|(_, to)| **to >= start).collect();
        let (mut from, mut to) = (start, end);
        let touched: Vec<usize> = before
            .into_iter()
            .map(|(other, its_end)| {
                (from, to) = (from.min(*other), to.max(*its_end));
                *other
            })
            .collect();
        for start in touched {
            self.0.remove(&start);
        }
        self.0.insert(from, to);
    }

    fn has(&self, addr: usize) -> bool {
        self.0.range(..=addr).next_back().is_some_and(|(_, end)| addr < *end)
    }
}

/// The token of what the threads are stopped by.
const STOP: u64 = 1;

impl Shared {
    fn work(&self) {
        let mut buffer = vec![0; PAGE];
        loop {
            let mut ready = [const { MaybeUninit::uninit() }; 2];
            let stops = match epoll::wait(&self.epoll, &mut ready, None) {
                Ok((events, _)) => events.iter().any(|event| event.data.u64() == STOP),
                Err(Errno::INTR) => continue,
                Err(_) => std::process::abort(),
            };
            if stops {
                return;
            }
            if let Some(addr) = self.read() {
                self.serve(addr, &mut buffer);
            }
        }
    }

    /// Reads a message; a fault is the caller's.
    fn read(&self) -> Option<usize> {
        let mut message = [Message::default()];
        let read = self.client.userfaultfd.read(&mut message);
        assert!(read.is_ok(), "a userfaultfd can be read");
        match message[0].take() {
            Event::Fault(fault) => Some(fault.addr / PAGE * PAGE),
            Event::Remove(range) => {
                if let Some(removed) = &self.removed {
                    removed.write().add(range.start, range.end);
                }
                None
            }
            _ => None,
        }
    }

    /// Fills a page. While the kernel refuses, what it has to tell is read; the source is not
    /// read again.
    fn serve(&self, addr: usize, buffer: &mut [u8]) {
        let offset = addr - self.client.memory.start;
        let mut bytes = None;
        let mut others = Vec::new();
        loop {
            let removed = self.removed.as_ref().map(RwLock::read);
            let filled = if removed.as_ref().is_some_and(|removed| removed.has(addr)) {
                self.client.userfaultfd.zero(addr, PAGE, true)
            } else {
                let bytes = *bytes.get_or_insert_with(|| self.bytes(offset, buffer));
                self.client.copy(offset, bytes)
            };
            drop(removed);
            match filled {
                Ok(()) | Err(CopyError::ProcessGone) => break,
                Err(CopyError::AlreadyPresent) => {
                    self.client.wake(addr - self.client.memory.start, PAGE);
                    break;
                }
                Err(CopyError::Again { .. }) => {
                    others.extend(self.read());
                    thread::yield_now();
                }
                Err(_) => std::process::abort(),
            }
        }
        for other in others {
            self.serve(other, buffer);
        }
    }

    /// The bytes of a page, in the buffer where they are not in memory.
    fn bytes(&self, offset: usize, buffer: &mut [u8]) -> *const [u8] {
        let range = offset as u64..(offset + PAGE) as u64;
        self.source.resident(range.clone()).unwrap_or_else(|| {
            let read = self.source.read_at(range.start, buffer);
            assert!(read.is_ok(), "the source can be read");
            &raw const *buffer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_is_merged() {
        let mut removed = Removed::default();
        for (start, end) in [(10, 20), (40, 50), (20, 30), (30, 31), (5, 12)] {
            removed.add(start, end);
        }
        assert_eq!(removed.0, BTreeMap::from([(5, 31), (40, 50)]));
        removed.add(0, 100);
        assert_eq!(removed.0, BTreeMap::from([(0, 100)]));
        assert!(removed.has(0) && removed.has(99) && !removed.has(100));
    }
}
