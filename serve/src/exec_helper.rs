//! A process that runs a command for the daemon, which itself cannot once it is in its sandbox.
#![expect(unsafe_code, reason = "fork; signals and descriptors that are not for the new process")]

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, setsid, waitpid,
};

use crate::threads;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How much longer the helper may take to say what came of it.
const GRACE: Duration = Duration::from_secs(10);
/// Bytes of a reason. The rest is left out.
const REASON: usize = 4096;

/// A process that runs one command, as often as it is asked to, with the number of a client and a
/// reason as two more arguments: for `--on-failure exec COMMAND`.
///
/// It is started before the daemon enters its [`Sandbox`](crate::sandbox::Sandbox), and keeps the
/// privileges of that time. The command is fixed from then on, and no shell reads it; whatever
/// became of the daemon could run it, with other numbers and reasons, and nothing else.
///
/// ```standalone_crate
/// use pervma_serve::exec_helper::{ExecHelper, Outcome};
///
/// // Before anything has started a thread.
/// let helper = ExecHelper::start(&["echo".into(), "a client has failed:".into()])?;
/// // Runs `echo "a client has failed:" 4711 "its source is gone"`.
/// assert_eq!(helper.run(1, 4711, "its source is gone")?, Outcome::Exited(0));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ExecHelper {
    process: Pid,
    /// Messages, each of which is sent and received as a whole.
    socket: Mutex<Socket>,
}

#[derive(Debug)]
struct Socket {
    /// `None` once the helper is dropped, not before: to another process that shares this one's
    /// descriptors, its number is not free.
    socket: Option<OwnedFd>,
    /// There was an error.
    is_broken: bool,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has exited with this status.
    Exited(i32),
    /// It was ended by this signal.
    Killed(i32),
    /// It was killed after the limit of time, with what it had started in its process group.
    TimedOut,
    /// It could not be started: the kernel's number of the error.
    NotStarted(i32),
}

impl ExecHelper {
    /// Starts the process. Each run of the command may take 30 seconds.
    ///
    /// The command is looked for in `PATH` if it has no slash. It gets this process's environment,
    /// standard output and standard error, an empty standard input, and no other descriptor.
    ///
    /// The process ends when this is dropped, or this process ends; of signals only by SIGKILL, so
    /// that it still runs commands for a daemon that was told to end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the command is empty. An error if there are other threads, or
    /// the kernel's.
    pub fn start(command: &[OsString]) -> io::Result<Self> {
        Self::start_with_limit(command, LIMIT)
    }

    /// As [`start`](Self::start), with another limit of time.
    ///
    /// # Errors
    ///
    /// As for `start`.
    pub fn start_with_limit(command: &[OsString], limit: Duration) -> io::Result<Self> {
        if command.is_empty() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the command is empty"));
        }
        threads::expect_one()?;
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (here, there) = socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&here, Timeout::Recv, Some(limit.saturating_add(GRACE)))?;
        // SAFETY: there is one thread, so that no lock is held by another and the child is an
        // ordinary process. It does not return from here: nothing that this process owns is
        // released twice.
        let process = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                let served = catch_unwind(AssertUnwindSafe(|| serve(there, command, limit)));
                exit(if matches!(served, Ok(Ok(()))) { 0 } else { 1 })
            }
            process => process,
        };
        drop(there);
        let process = Pid::from_raw(process).ok_or(ErrorKind::Other)?;
        let helper =
            Self { process, socket: Mutex::new(Socket { socket: Some(here), is_broken: false }) };
        if let Some(socket) = &lock(&helper.socket).socket {
            // It says that it has closed everything else.
            receive(socket, &mut [0])?.ok_or(ErrorKind::UnexpectedEof)?;
        }
        Ok(helper)
    }

    /// Runs the command with `pid` and `reason` as further arguments, and waits for it: at most the
    /// limit of time and a little longer, after the runs that other threads have asked for.
    ///
    /// `id` says which run this is. Of the last 1,024 it is known what became of them: who asks for
    /// one of these again, since a process before this one has died of what it did then, is told
    /// that, and the command is not run.
    ///
    /// A reason has at most 4096 bytes, the rest is left out; a zero byte becomes a space.
    ///
    /// # Errors
    ///
    /// If the helper is gone or does not answer; then it is not asked again.
    pub fn run(&self, id: u64, pid: u32, reason: &str) -> io::Result<Outcome> {
        let mut place = lock(&self.socket);
        let gone = || io::Error::new(ErrorKind::BrokenPipe, "the process that runs it is gone");
        if place.is_broken {
            return Err(gone());
        }
        // Until it has answered.
        place.is_broken = true;
        let socket = place.socket.as_ref().ok_or_else(gone)?;
        let end = (0..=REASON.min(reason.len())).rfind(|&end| reason.is_char_boundary(end));
        let reason = reason[..end.unwrap_or(0)].replace('\0', " ");
        let id = id.to_ne_bytes();
        send(socket, &[&id[..], &pid.to_ne_bytes(), reason.as_bytes()].concat())?;
        let outcome = loop {
            let mut answer = [0; ID + ANSWER];
            receive(socket, &mut answer)?.ok_or_else(gone)?;
            let (answered, outcome) = answer.split_at(ID);
            // A process before this one may have asked, and died before it was answered.
            if answered == id {
                break Outcome::decode(outcome).ok_or(ErrorKind::InvalidData)?;
            }
        };
        place.is_broken = false;
        Ok(outcome)
    }

    /// The number of the process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_raw_pid().cast_unsigned()
    }
}

impl Drop for ExecHelper {
    /// Ends the process, and waits until it has ended. Does not wait for one that does not answer.
    fn drop(&mut self) {
        let mut place = lock(&self.socket);
        let options = if place.is_broken { WaitOptions::NOHANG } else { WaitOptions::empty() };
        place.socket = None;
        while matches!(waitpid(Some(self.process), options), Err(Errno::INTR)) {}
    }
}

fn lock(socket: &Mutex<Socket>) -> std::sync::MutexGuard<'_, Socket> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outcome {
    fn encode(self) -> [u8; ANSWER] {
        let (kind, value) = match self {
            Self::Exited(status) => (0, status),
            Self::Killed(signal) => (1, signal),
            Self::TimedOut => (2, 0),
            Self::NotStarted(errno) => (3, errno),
        };
        let [a, b, c, d] = value.to_ne_bytes();
        [kind, a, b, c, d]
    }

    fn decode(answer: &[u8]) -> Option<Self> {
        let (kind, value) = answer.split_first()?;
        let value = i32::from_ne_bytes(value.try_into().ok()?);
        match kind {
            0 => Some(Self::Exited(value)),
            1 => Some(Self::Killed(value)),
            2 => Some(Self::TimedOut),
            3 => Some(Self::NotStarted(value)),
            _ => None,
        }
    }
}

/// Bytes of an id, which requests and answers begin with.
const ID: usize = size_of::<u64>();
/// Runs that are known.
const KNOWN: usize = 1024;
/// Bytes of an outcome.
const ANSWER: usize = 5;

fn send(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    loop {
        match rustix::net::send(socket, message, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Receives a message, and returns its length; `None` once the other end is closed.
fn receive(socket: &OwnedFd, message: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match recv(socket, &mut *message, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            Ok((_, len)) => return Ok((len > 0).then_some(len)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The helper: answers requests until the other end of its socket is closed.
fn serve(socket: OwnedFd, command: &[OsString], limit: Duration) -> io::Result<()> {
    // First: the daemon's handlers write to what is closed next.
    block_signals(true)?;
    let kept = socket.as_raw_fd();
    close_between(3, kept - 1)?;
    close_between(3.max(kept + 1), RawFd::MAX)?;
    // It fails for the leader of a process group, which a child is not.
    setsid()?;
    send(&socket, &[0])?;
    let mut request = [0; ID + 4 + REASON];
    // The last one first.
    let mut known = VecDeque::with_capacity(KNOWN);
    while let Some(len) = receive(&socket, &mut request)? {
        let (id, request) =
            request[..len].split_first_chunk::<ID>().ok_or(ErrorKind::InvalidData)?;
        let (pid, reason) = request.split_first_chunk().ok_or(ErrorKind::InvalidData)?;
        let reason = std::str::from_utf8(reason).map_err(|_| ErrorKind::InvalidData)?;
        let is_this = |(other, outcome): &([u8; ID], Outcome)| (other == id).then_some(*outcome);
        let outcome = known.iter().find_map(is_this).unwrap_or_else(|| {
            let outcome = run(command, u32::from_ne_bytes(*pid), reason, limit);
            let outcome = outcome.unwrap_or_else(|error| {
                Outcome::NotStarted(error.raw_os_error().unwrap_or(libc::EINVAL))
            });
            known.truncate(KNOWN - 1);
            known.push_front((*id, outcome));
            outcome
        });
        // The daemon may have ended meanwhile: the command was run all the same.
        send(&socket, &[&id[..], &outcome.encode()].concat())?;
    }
    Ok(())
}

/// Runs the command once.
fn run(command: &[OsString], pid: u32, reason: &str, limit: Duration) -> io::Result<Outcome> {
    let (program, arguments) = command.split_first().ok_or(ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).arg(pid.to_string()).arg(reason);
    command.stdin(Stdio::null()).process_group(0);
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(|| block_signals(false)) };
    let mut child = command.spawn()?;
    let ended = wait(&mut child, limit);
    if !matches!(ended, Ok(Some(_))) {
        // The group has its number, which is not another's until it was waited for.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        child.wait()?;
    }
    Ok(match ended? {
        None => Outcome::TimedOut,
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Outcome::Exited(code),
            (None, signal) => Outcome::Killed(signal.unwrap_or(0)),
        },
    })
}

/// Waits until a child has ended, or `None` if it takes longer than the limit.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let began = Instant::now();
    loop {
        let left = limit.saturating_sub(began.elapsed());
        let timeout = left.try_into().map_err(|_| ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) => return child.wait().map(Some),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Blocks all signals, or none, by a call that is legal after a fork.
fn block_signals(all: bool) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let made = match all {
        // SAFETY: it writes all of the set.
        true => unsafe { libc::sigfillset(set.as_mut_ptr()) },
        // SAFETY: it writes all of the set.
        false => unsafe { libc::sigemptyset(set.as_mut_ptr()) },
    };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it reads a set, which was just written.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Closes descriptors `first` to `last`, in the helper.
fn close_between(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: it takes three numbers. What owns these descriptors is not used by the helper, which
    // has a copy of this process's memory and does not return from `serve` but to exit.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the helper without running what its parent has registered for its own end.
fn exit(status: i32) -> ! {
    // SAFETY: it takes a number, and does not return.
    unsafe { libc::_exit(status) }
}
