//! CRIU's handshake: `criu restore --lazy-pages` tells of one task after the other.
//!
//! CRIU connects to a Unix stream socket and sends, with no reply:
//!
//! | bytes | mean |
//! |---|---|
//! | a number of 4 bytes, in the order of the machine | a task, by its number in the images; negative, a zombie, which has no memory |
//! | a byte with a descriptor as `SCM_RIGHTS`, after a task | its userfaultfd |
//! | the number `0x52535446` | the restore has finished: the tasks begin to run |
//! | what follows that | nothing |

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg as receive,
};

use crate::limits::Limits;

/// The restore has finished.
const FINISHED: i32 = 0x5253_5446;
/// No task has a larger number, in any kernel.
const MOST_TASKS: i32 = 1 << 22;

/// What a restorer tells, on one connection.
///
/// It never waits: a thread can advance those of many connections in turn.
///
/// ```
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// use pervma_serve::Limits;
/// use pervma_serve::handshake::criu::{Handshake, Told};
///
/// let (mut restorer, connection) = UnixStream::pair()?;
/// let mut handshake = Handshake::new(&Limits::default());
/// restorer.write_all(&(-5_i32).to_ne_bytes())?;
/// restorer.write_all(&0x52535446_u32.to_ne_bytes())?;
/// assert!(matches!(handshake.advance(&connection)?, Some(Told::Zombie(5))));
/// assert!(matches!(handshake.advance(&connection)?, Some(Told::Finished)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Handshake {
    limit: Duration,
    /// When what is told now began to come.
    since: Instant,
    state: State,
    /// The bytes of a number that have come.
    bytes: [u8; 4],
    count: usize,
    /// What has come and was not given to the caller.
    descriptors: Vec<OwnedFd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The next is a number.
    Number,
    /// The next is this task's descriptor.
    Descriptor(u32),
    Finished,
}

/// What a restorer has told.
#[derive(Debug)]
pub enum Told {
    /// It restores a task, whose memory is registered with this userfaultfd, as it came: not looked
    /// at yet.
    Task(u32, OwnedFd),
    /// It restores a task that has no memory.
    Zombie(u32),
    /// All tasks are there, and begin to run.
    Finished,
}

/// Why a restorer was not accepted, or a restore has failed.
///
/// What it says is one line of printable ASCII.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// It is no restorer.
    #[error("{found:#x} is no task's number: it is no CRIU that restores")]
    NoTask {
        /// What came in place of a number.
        found: u32,
    },
    /// It is no restorer.
    #[error("it sends a descriptor where a number is expected")]
    UnexpectedDescriptor,
    /// No descriptor has come where one was expected.
    #[error("it has sent no userfaultfd for task {task}")]
    NoDescriptor {
        /// The task.
        task: u32,
    },
    /// The kernel could not pass a descriptor on: this process may have too many open.
    #[error("a descriptor of task {task} was lost: are too many files open here?")]
    DescriptorLost {
        /// The task.
        task: u32,
    },
    /// It has not told all of a task in time.
    #[error("it has not said all of a task within {limit:?}")]
    Endless {
        /// [`Limits::handshake`].
        limit: Duration,
    },
    /// It has closed the connection.
    #[error("it has closed the connection before the restore was finished")]
    Closed,
    /// The kernel's error, from receiving.
    #[error("receiving failed: {0}")]
    Receive(Errno),
}

impl Handshake {
    /// Begins now, with nothing received.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            limit: limits.handshake,
            since: Instant::now(),
            state: State::Number,
            bytes: [0; 4],
            count: 0,
            descriptors: Vec::new(),
        }
    }

    /// Receives what is there, and returns what was told next; `None` if nothing more was told yet,
    /// or ever will be after [`Told::Finished`].
    ///
    /// The connection need not be nonblocking. A restorer that has told half of something becomes
    /// an error when this is called after the time of [`Limits::handshake`]. Before the first task
    /// and between two it may take its time: it connects first, and restores then what does not
    /// come late.
    ///
    /// # Errors
    ///
    /// Why the restore cannot be served. The handshake is over then; what the restorer has sent
    /// last is to be [taken](Self::into_descriptors): closed, a userfaultfd lets missing pages be
    /// zeros.
    pub fn advance(&mut self, connection: &UnixStream) -> Result<Option<Told>, HandshakeError> {
        loop {
            let told = match self.state {
                State::Finished => return Ok(None),
                State::Number => self.number(connection)?,
                State::Descriptor(task) => self.descriptor(connection, task)?,
            };
            match told {
                Progress::Told(told) => return Ok(Some(told)),
                Progress::More => {}
                Progress::Nothing if self.is_late() => {
                    return Err(HandshakeError::Endless { limit: self.limit });
                }
                Progress::Nothing => return Ok(None),
            }
        }
    }

    fn is_late(&self) -> bool {
        let is_waited_for = matches!(self.state, State::Descriptor(_)) || self.count > 0;
        is_waited_for && self.since.elapsed() >= self.limit
    }

    /// The descriptors that have come, and were not told of.
    #[must_use]
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        self.descriptors
    }

    fn number(&mut self, connection: &UnixStream) -> Result<Progress, HandshakeError> {
        let mut bytes = [0; 4];
        let Some(received) = self.receive(connection, self.count, &mut bytes)? else {
            return Ok(Progress::Nothing);
        };
        if self.count == 0 {
            self.since = Instant::now();
        }
        let came = self.count..self.count + received.bytes;
        self.bytes[came.clone()].copy_from_slice(&bytes[came]);
        self.count += received.bytes;
        if received.descriptors > 0 {
            return Err(HandshakeError::UnexpectedDescriptor);
        }
        if self.count < self.bytes.len() {
            return Ok(Progress::More);
        }
        self.count = 0;
        let number = i32::from_ne_bytes(self.bytes);
        if number == FINISHED {
            self.state = State::Finished;
            return Ok(Progress::Told(Told::Finished));
        }
        let task = number.unsigned_abs();
        if number == 0 || task > MOST_TASKS.unsigned_abs() {
            return Err(HandshakeError::NoTask { found: u32::from_ne_bytes(self.bytes) });
        }
        if number < 0 {
            self.state = State::Number;
            return Ok(Progress::Told(Told::Zombie(task)));
        }
        self.state = State::Descriptor(task);
        Ok(Progress::More)
    }

    fn descriptor(
        &mut self,
        connection: &UnixStream,
        task: u32,
    ) -> Result<Progress, HandshakeError> {
        let Some(received) = self.receive(connection, 3, &mut [0; 4])? else {
            return Ok(Progress::Nothing);
        };
        if received.is_cut {
            return Err(HandshakeError::DescriptorLost { task });
        }
        let userfaultfd = self.descriptors.pop().filter(|_| received.descriptors == 1);
        let userfaultfd = userfaultfd.ok_or(HandshakeError::NoDescriptor { task })?;
        self.state = State::Number;
        Ok(Progress::Told(Told::Task(task, userfaultfd)))
    }

    /// Receives bytes, all but so many of `buffer`, and descriptors, which are owned from here on;
    /// `None` if nothing is there.
    fn receive(
        &mut self,
        connection: &UnixStream,
        but: usize,
        buffer: &mut [u8; 4],
    ) -> Result<Option<Received>, HandshakeError> {
        // One more than may come. What has no space here, the kernel closes.
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut buffers = [IoSliceMut::new(&mut buffer[but..])];
        let message = loop {
            match receive(connection, &mut buffers, &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(HandshakeError::Receive(error)),
                Ok(message) => break message,
            }
        };
        let before = self.descriptors.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if message.bytes == 0 {
            return Err(HandshakeError::Closed);
        }
        let is_cut = message.flags.contains(ReturnFlags::CTRUNC);
        let descriptors = self.descriptors.len() - before;
        Ok(Some(Received { bytes: message.bytes, descriptors, is_cut }))
    }
}

/// What was received.
struct Received {
    bytes: usize,
    descriptors: usize,
    /// Of the descriptors some were lost.
    is_cut: bool,
}

enum Progress {
    Told(Told),
    /// There may be more.
    More,
    /// Nothing is there.
    Nothing,
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use super::*;

    #[test]
    fn a_restorer_takes_its_time_for_a_task_but_not_to_tell_of_it() {
        const LIMIT: Duration = Duration::from_millis(50);
        let (mut restorer, connection) = UnixStream::pair().unwrap();
        let mut handshake = Handshake::new(&Limits { handshake: LIMIT, ..Limits::default() });
        let mut advance = || handshake.advance(&connection);
        // Before the first task, and between two.
        for _ in 0..2 {
            thread::sleep(2 * LIMIT);
            assert!(matches!(advance(), Ok(None)));
            let zombie = (-7_i32).to_ne_bytes();
            for part in [&zombie[..1], &zombie[1..3]] {
                restorer.write_all(part).unwrap();
                assert!(matches!(advance(), Ok(None)));
            }
            restorer.write_all(&zombie[3..]).unwrap();
            assert!(matches!(advance(), Ok(Some(Told::Zombie(7)))));
        }
        thread::sleep(2 * LIMIT);
        restorer.write_all(&7_i32.to_ne_bytes()).unwrap();
        assert!(matches!(advance(), Ok(None)));
        thread::sleep(2 * LIMIT);
        assert!(matches!(advance(), Err(HandshakeError::Endless { .. })));
    }
}
