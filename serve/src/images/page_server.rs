//! A page server of CRIU's: pages that stayed where the checkpoint was made, asked for over TCP.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pervma_pager::ReadFailed;

const PAGE: usize = 4096;
/// The server is given up if an answer takes so long, or the next one does not come for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// So often it is looked at the time.
const LOOK: Duration = Duration::from_millis(500);
/// So long the server has to take leave.
const LEAVE: Duration = Duration::from_secs(1);

/// A request for pages.
const GET: u32 = 7;
/// The end of the requests, which is answered by a number of 4 bytes.
const CLOSE: u32 = 0x1023;
/// An answer: pages, which are present.
const PAGES: u32 = 6 | 4 << 16;

/// A connection to a page server, on which any number of requests are under way: they are answered
/// in their order.
///
/// Once something is wrong with it, every read fails.
#[derive(Debug)]
pub struct PageServer {
    shared: Arc<Shared>,
    /// The thread that receives, once something was asked for.
    receiver: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    stream: TcpStream,
    state: Mutex<State>,
    /// Memory of answers that were read: as much as was needed at once.
    spare: Mutex<Vec<Vec<u8>>>,
}

#[derive(Debug, Default)]
struct State {
    /// What was asked for, in that order.
    asked: VecDeque<Asked>,
    is_over: bool,
}

#[derive(Debug)]
struct Asked {
    request: Head,
    answer: SyncSender<Vec<u8>>,
}

/// What requests are, and what answers begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Head {
    command: u32,
    pages: u64,
    addr: u64,
    task: u64,
}

impl Head {
    const LEN: usize = 32;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.command.to_le_bytes());
        let words = [self.pages, self.addr, self.task];
        for (at, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn of(bytes: &[u8; Self::LEN]) -> Self {
        let half = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|next| bytes[at + next]));
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        Self { command: half(0), pages: word(8), addr: word(16), task: word(24) }
    }
}

impl PageServer {
    /// Connects to a page server, which it has to answer within some seconds.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn connect(address: &SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let shared = Arc::new(Shared { stream, state: Mutex::default(), spare: Mutex::default() });
        Ok(Self { shared, receiver: Mutex::default() })
    }

    /// Reads pages of a task, from an address on.
    pub(super) fn read(&self, task: u32, addr: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let mut done = 0;
        while done < buf.len() {
            let pages = ((buf.len() - done) / PAGE) as u64;
            let addr = addr + done as u64;
            let request = Head { command: GET, pages, addr, task: task.into() };
            let answer = self.ask(request).map_err(|_| ReadFailed)?;
            // Some of it, perhaps.
            let bytes = answer.recv().map_err(|_| ReadFailed)?;
            buf[done..][..bytes.len()].copy_from_slice(&bytes);
            done += bytes.len();
            self.shared.spare().push(bytes);
        }
        Ok(())
    }

    /// Sends a request, and returns where the bytes of the answer come; none if it fails.
    fn ask(&self, request: Head) -> io::Result<Receiver<Vec<u8>>> {
        self.receive()?;
        let (answer, receiver) = sync_channel(1);
        let mut state = self.shared.state();
        if state.is_over {
            return Err(io::ErrorKind::NotConnected.into());
        }
        state.asked.push_back(Asked { request, answer });
        // With the lock: what is asked for first is sent first.
        let sent = (&self.shared.stream).write_all(&request.to_bytes());
        drop(state);
        if let Err(error) = &sent {
            self.shared.fail(&format!("it takes no requests: {error}"));
        }
        sent.map(|()| receiver)
    }

    /// Starts the thread that receives.
    fn receive(&self) -> io::Result<()> {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        if receiver.is_none() {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("pervma-pages".to_owned());
            *receiver = Some(thread.spawn(move || shared.receive())?);
        }
        Ok(())
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        let close = Head { command: CLOSE, ..Head::default() };
        // A server that says nothing has gone, or is left to itself.
        let _ = self.ask(close).map(|answer| answer.recv_timeout(LEAVE));
        self.shared.end();
        let receiver = self.receiver.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = receiver.take() {
            // It has told of its panic.
            let _ = receiver.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the thread does that receives: answers, in the order of the requests.
    fn receive(&self) {
        let mut head = [0; Head::LEN];
        loop {
            let received = self.receive_answer(&mut head);
            if let Err(error) = received {
                return self.fail(&error.to_string());
            }
            let mut state = self.state();
            if state.is_over {
                return;
            }
            let asked = state.asked.pop_front();
            let is_last = asked.as_ref().is_some_and(|asked| asked.request.command == CLOSE);
            // What it does then is its own affair.
            state.is_over = is_last;
            drop(state);
            if let (Some(asked), Ok(bytes)) = (asked, received) {
                // Who has asked does not wait for ever.
                let _ = asked.answer.send(bytes);
            }
        }
    }

    /// Receives the answer to what was asked for first.
    fn receive_answer(&self, head: &mut [u8; Head::LEN]) -> io::Result<Vec<u8>> {
        self.fill(&mut head[..4])?;
        let request = self.state().asked.front().map(|asked| asked.request);
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let Some(request) = request else {
            return Err(wrong("it sends what nobody has asked for".to_owned()));
        };
        if request.command == CLOSE {
            return Ok(Vec::new());
        }
        self.fill(&mut head[4..])?;
        let found = Head::of(head);
        let is_it = (found.command, found.addr, found.task) == (PAGES, request.addr, request.task);
        if !is_it || found.pages == 0 || found.pages > request.pages {
            let Head { pages, addr, task, .. } = request;
            return Err(wrong(format!(
                "asked for {pages} pages at {addr:#x} of task {task} it answers with {} pages at \
                 {:#x} of task {} and command {:#x}",
                found.pages, found.addr, found.task, found.command
            )));
        }
        let mut bytes = self.spare().pop().unwrap_or_default();
        bytes.resize(found.pages as usize * PAGE, 0);
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives so many bytes. It waits for ever only if nothing was asked for.
    fn fill(&self, mut bytes: &mut [u8]) -> io::Result<()> {
        let mut since = Instant::now();
        while !bytes.is_empty() {
            match (&self.stream).read(bytes) {
                Ok(0) => return Err(io::Error::other("it has closed the connection")),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.state().asked.is_empty() {
                        since = Instant::now();
                    }
                }
                Err(error) => return Err(error),
            }
            if since.elapsed() >= PATIENCE {
                let what = format!("it does not answer within {PATIENCE:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
        }
        Ok(())
    }

    /// Something is wrong: all that was asked for fails, and all that will be.
    fn fail(&self, why: &str) {
        if self.end() {
            tracing::error!("the page server cannot be used any more: {why}");
        }
    }

    /// Ends the connection; whether it was there.
    fn end(&self) -> bool {
        let mut state = self.state();
        let was_there = !std::mem::replace(&mut state.is_over, true);
        // Those who wait see that nobody will answer.
        state.asked.clear();
        drop(state);
        let _ = self.stream.shutdown(Shutdown::Both);
        was_there
    }
}
