//! A process that does nothing but start another one, again and again: who serves can die of
//! anything, and those that it serves go on.
//!
//! The keeper shares its table of descriptors with the process that serves (`CLONE_FILES`), and no
//! memory but the file in which that notes what it knows. What the serving process dies of, its
//! descriptors stay open, also one that the kernel has opened for it a moment ago; the next one
//! finds what is noted, and goes on from there.
//!
//! The keeper has one thread, which waits: after its start it allocates nothing (but to say that
//! no process can be started), reads nothing that comes from a client, and opens nothing. A new
//! process begins with the memory that the keeper had then. It cannot be of another program:
//! `execve` gives a process a table of descriptors of its own, so another version takes over by a
//! socket.
#![expect(unsafe_code, reason = "a process that shares its descriptors, which nobody else starts")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitIdOptions, WaitIdStatus, getpid, waitid};

use crate::blame;
use crate::pager::Options;
use crate::state::descriptors::{Descriptors, List};
use crate::state::store::Store;
use crate::state::table::{Entry, Slot, Table};
use crate::take_over::{TakeOverError, TakenOver, give_if_asked};
use crate::threads::{Watched, expect_one_of, set_stops};

/// Keeps a serving process alive.
pub struct Keeper {
    table: Arc<Table>,
    list: List,
    threads: List,
    taken: Option<TakenOver>,
}

/// What a serving process begins with: all that was noted by those before it.
pub struct Kept {
    pub(crate) table: Arc<Table>,
    pub(crate) entries: Vec<(Slot, Entry)>,
    pub(crate) descriptors: Descriptors,
    /// The client that the last process has died of; 0 for none.
    pub(crate) culprit: u64,
    /// Of what was noted some cannot be used.
    pub(crate) is_damaged: bool,
    pub(crate) keeper: Watched,
    pub(crate) before: u64,
}

impl Kept {
    /// Nothing was noted, and no other process will be there.
    pub(crate) fn nothing(table: Arc<Table>) -> Self {
        let (entries, descriptors) = (Vec::new(), Descriptors::default());
        let keeper = Watched::nobody();
        Self { table, entries, descriptors, culprit: 0, is_damaged: false, keeper, before: 0 }
    }

    /// How many processes there were before this one.
    #[must_use]
    pub fn before(&self) -> u64 {
        self.before
    }

    /// How many of them have died: the others have ended so that another program takes over.
    #[must_use]
    pub fn deaths(&self) -> u64 {
        self.before.saturating_sub(self.table.handed())
    }
}

impl Keeper {
    /// Makes what is shared with a serving process of these options, and locks a page of it for
    /// each of its workers. To be called before files are given up (in a
    /// [sandbox](crate::sandbox)).
    ///
    /// # Errors
    ///
    /// The kernel's. So much may not be locked, for example (`RLIMIT_MEMLOCK`).
    pub fn new(options: &Options) -> io::Result<Self> {
        let (list, threads) = (List::of_descriptors()?, List::of_threads()?);
        let table = options.table(true)?;
        Ok(Self { table, list, threads, taken: None })
    }

    /// As [`new`](Self::new), with what another program has served up to now.
    ///
    /// # Errors
    ///
    /// See [`TakeOverError`]. The other program serves on.
    pub fn taking_over(options: &Options, mut taken: TakenOver) -> Result<Self, TakeOverError> {
        let (list, threads) = (List::of_descriptors()?, List::of_threads()?);
        taken.close_listeners()?;
        let table = taken.table(options.worker_count())?;
        if table.end().is_some() {
            // It was kept of a daemon that has come to its end.
            return Ok(Self::new(options)?);
        }
        Ok(Self { table, list, threads, taken: Some(taken) })
    }

    /// Has a service manager keep all descriptors, also when the keeper dies (systemd's `FDSTORE`):
    /// by a datagram socket that is connected to the manager's. Who is started then
    /// [gets them](TakenOver::stored).
    pub fn store_in(&self, manager: OwnedFd) {
        self.table.keep_in(Store::of(manager));
    }

    /// Runs `work` in a process of its own, and in the next one whenever that dies: at once, but
    /// for one that has died of itself and not lived for a tenth of a second, which is waited for.
    /// What `work` returns is what this returns, when a process has come to its end. What it owns
    /// is dropped there, and not here.
    ///
    /// Signals to this process are its own matter; those by which programs are told to stop are
    /// blocked in the serving one, as long as this one lives. A serving process that outlives it
    /// serves on, and nobody takes its place.
    ///
    /// # Errors
    ///
    /// When there are other threads, or no process can be started.
    pub fn run(self, work: impl FnOnce(Kept) -> u8) -> io::Result<u8> {
        expect_one_of(&self.threads)?;
        let mut owned = self.list.numbers()?;
        if let Some(taken) = &self.taken {
            owned = owned.difference(taken.numbers()).copied().collect();
            let giving = taken.finish(&self.table).map_err(io::Error::other)?;
            self.table.begin_anew(giving);
        }
        let giving = self.table.giving();
        hear_of_ends();
        let keeper = getpid();
        let mut work = Some(work);
        // Nobody else serves what was taken over.
        let mut is_first = self.taken.is_none();
        loop {
            let started = match start() {
                // There is no memory, perhaps, or there are too many processes.
                Err(error) if !is_first => {
                    tracing::error!(%error, "no serving process can be started");
                    thread::sleep(LIVES);
                    continue;
                }
                other => other?,
            };
            is_first = false;
            let Some(process) = started else {
                // In the new process.
                let kept = self.kept(keeper, &owned).unwrap_or_else(|error| {
                    // The next one may have more luck.
                    tracing::error!(%error, "a serving process could not begin");
                    std::process::exit(1)
                });
                if give_if_asked(&self.table, &kept.descriptors, &owned) {
                    // What it would drop is another program's now.
                    std::mem::forget(work.take());
                    std::process::exit(0);
                }
                set_stops(libc::SIG_BLOCK);
                blame::watch(&self.table);
                die_of_panics();
                let end = work.take().map_or(0, |work| work(kept));
                self.table.note_end(end);
                std::process::exit(end.into());
            };
            let began = Instant::now();
            let how = wait(process)?;
            if let Some(end) = self.table.end() {
                // The new process has closed what it owns, which are this one's descriptors.
                std::mem::forget(work);
                return end.ok_or_else(|| io::Error::other("the serving process died as it ended"));
            }
            if self.table.giving() != giving {
                // Another program has taken all of it over, and gone on already.
                std::mem::forget(work);
                return Ok(0);
            }
            self.table.note_death(how);
            if how != KILLED {
                thread::sleep(LIVES.saturating_sub(began.elapsed()));
            }
        }
    }

    fn kept(&self, keeper: Pid, owned: &BTreeSet<i32>) -> io::Result<Kept> {
        // Locks are not inherited.
        self.table.lock()?;
        let (before, death, culprit) = self.table.begin();
        if death != 0 && self.table.asked().is_none() {
            tracing::warn!(process = before, how = %Death(death), culprit, "a serving process died");
        }
        // SAFETY: what was open before the first process was started is owned by values that this
        // one has inherited; all else was opened by processes before this one.
        let mut descriptors = unsafe { Descriptors::all_but(&self.list, owned) }?;
        let (mut entries, mut is_damaged) = (Vec::new(), !self.table.is_whole());
        for (slot, entry) in self.table.left() {
            match entry {
                Ok(entry) => entries.push((slot, entry)),
                Err(error) => {
                    tracing::error!("what is noted of a client cannot be used: {error}");
                    is_damaged = true;
                }
            }
        }
        let noted =
            entries.iter().flat_map(|(slot, entry)| [entry.descriptor, entry.pidfd, slot.file()]);
        // This process needs as many, of which there may be no more.
        descriptors.close_waits(&noted.collect());
        let table = Arc::clone(&self.table);
        let keeper = Watched::of(keeper);
        Ok(Kept { table, entries, descriptors, culprit, is_damaged, keeper, before })
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("before", &self.before).finish_non_exhaustive()
    }
}

/// A process that lives for a shorter time does so again, perhaps.
const LIVES: Duration = Duration::from_millis(100);
/// By SIGKILL: another process has sent it, or there was no memory.
const KILLED: u64 = 1 << 32 | libc::SIGKILL as u64;

/// How a process has ended, as the kernel says: its code or signal, under whether it was a signal.
struct Death(u64);

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.0 >> 32 == 0 { "exit code" } else { "signal" };
        write!(f, "{what} {}", self.0 as u32)
    }
}

/// Starts a process that has a copy of this one's memory, and the same descriptors: `None` in the
/// new one.
fn start() -> io::Result<Option<Pid>> {
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: as `fork`, of a process with one thread (checked by the caller): no lock is held by
    // another one. No memory is shared but that of files. What the C library knows of the thread
    // is right in the new process but for its number, of which nothing here makes use.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(-1) | Err(_) => Err(io::Error::last_os_error()),
        Ok(pid) => Ok(Pid::from_raw(pid)),
    }
}

/// Has the kernel say how processes of this one have ended, also if who has started it ignores that
/// (SIGCHLD).
fn hear_of_ends() {
    // SAFETY: no handler is set: the signal does nothing by itself.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Has this process die of a panic of this thread, before that drops what the keeper and the next
/// process have as well: descriptors are closed for all of them. Other threads see to it
/// [themselves](crate::threads::Threads).
fn die_of_panics() {
    let (this, tell) = (thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        if thread::current().id() == this {
            std::process::abort();
        }
    }));
}

/// Waits until a process has ended, with all of its threads.
fn wait(process: Pid) -> io::Result<u64> {
    loop {
        match waitid(rustix::process::WaitId::Pid(process), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return Ok(how(&status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn how(status: &WaitIdStatus) -> u64 {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(signal), _) => 1 << 32 | u64::from(signal.cast_unsigned()),
        (None, code) => u64::from(code.unwrap_or_default().cast_unsigned()),
    }
}
