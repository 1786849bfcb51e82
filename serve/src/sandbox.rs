//! What the daemon gives up once it has started.
//!
//! It has its sockets, its sources and its descriptors by then, and from then on reads what it does
//! not trust. [`Sandbox::enter`] leaves it what serving needs:
//!
//! | means | effect |
//! |---|---|
//! | `no_new_privs` | no program that it could run would have more privileges |
//! | capabilities | none, but `CAP_KILL` if [`Sandbox::kills_other_users`] says so; the bounding and ambient sets are empty |
//! | Landlock | no file can be opened, made or run; only in [`Sandbox::removable`] one can be removed, and in [`Sandbox::writable`] one can be made and written; no TCP, no abstract sockets |
//! | seccomp | the system calls of the table below; any other fails with `EPERM` |
//!
//! A call that is not in the table fails and does not end the process: a C library that makes
//! another one than before is a failed operation, not a dead daemon under all of its clients.
//! (Calls of another architecture, as 32-bit ones, do end it.)
//!
//! | calls | for |
//! |---|---|
//! | `read` `readv` `pread64` `preadv` `preadv2` `write` `writev` `lseek` `close` | sources, events, logs |
//! | `memfd_create` `ftruncate` `fallocate`; `getdents64` of directories that are open | what is noted for the next process |
//! | `fstat`, and with `AT_EMPTY_PATH` `newfstatat` `statx` | the lengths of open files |
//! | `fcntl` to copy a descriptor, and for flags and seals | copies of descriptors, and their checks; files that stay as long as they are |
//! | `readlink` `readlinkat` | `/proc/self/fd`: what a descriptor is |
//! | `unlink` `unlinkat`, if anything is removable | the daemon's socket, at its end |
//! | `open` `openat`, if anything is writable | records of what clients ask for |
//! | `ioctl` with `UFFDIO_COPY` `UFFDIO_ZEROPAGE` `UFFDIO_WAKE` `UFFDIO_POISON` `UFFDIO_UNREGISTER` `FIONBIO` `FIONREAD` | filling pages, and letting them go; sockets that do not wait, and what they hold |
//! | `mmap` `mprotect` without `PROT_EXEC`; `munmap` `mremap` `madvise` `mincore` `mlock` `brk` | memory |
//! | `clone` with `CLONE_THREAD`; `set_robust_list` `rseq` `sigaltstack` `sched_getaffinity` `gettid` `getpid` `getppid`; `sched_setscheduler` to `SCHED_IDLE` | threads |
//! | `prctl` with `PR_SET_NAME` | their names |
//! | `futex` `membarrier` `sched_yield` `restart_syscall` | locks |
//! | `exit` `exit_group`, and `tgkill` to this process | ending, aborting |
//! | `rt_sigaction` `rt_sigprocmask` `rt_sigreturn` `rt_sigpending` `rt_sigtimedwait` `rt_sigsuspend` | signals |
//! | `clock_gettime` `clock_getres` `clock_nanosleep` `nanosleep` `gettimeofday` | time |
//! | `epoll_create1` `epoll_ctl` `epoll_wait` `epoll_pwait` `epoll_pwait2` `poll` `ppoll` `eventfd2` `timerfd_create` `timerfd_settime` `timerfd_gettime` | waiting |
//! | `accept4` `recvmsg` `sendmsg` `recvfrom` `sendto` `getsockopt` `getsockname` `shutdown` | clients, on sockets that were made before |
//! | `pidfd_open` `pidfd_send_signal` | the processes of clients |
//! | `wait4` `waitid` | the end of [`ExecHelper`](crate::exec_helper::ExecHelper) |
//! | `getrandom` | hash tables |
//!
//! A [`Keeper`](crate::Keeper) that enters it ([`Sandbox::starts_processes`]) keeps more: `clone`
//! for processes, `tgkill` to any, and `seccomp` and `PR_SET_NO_NEW_PRIVS`, by which each process
//! that it starts [gives these up](enter_as_started).
//!
//! `clone3` fails with `ENOSYS`, since its flags cannot be checked: C libraries then call `clone`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use libc::c_long;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::threads;

/// What the process keeps.
///
/// ```standalone_crate
/// use std::fs::File;
/// use pervma_serve::sandbox::Sandbox;
///
/// // The socket is bound, in a directory like this one, and nothing has started a thread.
/// let sandbox = Sandbox { removable: vec![std::env::temp_dir()], ..Sandbox::default() };
/// println!("sandbox: {}", sandbox.enter()?);
/// assert!(File::open("/dev/null").is_err());
/// # Ok::<(), pervma_serve::sandbox::SandboxError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    /// Directories in and below which files and sockets can be removed.
    pub removable: Vec<PathBuf>,
    /// Directories in and below which files can be made and written, and not read.
    pub writable: Vec<PathBuf>,
    /// Keeps `CAP_KILL`, if there is it: to kill clients of other users.
    pub kills_other_users: bool,
    /// Keeps what a [`Keeper`](crate::Keeper) needs: to start processes, which then
    /// [give that up](enter_as_started).
    pub starts_processes: bool,
}

/// What a [`Sandbox`] is on this kernel, and for this user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How much of what is asked of Landlock.
    pub landlock: Landlock,
    /// Whether there is `CAP_KILL`, the only capability that there can be.
    pub keeps_kill: bool,
    /// Whether the bounding set is empty. It is left as it is where there is no `CAP_SETPCAP`;
    /// `no_new_privs` then keeps programs from gaining what is in it.
    pub bounding_set_is_empty: bool,
}

/// How much Landlock restricts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// All of it.
    Full,
    /// Less than all: before Linux 6.12. Without the newest of its rights, seccomp alone refuses
    /// what they would.
    Partial,
    /// Nothing: the kernel has none, or it is turned off. If anything is removable, then anything
    /// is that the user may remove; if anything is writable, the user's files can be opened.
    Absent,
}

/// Why the process is not in the sandbox. It may have given up a part already, and should end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// There are other threads, which would keep their privileges; or `/proc` cannot be read.
    #[error("the sandbox cannot be entered: {0}")]
    Threads(#[source] io::Error),
    /// The kernel's error, from `prctl` or `capset`.
    #[error("privileges cannot be given up: {0}")]
    Privileges(#[source] io::Error),
    /// A directory of [`Sandbox::removable`] or [`Sandbox::writable`] cannot be opened, or Landlock
    /// has failed.
    #[error("files cannot be restricted: {0}")]
    Landlock(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel has no seccomp filters, or refuses them.
    #[error("system calls cannot be restricted: {0}")]
    Seccomp(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Sandbox {
    /// Gives up everything else, for good, in this process and all that it may start. Threads that
    /// start later are in the sandbox too.
    ///
    /// # Errors
    ///
    /// See [`SandboxError`]. That the kernel has no Landlock is none: the report says it.
    pub fn enter(&self) -> Result<Report, SandboxError> {
        threads::expect_one().map_err(SandboxError::Threads)?;
        let privileges = |errno: Errno| SandboxError::Privileges(errno.into());
        set_no_new_privs(true).map_err(privileges)?;
        let landlock = self.restrict_files().map_err(SandboxError::Landlock)?;
        let bounding_set_is_empty = self.drop_capabilities().map_err(privileges)?;
        let keeps_kill = !capabilities(None).map_err(privileges)?.effective.is_empty();
        self.restrict_calls().map_err(SandboxError::Seccomp)?;
        Ok(Report { landlock, keeps_kill, bounding_set_is_empty })
    }

    fn restrict_files(&self) -> Result<Landlock, Box<dyn std::error::Error + Send + Sync>> {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(ABI::V6))?
            .handle_access(AccessNet::from_all(ABI::V6))?
            .scope(Scope::AbstractUnixSocket)?
            .create()?;
        let writes = AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::Truncate;
        let removable = self.removable.iter().map(|folder| (folder, AccessFs::RemoveFile.into()));
        let writable = self.writable.iter().map(|folder| (folder, writes));
        for (directory, accesses) in removable.chain(writable) {
            let rule = PathBeneath::new(PathFd::new(directory)?, accesses);
            ruleset = ruleset.add_rule(rule)?;
        }
        Ok(match ruleset.restrict_self()?.ruleset {
            RulesetStatus::FullyEnforced => Landlock::Full,
            RulesetStatus::PartiallyEnforced => Landlock::Partial,
            RulesetStatus::NotEnforced => Landlock::Absent,
        })
    }

    /// Returns whether the bounding set is empty.
    fn drop_capabilities(&self) -> Result<bool, Errno> {
        let mut is_empty = true;
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            match capability_is_in_bounding_set(capability) {
                Ok(true) => match remove_capability_from_bounding_set(capability) {
                    Ok(()) => {}
                    Err(Errno::PERM) => is_empty = false,
                    Err(error) => return Err(error),
                },
                Ok(false) => {}
                // The kernel has no such capability, and none with a larger number.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error),
            }
        }
        clear_ambient_capability_set()?;
        let kept =
            if self.kills_other_users { CapabilitySet::KILL } else { CapabilitySet::empty() };
        let kept = kept & capabilities(None)?.permitted;
        let inheritable = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
        Ok(is_empty)
    }

    fn restrict_calls(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let architecture = std::env::consts::ARCH.try_into()?;
        let filter = |calls, otherwise, listed| -> Result<BpfProgram, seccompiler::BackendError> {
            SeccompFilter::new(calls, otherwise, listed, architecture)?.try_into()
        };
        let refuse = |errno: libc::c_int| SeccompAction::Errno(errno.cast_unsigned());
        let no_clone3 = [(libc::SYS_clone3, vec![])].into();
        let no_clone3 = filter(no_clone3, SeccompAction::Allow, refuse(libc::ENOSYS))?;
        let removing: &[&[Call]] =
            if self.removable.is_empty() { &[] } else { &[REMOVING, OLDER_REMOVING] };
        let opening: &[&[Call]] =
            if self.writable.is_empty() { &[] } else { &[OPENING, OLDER_OPENING] };
        // Of both filters the one that refuses decides: `clone3` is for the first.
        let mut calls = BTreeMap::from([(libc::SYS_clone3, vec![])]);
        let optional = removing.iter().chain(opening).copied().flatten();
        for call in CALLS.iter().chain(OLDER).chain(optional) {
            calls.insert(call.number, call.only.rules()?);
        }
        for call in if self.starts_processes { STARTING } else { &[] } {
            let rules = match call.number {
                libc::SYS_prctl => [call.only.rules()?, Only::Equal(0, PRCTLS).rules()?].concat(),
                _ => call.only.rules()?,
            };
            calls.insert(call.number, rules);
        }
        seccompiler::apply_filter(&no_clone3)?;
        seccompiler::apply_filter(&filter(calls, refuse(libc::EPERM), SeccompAction::Allow)?)?;
        Ok(())
    }
}

/// Gives up, in a process that was started by one with [`Sandbox::starts_processes`], what that has
/// kept. It is to be called by the only thread.
///
/// # Errors
///
/// See [`SandboxError`].
pub fn enter_as_started() -> Result<(), SandboxError> {
    restrict_started().map_err(SandboxError::Seccomp)
}

fn restrict_started() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let eperm = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let mut refused = BTreeMap::from([(libc::SYS_seccomp, vec![])]);
    let other_clones = Only::Without(0, libc::CLONE_THREAD as u64);
    refused.insert(libc::SYS_clone, other_clones.rules()?);
    refused.insert(libc::SYS_tgkill, Only::OtherProcess(0).rules()?);
    let filter = SeccompFilter::new(refused, SeccompAction::Allow, eperm, architecture)?;
    let filter: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&filter)?)
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = match self.landlock {
            Landlock::Full => "files by Landlock",
            Landlock::Partial => "files by Landlock, of an older version",
            Landlock::Absent => "files not by Landlock, which the kernel does not have",
        };
        let capabilities = if self.keeps_kill { "CAP_KILL alone" } else { "no capabilities" };
        write!(formatter, "{files}; system calls by seccomp; {capabilities}")?;
        match self.bounding_set_is_empty {
            true => Ok(()),
            false => formatter.write_str("; for want of CAP_SETPCAP a bounding set"),
        }
    }
}

/// A system call that is left.
struct Call {
    #[cfg(test)]
    name: &'static str,
    number: c_long,
    only: Only,
}

/// What an argument must be; arguments have numbers from 0 on.
#[derive(Clone, Copy)]
enum Only {
    Any,
    /// One of these.
    Equal(u8, &'static [u64]),
    /// It has all of these bits.
    With(u8, u64),
    /// It has none of these bits.
    Without(u8, u64),
    /// The number of this process.
    ThisProcess(u8),
    /// Another one.
    OtherProcess(u8),
}

impl Only {
    fn rules(self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        use SeccompCmpOp::{Eq, MaskedEq, Ne};
        // The kernel looks at no more than the lower half of any of these arguments.
        let rule = |argument, comparison, value| {
            let half = SeccompCmpArgLen::Dword;
            SeccompRule::new(vec![SeccompCondition::new(argument, half, comparison, value)?])
        };
        match self {
            Self::Any => Ok(vec![]),
            Self::Equal(argument, values) => {
                values.iter().map(|&value| rule(argument, Eq, value)).collect()
            }
            Self::With(argument, bits) => Ok(vec![rule(argument, MaskedEq(bits), bits)?]),
            Self::Without(argument, bits) => Ok(vec![rule(argument, MaskedEq(bits), 0)?]),
            Self::ThisProcess(argument) => {
                Ok(vec![rule(argument, Eq, u64::from(std::process::id()))?])
            }
            Self::OtherProcess(argument) => {
                Ok(vec![rule(argument, Ne, u64::from(std::process::id()))?])
            }
        }
    }
}

/// `ioctl`s: of userfaultfds, the one by which the standard library makes sockets nonblocking, and
/// the one that says how many bytes can be read.
const IOCTLS: &[u64] = &[
    UFFDIO_UNREGISTER,
    UFFDIO_COPY,
    UFFDIO_ZEROPAGE,
    UFFDIO_WAKE,
    UFFDIO_POISON,
    FIONBIO,
    FIONREAD,
];
const UFFDIO_UNREGISTER: u64 = 0x8010_AA01;
const UFFDIO_COPY: u64 = 0xC028_AA03;
const UFFDIO_ZEROPAGE: u64 = 0xC020_AA04;
const UFFDIO_WAKE: u64 = 0x8010_AA02;
const UFFDIO_POISON: u64 = 0xC020_AA08;
const FIONBIO: u64 = 0x5421;
const FIONREAD: u64 = 0x541B;

const FCNTLS: &[u64] = &[
    libc::F_DUPFD as u64,
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_GET_SEALS as u64,
    libc::F_ADD_SEALS as u64,
];

/// Beside the one of names, what it takes to give up more.
const PRCTLS: &[u64] = &[libc::PR_SET_NO_NEW_PRIVS as u64];

/// Rows of system calls, with what an argument must be.
macro_rules! calls {
    ($($number:ident $($only:ident($($value:expr),*))?,)*) => {
        &[$(Call {
            #[cfg(test)]
            name: stringify!($number),
            number: libc::$number,
            only: calls!(@ $($only($($value),*))?),
        },)*]
    };
    (@) => { Only::Any };
    (@ $only:ident($($value:expr),*)) => { Only::$only($($value),*) };
}

const EXECUTABLE: u64 = libc::PROT_EXEC as u64;
const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;

const CALLS: &[Call] = calls! {
    // Reading and writing.
    SYS_read, SYS_readv, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_write, SYS_writev,
    SYS_lseek, SYS_close, SYS_fstat, SYS_newfstatat With(3, EMPTY_PATH),
    SYS_statx With(2, EMPTY_PATH), SYS_fcntl Equal(1, FCNTLS), SYS_readlinkat,
    SYS_ioctl Equal(1, IOCTLS), SYS_memfd_create, SYS_ftruncate, SYS_fallocate, SYS_getdents64,
    // Memory.
    SYS_mmap Without(2, EXECUTABLE), SYS_mprotect Without(2, EXECUTABLE), SYS_munmap, SYS_mremap,
    SYS_madvise, SYS_mincore, SYS_mlock, SYS_brk,
    // Threads.
    SYS_clone With(0, libc::CLONE_THREAD as u64), SYS_set_robust_list, SYS_rseq, SYS_sigaltstack,
    SYS_sched_getaffinity, SYS_gettid, SYS_getpid, SYS_getppid,
    SYS_sched_setscheduler Equal(1, &[libc::SCHED_IDLE as u64]),
    SYS_prctl Equal(0, &[libc::PR_SET_NAME as u64]),
    SYS_futex, SYS_membarrier, SYS_sched_yield, SYS_restart_syscall, SYS_exit, SYS_exit_group,
    SYS_tgkill ThisProcess(0),
    // Signals.
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigpending,
    SYS_rt_sigtimedwait, SYS_rt_sigsuspend,
    // Time.
    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday,
    // Waiting.
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_ppoll, SYS_eventfd2,
    SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime,
    // Clients.
    SYS_accept4, SYS_recvmsg, SYS_sendmsg, SYS_recvfrom, SYS_sendto, SYS_getsockopt, SYS_getsockname,
    SYS_shutdown,
    SYS_pidfd_open, SYS_pidfd_send_signal, SYS_wait4, SYS_waitid, SYS_getrandom,
};

/// Calls that start processes, and those by which these give up what they have more than others.
const STARTING: &[Call] = calls! {
    SYS_clone, SYS_tgkill, SYS_seccomp, SYS_prctl Equal(0, &[libc::PR_SET_NAME as u64]),
};

/// Calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[Call] = calls! { SYS_readlink, SYS_epoll_wait, SYS_poll, };
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[Call] = &[];

/// Calls that remove files.
const REMOVING: &[Call] = calls! { SYS_unlinkat, };
#[cfg(target_arch = "x86_64")]
const OLDER_REMOVING: &[Call] = calls! { SYS_unlink, };
#[cfg(not(target_arch = "x86_64"))]
const OLDER_REMOVING: &[Call] = &[];

/// Calls that open files; which ones is for Landlock to say.
const OPENING: &[Call] = calls! { SYS_openat, };
#[cfg(target_arch = "x86_64")]
const OLDER_OPENING: &[Call] = calls! { SYS_open, };
#[cfg(not(target_arch = "x86_64"))]
const OLDER_OPENING: &[Call] = &[];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::{self, File};
    use std::net::TcpListener;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;

    /// Runs a function in a thread of its own, which gives up what the other tests need.
    fn in_a_thread(function: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(function).join().unwrap());
    }

    fn errno<T>(result: io::Result<T>) -> Option<i32> {
        result.err().map(|error| error.raw_os_error().unwrap())
    }

    #[test]
    fn the_table_of_calls_is_the_list_of_calls() {
        let documented: Vec<_> = include_str!("sandbox.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | `")?.split(" | ").next())
            .flat_map(|cell| cell.split('`').filter(|word| word.chars().all(is_of_name)))
            .filter(|word| !word.is_empty())
            .collect();
        let lists = [CALLS, OLDER, REMOVING, OLDER_REMOVING, OPENING, OLDER_OPENING];
        let listed = lists.into_iter().flatten();
        let listed: Vec<_> = listed.map(|call| call.name.trim_start_matches("SYS_")).collect();
        // Other words of the table that look like calls.
        let others = BTreeSet::from(["no_new_privs", "calls"]);
        let documented_set: BTreeSet<_> =
            documented.iter().copied().filter(|name| !others.contains(name)).collect();
        if cfg!(target_arch = "x86_64") {
            assert_eq!(documented_set, listed.iter().copied().collect());
        }
        assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len(), "one row each");
    }

    fn is_of_name(character: char) -> bool {
        matches!(character, 'a'..='z' | '0'..='9' | '_')
    }

    #[test]
    fn landlock_by_itself_leaves_only_removals_in_the_directory() {
        let [removable, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [socket, file] = ["socket", "file"].map(|name| removable.path().join(name));
        let other = other.path().join("file");
        let _listener = UnixListener::bind(&socket).unwrap();
        File::create(&other).unwrap();
        File::create(&file).unwrap();
        let name = format!("pervma-sandbox-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let _abstract = UnixListener::bind_addr(&address).unwrap();
        in_a_thread(|| {
            let sandbox =
                Sandbox { removable: vec![removable.path().into()], ..Sandbox::default() };
            let landlock = sandbox.restrict_files().unwrap();
            if landlock != Landlock::Full {
                return println!("NOT RUN: the kernel has no Landlock of Linux 6.12: {landlock:?}");
            }
            let refused = Some(libc::EACCES);
            assert_eq!(errno(File::open(&other)), refused);
            assert_eq!(errno(File::open(&file)), refused);
            assert_eq!(errno(File::open("/proc/self/status")), refused);
            assert_eq!(errno(File::create(removable.path().join("new"))), refused);
            assert_eq!(errno(fs::read_dir(removable.path())), refused);
            assert_eq!(errno(fs::create_dir(removable.path().join("new"))), refused);
            assert_eq!(errno(fs::rename(&file, removable.path().join("new"))), refused);
            assert_eq!(errno(fs::remove_file(&other)), refused);
            assert_eq!(errno(std::process::Command::new("/bin/true").status()), refused);
            assert_eq!(errno(TcpListener::bind("127.0.0.1:0")), refused);
            let connected = UnixStream::connect_addr(&address);
            assert_eq!(errno(connected), Some(libc::EPERM));
            fs::remove_file(&socket).unwrap();
            fs::remove_file(&file).unwrap();
        });
    }

    #[test]
    fn what_is_writable_can_be_made_and_not_read() {
        let [writable, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [new, old] = ["new", "old"].map(|name| writable.path().join(name));
        fs::write(&old, "old").unwrap();
        fs::write(other.path().join("old"), "old").unwrap();
        in_a_thread(|| {
            let sandbox = Sandbox { writable: vec![writable.path().into()], ..Sandbox::default() };
            let landlock = sandbox.restrict_files().unwrap();
            if landlock != Landlock::Full {
                return println!("NOT RUN: the kernel has no Landlock of Linux 6.12: {landlock:?}");
            }
            fs::write(&new, "new").unwrap();
            fs::write(&old, "new").unwrap();
            let refused = Some(libc::EACCES);
            assert_eq!(errno(File::open(&old)), refused);
            assert_eq!(errno(fs::remove_file(&old)), refused);
            assert_eq!(errno(fs::write(other.path().join("new"), "new")), refused);
            assert_eq!(errno(fs::write(other.path().join("old"), "new")), refused);
        });
        assert_eq!(fs::read_to_string(&new).unwrap(), "new");
        assert_eq!(fs::read_to_string(&old).unwrap(), "new");
    }

    #[test]
    fn a_kernel_without_landlock_is_reported() {
        in_a_thread(|| {
            let filter = SeccompFilter::new(
                [(libc::SYS_landlock_create_ruleset, vec![])].into(),
                SeccompAction::Allow,
                SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
                std::env::consts::ARCH.try_into().unwrap(),
            );
            let program: BpfProgram = filter.unwrap().try_into().unwrap();
            seccompiler::apply_filter(&program).unwrap();
            let directory = tempfile::tempdir().unwrap();
            let sandbox =
                Sandbox { removable: vec![directory.path().into()], ..Sandbox::default() };
            assert_eq!(sandbox.restrict_files().unwrap(), Landlock::Absent);
        });
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        in_a_thread(|| {
            let sandbox = Sandbox { removable: vec!["/no/such".into()], ..Sandbox::default() };
            assert!(sandbox.restrict_files().is_err());
        });
    }

    #[test]
    fn no_capability_is_left_but_the_one_to_kill() {
        for kills_other_users in [false, true] {
            in_a_thread(|| {
                let before = capabilities(None).unwrap().permitted;
                let sandbox = Sandbox { kills_other_users, ..Sandbox::default() };
                let is_empty = sandbox.drop_capabilities().unwrap();
                assert_eq!(is_empty, before.contains(CapabilitySet::SETPCAP));
                let left = capabilities(None).unwrap();
                let kill = before & CapabilitySet::KILL;
                let kept = if kills_other_users { kill } else { CapabilitySet::empty() };
                assert_eq!((left.permitted, left.effective), (kept, kept));
                assert!(left.inheritable.is_empty());
                let is_bounded = |capability| capability_is_in_bounding_set(capability).unwrap();
                if is_empty {
                    assert!(!is_bounded(CapabilitySet::CHOWN) && !is_bounded(CapabilitySet::KILL));
                } else {
                    println!("NOT RUN: the bounding set needs CAP_SETPCAP");
                }
            });
        }
    }

    #[test]
    fn reports_say_what_there_is_not() {
        let landlock = Landlock::Full;
        let full = Report { landlock, keeps_kill: false, bounding_set_is_empty: true };
        let text = "files by Landlock; system calls by seccomp; no capabilities";
        assert_eq!(full.to_string(), text);
        let landlock = Landlock::Absent;
        let least = Report { landlock, keeps_kill: true, bounding_set_is_empty: false };
        for part in ["not by Landlock", "CAP_KILL alone", "bounding set"] {
            assert!(least.to_string().contains(part), "{least}");
        }
    }
}
