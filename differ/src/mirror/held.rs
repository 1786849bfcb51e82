//! Open files of other processes, held as long as something maps them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use libc::{c_int, c_long, pid_t};
use pervma_linux::{Errno, File, FileFacts, MapOperation, OpenFile, StdPlatform, abi};

use crate::files::is_noexec;
use crate::ptrace::check;

/// An open file of a traced process. This process has it open, too, and so knows it again: it is
/// dropped with the last mapping, as the kernel's own reference is.
#[derive(Debug)]
pub(crate) struct Held {
    descriptor: OwnedFd,
    known: OpenFile<StdPlatform>,
    /// Whether what its mappings are is the affair of a driver.
    pub(crate) is_driver: bool,
}

impl File for Held {
    fn facts(&self) -> FileFacts {
        self.known.facts()
    }

    fn path(&self) -> String {
        self.known.path()
    }
}

impl Held {
    /// Its size in pages; none if it has no size.
    pub(crate) fn pages(&self) -> Option<usize> {
        let about = stat(&self.descriptor).ok()?;
        let size = usize::try_from(about.st_size).ok()?;
        (about.st_mode & libc::S_IFMT == libc::S_IFREG).then(|| size.div_ceil(abi::PAGE))
    }

    /// Its name has changed.
    pub(crate) fn rename(&self, name: &str) {
        self.known.rename(name);
    }
}

/// The open files that mappings hold, by device and inode.
#[derive(Debug, Default)]
pub(crate) struct HeldFiles(HashMap<(u64, u64), Vec<Weak<Held>>>);

impl HeldFiles {
    /// The open file of a descriptor of a thread; none if it cannot be used for a mapping.
    pub(crate) fn of_descriptor(&mut self, tid: pid_t, fd: c_int) -> io::Result<Option<Arc<Held>>> {
        let descriptor = match copy(tid, fd) {
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Ok(None),
            descriptor => descriptor?,
        };
        // SAFETY: takes numbers.
        let mode = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL) };
        if mode & libc::O_PATH != 0 {
            return Ok(None);
        }
        let about = stat(&descriptor)?;
        let same = self.0.entry((about.st_dev, about.st_ino)).or_default();
        same.retain(|held| held.strong_count() > 0);
        for held in same.iter().filter_map(Weak::upgrade) {
            if is_same(&held.descriptor, &descriptor)? {
                let seals = seals_of(&descriptor);
                held.known.update(|facts| set_seals(facts, seals));
                return Ok(Some(held));
            }
        }
        let (facts, is_driver) = facts_of(&descriptor, &about, mode)?;
        let link = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?;
        let known = OpenFile::new(link.to_string_lossy(), facts);
        let held = Arc::new(Held { descriptor, known, is_driver });
        same.push(Arc::downgrade(&held));
        Ok(Some(held))
    }
}

/// Copies a descriptor of a thread to this process.
fn copy(tid: pid_t, fd: c_int) -> io::Result<OwnedFd> {
    /// `PIDFD_THREAD`: a thread may have descriptors of its own.
    const THREAD: c_int = libc::O_EXCL;
    // SAFETY: takes numbers.
    let thread = check(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, THREAD) })?;
    let thread = owned(thread)?;
    // SAFETY: takes numbers.
    let copied = unsafe { libc::syscall(libc::SYS_pidfd_getfd, thread.as_raw_fd(), fd, 0) };
    owned(check(copied)?)
}

fn owned(number: c_long) -> io::Result<OwnedFd> {
    let number = c_int::try_from(number).map_err(io::Error::other)?;
    // SAFETY: a system call has just opened it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether both descriptors are of one open file.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> io::Result<bool> {
    /// `KCMP_FILE`.
    const FILE: c_int = 0;
    let pid = std::process::id();
    let (one, other) = (one.as_raw_fd(), other.as_raw_fd());
    // SAFETY: takes numbers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, FILE, one, other) };
    check(order).map(|order| order == 0)
}

fn stat(descriptor: &OwnedFd) -> io::Result<libc::stat> {
    let mut about = MaybeUninit::uninit();
    // SAFETY: the kernel writes a value of this size.
    check(unsafe { libc::fstat(descriptor.as_raw_fd(), about.as_mut_ptr()) }.into())?;
    // SAFETY: it was written.
    Ok(unsafe { about.assume_init() })
}

fn seals_of(descriptor: &OwnedFd) -> c_int {
    // SAFETY: takes numbers. A file that cannot be sealed is an error, and has no seals.
    let seals = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GET_SEALS) };
    seals.max(0)
}

fn set_seals(facts: &mut FileFacts, seals: c_int) {
    facts.seal_write = seals & libc::F_SEAL_WRITE != 0;
    facts.seal_future_write = seals & libc::F_SEAL_FUTURE_WRITE != 0;
}

/// The facts about an open file, and whether a driver decides what mappings of it are.
fn facts_of(
    descriptor: &OwnedFd,
    about: &libc::stat,
    mode: c_int,
) -> io::Result<(FileFacts, bool)> {
    let mut system = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel writes a value of this size.
    check(unsafe { libc::fstatfs(descriptor.as_raw_fd(), system.as_mut_ptr()) }.into())?;
    // SAFETY: it was written.
    let system = unsafe { system.assume_init() };
    let is_ext4 = system.f_type == libc::EXT4_SUPER_MAGIC;
    let is_xfs = system.f_type == libc::XFS_SUPER_MAGIC;
    let is_disk = is_ext4 || is_xfs || system.f_type == libc::BTRFS_SUPER_MAGIC;
    let is_of_kernfs = KERNFS.contains(&system.f_type);
    let is_kernels = system.f_type == libc::PROC_SUPER_MAGIC || is_of_kernfs;
    let zero = libc::makedev(1, 5);
    let kind = about.st_mode & libc::S_IFMT;
    let (operation, is_driver) = match kind {
        libc::S_IFREG if system.f_type == libc::PROC_SUPER_MAGIC => (MapOperation::Absent, false),
        libc::S_IFREG if system.f_type == NAMESPACES => (MapOperation::Absent, false),
        libc::S_IFREG if is_of_kernfs => (MapOperation::Refuses(Errno::ENODEV), false),
        libc::S_IFREG if OWN_FLAGS.contains(&system.f_type) => (MapOperation::Accepts, true),
        libc::S_IFREG if is_ext4 || is_xfs => (MapOperation::RefusesSync, false),
        libc::S_IFREG | libc::S_IFBLK => (MapOperation::Accepts, false),
        libc::S_IFDIR | libc::S_IFIFO => (MapOperation::Absent, false),
        libc::S_IFCHR if about.st_rdev == zero => (MapOperation::Zero, false),
        _ => (MapOperation::Accepts, true),
    };
    let access = mode & libc::O_ACCMODE;
    let (device, inode) = identity(descriptor, about)?;
    let mut facts = FileFacts {
        readable: access != libc::O_WRONLY,
        writable: access != libc::O_RDONLY,
        append_only: is_append_only(descriptor),
        noexec: is_kernels || is_noexec(descriptor)?,
        knows_sync: is_ext4 || is_xfs,
        operation,
        huge_aligned: is_disk && kind == libc::S_IFREG,
        stacked: system.f_type == libc::OVERLAYFS_SUPER_MAGIC,
        device,
        inode,
        ..FileFacts::new()
    };
    set_seals(&mut facts, seals_of(descriptor));
    Ok((facts, is_driver))
}

/// `SYSFS_MAGIC`, `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC`.
const KERNFS: [libc::__fsword_t; 3] = [0x6265_6572, 0x27_e0eb, 0x6367_7270];
/// `NSFS_MAGIC`.
const NAMESPACES: libc::__fsword_t = 0x6e73_6673;
/// File systems whose mappings have flags of their own; the second one is `SECRETMEM_MAGIC`.
const OWN_FLAGS: [libc::__fsword_t; 2] = [libc::HUGETLBFS_MAGIC, 0x5345_434d];

fn is_append_only(descriptor: &OwnedFd) -> bool {
    let mut about = MaybeUninit::<libc::statx>::zeroed();
    let (fd, to) = (descriptor.as_raw_fd(), about.as_mut_ptr());
    // SAFETY: an empty path, and the kernel writes a value of this size.
    let asked = unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, 0, to) };
    // SAFETY: integers, which are zero if they were not written.
    let about = unsafe { about.assume_init() };
    /// `STATX_ATTR_APPEND`.
    const APPEND: u64 = 0x20;
    asked == 0 && about.stx_attributes & APPEND != 0
}

/// Device and inode as maps show them. What `stat` says may be that of another layer, where a file
/// system has several.
fn identity(descriptor: &OwnedFd, about: &libc::stat) -> io::Result<((u32, u32), u64)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd()))?;
    let field = |name: &str| -> Option<&str> {
        info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
    };
    let inode = field("ino:").and_then(|inode| inode.parse().ok()).unwrap_or(about.st_ino);
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounted = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        if fields.next() != field("mnt_id:") {
            return None;
        }
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    let stated = (libc::major(about.st_dev), libc::minor(about.st_dev));
    Ok((mounted.unwrap_or(stated), inode))
}
