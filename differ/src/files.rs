//! The files that are mapped, one of each kind that calls treat differently, and the changes that
//! are made to them meanwhile.

use std::any::Any;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libc::c_int;
use pervma_linux::{
    Errno, File, FileFacts, MapOperation, Object, OpenFile, Source, StdPlatform, VmFlags, Vma, abi,
};
use tempfile::TempDir;

use crate::outcome::Outcome;

/// Pages in most files, at first.
pub(crate) const PAGES: usize = 12;
/// Pages in the second file, so that huge pages of it are mapped whole.
pub(crate) const LARGE: usize = 1500;

/// Numbers of files. The last one is that of no file.
pub(crate) const FIRST: usize = 0;
pub(crate) const SECOND: usize = 1;
pub(crate) const ON_DISK: usize = 7;
pub(crate) const ZERO: usize = 14;
pub(crate) const AGAIN: usize = 23;
pub(crate) const COUNT: usize = 24;

const NO_SUCH_FILE: Option<Errno> = Errno::new(2);
const TOO_LARGE: Option<Errno> = Errno::new(27);

/// The state that all open files of an inode share.
#[derive(Debug)]
struct Inode {
    /// The folder of its name, if it has one.
    folder: Option<Arc<Path>>,
    path: String,
    seals: c_int,
    pages: usize,
}

/// An open file, as the model has it.
#[derive(Clone, Debug)]
pub struct Opened {
    inode: Arc<Mutex<Inode>>,
    facts: FileFacts,
    kind: Kind,
}

/// The kind of a file, by which calls about files differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A file in memory, which can be sealed.
    Memory,
    /// A file on a disk.
    Disk,
    /// A pipe, a directory, a device, or a file of the kernel's.
    Other,
}

/// The open files as the model has them, by their numbers in steps, with `None` for a descriptor
/// that calls take for one that is not open.
pub type OpenFiles = [Option<Arc<Opened>>];

impl File for Opened {
    fn facts(&self) -> FileFacts {
        let seals = self.inode().seals;
        FileFacts {
            seal_write: seals & libc::F_SEAL_WRITE != 0,
            seal_future_write: seals & libc::F_SEAL_FUTURE_WRITE != 0,
            ..self.facts
        }
    }

    fn path(&self) -> String {
        self.inode().path.clone()
    }
}

impl Opened {
    fn inode(&self) -> MutexGuard<'_, Inode> {
        self.inode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open file that a mapping maps, if it is one of these.
    pub(crate) fn of(vma: &Vma) -> Option<&Self> {
        let (Source::File(file) | Source::Zero(file)) = &vma.source else { return None };
        let file: &dyn Any = &**file;
        file.downcast_ref()
    }

    /// The shared anonymous memory of this many pages.
    pub(crate) fn of_object(object: &Object) -> Self {
        let file = OpenFile::<StdPlatform>::of_object(object);
        let pages = object.size / abi::PAGE;
        let inode = Inode { folder: None, path: file.path(), seals: libc::F_SEAL_SEAL, pages };
        Self { inode: Arc::new(Mutex::new(inode)), facts: file.facts(), kind: Kind::Memory }
    }

    /// Writes it back (`fsync`), which only files with contents of their own can do.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        if self.kind == Kind::Other { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// The same file, opened anew, if it is one in memory.
    pub(crate) fn again(&self) -> Option<Self> {
        let facts = FileFacts { readable: true, writable: true, ..self.facts };
        (self.kind == Kind::Memory).then(|| Self { facts, ..self.clone() })
    }

    /// Its length in pages.
    pub(crate) fn pages(&self) -> usize {
        self.inode().pages
    }

    /// Checks whether a hole can be punched into it, up to this page (`fallocate`).
    pub(crate) fn punch(&self, end: u64) -> Result<(), Errno> {
        let largest = match self.kind {
            // Pages have numbers of 32 bits in ext4.
            Kind::Disk => 0xffff_ffff,
            _ => i64::MAX.unsigned_abs() / abi::PAGE as u64,
        };
        if end > largest {
            return Err(TOO_LARGE.unwrap_or(Errno::EINVAL));
        }
        // A seal forbids it, even where writing was possible before.
        let seals = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;
        if self.inode().seals & seals != 0 { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Seals it, unless something in `vmas` may write it.
    pub(crate) fn add_seals(
        &self,
        seals: c_int,
        mut vmas: impl Iterator<Item = Vma>,
    ) -> Result<(), Errno> {
        if !self.facts.writable {
            return Err(Errno::EPERM);
        }
        if self.kind != Kind::Memory {
            return Err(Errno::EINVAL);
        }
        if self.inode().seals & libc::F_SEAL_SEAL != 0 {
            return Err(Errno::EPERM);
        }
        let writes = |vma: &Vma| {
            let same = Self::of(vma).is_some_and(|file| Arc::ptr_eq(&file.inode, &self.inode));
            same && vma.flags.has(VmFlags::SHARED | VmFlags::MAYWRITE)
        };
        let new = seals & !self.inode().seals;
        if new & libc::F_SEAL_WRITE != 0 && vmas.any(|vma| writes(&vma)) {
            return Err(Errno::EBUSY);
        }
        self.inode().seals |= seals;
        Ok(())
    }

    /// Sets its length.
    pub(crate) fn truncate(&self, pages: usize) -> Result<(), Errno> {
        if !self.facts.writable || self.kind == Kind::Other {
            return Err(Errno::EINVAL);
        }
        if self.facts.append_only {
            return Err(Errno::EPERM);
        }
        self.inode().pages = pages;
        Ok(())
    }

    /// Changes its name, if it has one, or takes it away.
    pub(crate) fn rename(&self, name: Option<usize>) -> Result<(), Errno> {
        let mut inode = self.inode();
        let folder = inode.folder.take();
        let folder = folder.ok_or(NO_SUCH_FILE.unwrap_or(Errno::EINVAL))?;
        match name {
            None => inode.path += " (deleted)",
            Some(name) => {
                inode.path = path(&folder, name).to_string_lossy().into_owned();
                inode.folder = Some(folder);
            }
        }
        Ok(())
    }
}

/// The path of the name with this number. Some names are strange ones.
fn path(folder: &Path, name: usize) -> PathBuf {
    folder.join(match name {
        0 => "plain".to_owned(),
        1 => "two\nlines".to_owned(),
        2 => "back\\slash\tand tab (deleted)".to_owned(),
        other => other.to_string(),
    })
}

/// The files on both sides.
#[derive(Debug)]
pub(crate) struct Files {
    descriptors: Vec<OwnedFd>,
    opened: Vec<Option<Arc<Opened>>>,
    /// What is mapped in the process, and was opened.
    again: Option<OwnedFd>,
    /// The path of each, if it has a name.
    named: Vec<Option<PathBuf>>,
    /// The folder of those with a name, as maps show it.
    folder: Arc<Path>,
    /// Removes the folder in the end.
    _folder: TempDir,
}

impl Files {
    /// Makes the files. Their order is part of what a sequence of steps means.
    pub(crate) fn new() -> io::Result<Self> {
        let temporary = TempDir::with_prefix("pervma-differ-")?;
        let mut files = Self {
            descriptors: Vec::new(),
            opened: Vec::new(),
            again: None,
            named: Vec::new(),
            folder: fs::canonicalize(temporary.path())?.into(),
            _folder: temporary,
        };
        let first = files.memory(c"first", PAGES, 0)?;
        files.memory(c"second", LARGE, 0)?;
        files.memory(c"sealed", PAGES, libc::F_SEAL_WRITE)?;
        files.memory(c"closing", PAGES, libc::F_SEAL_FUTURE_WRITE)?;
        files.reopen(first, libc::O_RDONLY)?;
        files.reopen(first, libc::O_WRONLY)?;
        files.reopen(first, libc::O_RDWR)?;
        let disk = files.on_disk()?;
        files.reopen(disk, libc::O_RDONLY)?;
        files.append_only()?;
        let kernels = FileFacts { noexec: true, writable: false, ..FileFacts::new() };
        // Its file operation `mmap` refuses everything.
        let refuses = MapOperation::Refuses(Errno::ENODEV);
        let sysfs = FileFacts { operation: refuses, ..kernels };
        files.other(open("/sys/kernel/mm/transparent_hugepage/enabled", 0), sysfs)?;
        // It has no such operation.
        let absent = MapOperation::Absent;
        files.other(open("/proc/self/status", 0), FileFacts { operation: absent, ..kernels })?;
        let (reader, _) = io::pipe()?;
        let pipe = FileFacts { operation: absent, max_bytes: u64::MAX, ..kernels };
        files.other(Ok(reader.into()), pipe)?;
        files.memory(c"to be sealed", PAGES, 0)?;
        for mode in [libc::O_RDWR, libc::O_RDONLY] {
            files.zero(mode)?;
        }
        let path_only = open("/proc/self/fd/0", libc::O_PATH);
        files.descriptors.push(path_only.or_else(|_| open("/", libc::O_PATH))?);
        files.opened.push(None);
        files.named.push(None);
        files.unmappable(kernels)?;
        // The one that is opened later.
        files.opened.push(None);
        files.named.push(None);
        debug_assert_eq!(files.opened.len(), COUNT);
        Ok(files)
    }

    /// The descriptors, for the process.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = &OwnedFd> {
        self.descriptors.iter()
    }

    /// The files as the model has them.
    pub(crate) fn opened(&self) -> &OpenFiles {
        &self.opened
    }

    /// Opens what another process has mapped, at this path of its.
    pub(crate) fn open_again(&mut self, path: &str) -> io::Result<()> {
        self.again = Some(open(path, libc::O_RDWR)?);
        Ok(())
    }

    fn push(&mut self, descriptor: OwnedFd, named: Option<PathBuf>, opened: Opened) -> usize {
        self.descriptors.push(descriptor);
        self.named.push(named);
        self.opened.push(Some(Arc::new(opened)));
        self.opened.len() - 1
    }

    /// A file in memory.
    fn memory(&mut self, name: &CStr, pages: usize, seals: c_int) -> io::Result<usize> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: a string that ends with a zero.
        let descriptor = owned(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
        truncate(&descriptor, pages)?;
        if seals != 0 {
            add_seals(&descriptor, seals)?;
        }
        let opened = opened(&descriptor, None, pages, FileFacts::new(), Kind::Memory)?;
        opened.inode().seals = seals;
        Ok(self.push(descriptor, None, opened))
    }

    /// Opens a file again, with another mode.
    fn reopen(&mut self, file: usize, mode: c_int) -> io::Result<usize> {
        let Some(opened) = self.opened[file].as_deref() else { return Ok(file) };
        let path = format!("/proc/self/fd/{}", self.descriptors[file].as_raw_fd());
        let descriptor = open(&path, mode)?;
        let facts = FileFacts {
            readable: mode != libc::O_WRONLY,
            writable: mode != libc::O_RDONLY,
            ..opened.facts
        };
        let opened = Opened { facts, ..opened.clone() };
        Ok(self.push(descriptor, self.named[file].clone(), opened))
    }

    /// A file with a name in the folder of temporary files, if the rules of its file system are
    /// known.
    fn on_disk(&mut self) -> io::Result<usize> {
        let path = path(&self.folder, 0);
        let file = fs::File::create_new(&path)?;
        drop(file);
        let descriptor = open(&path.to_string_lossy(), libc::O_RDWR)?;
        if !is_ext4(&descriptor)? {
            return self.memory(c"no disk", PAGES, 0);
        }
        truncate(&descriptor, PAGES)?;
        let folder = Some(Arc::clone(&self.folder));
        let opened = opened(&descriptor, folder, PAGES, disk_facts(), Kind::Disk)?;
        Ok(self.push(descriptor, Some(path), opened))
    }

    /// A file without a name that can only be appended to, where there can be one.
    fn append_only(&mut self) -> io::Result<usize> {
        /// `FS_IOC_SETFLAGS` and `FS_APPEND_FL`.
        const SET_FLAGS: libc::Ioctl = 0x4008_6602;
        static APPEND: libc::c_long = 0x20;
        let nameless = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(&*self.folder);
        // Not every file system can do it.
        let Ok(file) = nameless else { return self.memory(c"no disk", PAGES, 0) };
        let descriptor = OwnedFd::from(file);
        truncate(&descriptor, PAGES)?;
        if !is_ext4(&descriptor)? {
            return self.memory(c"no disk", PAGES, 0);
        }
        // SAFETY: the kernel reads a number.
        let set = unsafe { libc::ioctl(descriptor.as_raw_fd(), SET_FLAGS, &raw const APPEND) };
        // Only the privileged may.
        let facts = FileFacts { append_only: set == 0, ..disk_facts() };
        let opened = opened(&descriptor, None, PAGES, facts, Kind::Disk)?;
        Ok(self.push(descriptor, None, opened))
    }

    /// A file of the kernel's; if it is not there, one in memory.
    fn other(&mut self, opened_as: io::Result<OwnedFd>, facts: FileFacts) -> io::Result<usize> {
        let Ok(descriptor) = opened_as else { return self.memory(c"absent", PAGES, 0) };
        let opened = opened(&descriptor, None, 0, facts, Kind::Other)?;
        Ok(self.push(descriptor, None, opened))
    }

    /// Files of which most cannot be mapped: for some that is known at once, others are asked when
    /// everything else was checked.
    fn unmappable(&mut self, kernels: FileFacts) -> io::Result<()> {
        let absent = MapOperation::Absent;
        let unlimited = FileFacts { operation: absent, max_bytes: u64::MAX, ..kernels };
        for (path, mode) in [("/dev", libc::O_RDONLY), ("/dev/null", libc::O_RDWR)] {
            let descriptor = open(path, mode)?;
            let (writable, noexec) = (mode == libc::O_RDWR, is_noexec(&descriptor)?);
            self.other(Ok(descriptor), FileFacts { writable, noexec, ..unlimited })?;
        }
        // SAFETY: takes numbers.
        let events = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) });
        self.other(events, FileFacts { writable: true, ..unlimited })?;
        for (domain, kind, operation) in [
            (libc::AF_UNIX, libc::SOCK_STREAM, MapOperation::Refuses(Errno::ENODEV)),
            // One without rings; few processes may have it.
            (libc::AF_PACKET, libc::SOCK_RAW, MapOperation::Refuses(Errno::EINVAL)),
            (libc::AF_INET, libc::SOCK_STREAM, MapOperation::Tcp),
        ] {
            // SAFETY: takes numbers.
            let socket = owned(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) });
            self.other(socket, FileFacts { operation, writable: true, ..kernels })?;
        }
        Ok(())
    }

    /// `/dev/zero`.
    fn zero(&mut self, mode: c_int) -> io::Result<usize> {
        let descriptor = open("/dev/zero", mode)?;
        let facts = FileFacts {
            writable: mode == libc::O_RDWR,
            noexec: is_noexec(&descriptor)?,
            operation: MapOperation::Zero,
            max_bytes: u64::MAX,
            ..FileFacts::new()
        };
        self.other(Ok(descriptor), facts)
    }

    /// `fcntl(F_ADD_SEALS)`.
    pub(crate) fn add_seals(&self, file: usize, seals: c_int) -> Outcome {
        self.with(file, |descriptor| add_seals(descriptor, seals))
    }

    /// `ftruncate`.
    pub(crate) fn truncate(&self, file: usize, pages: usize) -> Outcome {
        self.with(file, |descriptor| truncate(descriptor, pages))
    }

    /// `rename`, or `unlink` without a name.
    pub(crate) fn rename(&mut self, file: usize, name: Option<usize>) -> Outcome {
        let again = file == AGAIN && self.again.is_some();
        let open = again || self.opened.get(file).is_some_and(Option::is_some);
        let Some(named) = self.named.get(file).filter(|_| open) else {
            return Outcome::error(libc::EBADF);
        };
        // What has no name has one that is not there.
        let old = named.clone().unwrap_or_else(|| self.folder.join("nameless"));
        let new = name.map(|name| path(&self.folder, name));
        let done = match &new {
            Some(new) => fs::rename(&old, new),
            None => fs::remove_file(&old),
        };
        if done.is_ok() {
            // All that are open of it have that name.
            let same = self.named.iter_mut().filter(|named| named.as_ref() == Some(&old));
            same.for_each(|named| named.clone_from(&new));
        }
        Outcome::of_io(done)
    }

    fn with(&self, file: usize, call: impl FnOnce(&OwnedFd) -> io::Result<()>) -> Outcome {
        let again = self.again.as_ref().filter(|_| file == AGAIN);
        match self.descriptors.get(file).or(again) {
            Some(descriptor) => Outcome::of_io(call(descriptor)),
            None => Outcome::error(libc::EBADF),
        }
    }
}

/// The model's open file of a descriptor, with the facts given and those that the kernel reports.
fn opened(
    descriptor: &OwnedFd,
    folder: Option<Arc<Path>>,
    pages: usize,
    facts: FileFacts,
    kind: Kind,
) -> io::Result<Opened> {
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let about = fs::metadata(&link)?;
    let path = fs::read_link(&link)?.to_string_lossy().into_owned();
    let device = about.dev();
    let facts = FileFacts {
        device: (libc::major(device), libc::minor(device)),
        inode: about.ino(),
        ..facts
    };
    let inode = Inode { folder, path, seals: 0, pages };
    Ok(Opened { inode: Arc::new(Mutex::new(inode)), facts, kind })
}

/// The facts about a file on ext4.
fn disk_facts() -> FileFacts {
    FileFacts {
        knows_sync: true,
        operation: MapOperation::RefusesSync,
        huge_aligned: true,
        ..FileFacts::new()
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn open(path: &str, mode: c_int) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path)?;
    // SAFETY: a string that ends with a zero.
    owned(unsafe { libc::open(path.as_ptr(), mode | libc::O_CLOEXEC) })
}

/// The descriptor that a call has just opened.
fn owned(number: c_int) -> io::Result<OwnedFd> {
    // SAFETY: just opened, and owned by nothing else.
    check(number).map(|number| unsafe { OwnedFd::from_raw_fd(number) })
}

fn truncate(file: &OwnedFd, pages: usize) -> io::Result<()> {
    let size = i64::try_from(pages * abi::PAGE).map_err(io::Error::other)?;
    // SAFETY: takes numbers.
    check(unsafe { libc::ftruncate(file.as_raw_fd(), size) }).map(drop)
}

fn add_seals(file: &OwnedFd, seals: c_int) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

/// Whether it is on a disk with ext4, of which files may be executed.
fn is_ext4(file: &OwnedFd) -> io::Result<bool> {
    // SAFETY: integers, for which zero is a value.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a value of this size.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut about) })?;
    Ok(about.f_type == libc::EXT4_SUPER_MAGIC && !is_noexec(file)?)
}

/// Whether the files of its file system may not be executed.
pub(crate) fn is_noexec(file: &OwnedFd) -> io::Result<bool> {
    // SAFETY: integers, for which zero is a value.
    let mut mount: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a value of this size.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut mount) })?;
    Ok(mount.f_flag & libc::ST_NOEXEC != 0)
}
