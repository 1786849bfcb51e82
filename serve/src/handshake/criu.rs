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

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::limits::Limits;
use crate::state::inbox::Inbox;

/// The restore has finished.
const FINISHED: i32 = 0x5253_5446;
/// Bytes of a number.
const NUMBER: usize = 4;
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
    /// What has come of what is told now; there is none before something has.
    inbox: Option<Inbox>,
    /// How many bytes of it are taken.
    taken: usize,
    /// What has come and was not given to the caller.
    descriptors: Vec<OwnedFd>,
    /// Descriptors that have come to a process before this one were given to it.
    were_given: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The next is a number.
    Number,
    /// The next is this task's descriptor.
    Descriptor(u32),
    /// Something was told to the caller.
    Told,
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
            inbox: None,
            taken: 0,
            descriptors: Vec::new(),
            were_given: false,
        }
    }

    /// Begins now, with what has come already: to a process before this one, if `is_left`.
    pub(crate) fn with(
        limits: &Limits,
        inbox: Inbox,
        descriptors: Vec<OwnedFd>,
        is_left: bool,
    ) -> Self {
        let were_given = is_left && descriptors.is_empty();
        Self { inbox: Some(inbox), descriptors, were_given, ..Self::new(limits) }
    }

    /// An inbox for what is told at a time; in a file, if `is_kept`.
    pub(crate) fn inbox(is_kept: bool) -> std::io::Result<Inbox> {
        Inbox::new(NUMBER + 1, is_kept)
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
    /// last is to be [taken](Self::take_descriptors): closed, a userfaultfd lets missing pages be
    /// zeros.
    pub fn advance(&mut self, connection: &UnixStream) -> Result<Option<Told>, HandshakeError> {
        if self.state == State::Told {
            // Noted by the caller, who would be told of it again else.
            self.begin();
        }
        loop {
            let told = match self.state {
                State::Finished => return Ok(None),
                State::Told => Progress::More,
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
        let has_come = self.inbox.as_ref().is_some_and(|inbox| !inbox.bytes().is_empty());
        has_come && self.since.elapsed() >= self.limit
    }

    /// The descriptors that have come, and were not told of.
    #[must_use]
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// What is told next begins to come.
    fn begin(&mut self) {
        self.state = State::Number;
        self.taken = 0;
        if let Some(inbox) = &mut self.inbox {
            inbox.clear();
        }
    }

    fn number(&mut self, connection: &UnixStream) -> Result<Progress, HandshakeError> {
        let came = self.come();
        if came < NUMBER {
            let Some(received) = self.receive(connection, NUMBER - came)? else {
                return Ok(Progress::Nothing);
            };
            if came == 0 {
                self.since = Instant::now();
            }
            if received.descriptors > 0 {
                return Err(HandshakeError::UnexpectedDescriptor);
            }
            return Ok(Progress::More);
        }
        let mut bytes = [0; NUMBER];
        if let Some(inbox) = &self.inbox {
            bytes.copy_from_slice(&inbox.bytes()[..NUMBER]);
        }
        self.taken = NUMBER;
        let number = i32::from_ne_bytes(bytes);
        if number == FINISHED {
            self.state = State::Finished;
            return Ok(Progress::Told(Told::Finished));
        }
        let task = number.unsigned_abs();
        if number == 0 || task > MOST_TASKS.unsigned_abs() {
            return Err(HandshakeError::NoTask { found: u32::from_ne_bytes(bytes) });
        }
        if number < 0 {
            self.state = State::Told;
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
        if self.come() == 0 {
            let Some(received) = self.receive(connection, 1)? else {
                return Ok(Progress::Nothing);
            };
            if received.is_cut {
                return Err(HandshakeError::DescriptorLost { task });
            }
        } else if self.were_given {
            self.were_given = false;
            self.begin();
            return Ok(Progress::More);
        }
        let count = self.descriptors.len();
        let userfaultfd = self.descriptors.pop().filter(|_| count == 1);
        let userfaultfd = userfaultfd.ok_or(HandshakeError::NoDescriptor { task })?;
        self.state = State::Told;
        Ok(Progress::Told(Told::Task(task, userfaultfd)))
    }

    /// Bytes that have come and are not taken.
    fn come(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.bytes().len()) - self.taken
    }

    /// Receives at most so many bytes, and descriptors, which are owned from here on; `None` if
    /// nothing is there.
    fn receive(
        &mut self,
        connection: &UnixStream,
        most: usize,
    ) -> Result<Option<Received>, HandshakeError> {
        let inbox = match &mut self.inbox {
            Some(inbox) => inbox,
            none => none.insert(Self::inbox(false).map_err(|error| {
                HandshakeError::Receive(Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))
            })?),
        };
        let received = match inbox.receive(connection, most) {
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(HandshakeError::Receive(error)),
            Ok(received) => received,
        };
        let descriptors = received.descriptors.len();
        self.descriptors.extend(received.descriptors);
        if received.bytes == 0 {
            return Err(HandshakeError::Closed);
        }
        Ok(Some(Received { descriptors, is_cut: received.is_cut }))
    }
}

/// What was received.
struct Received {
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
