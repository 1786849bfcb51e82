//! Open files: their identity, and the facts about them at the moment.

use alloc::string::String;
use core::any::Any;
use core::fmt;

use lock_api::RwLock;
use pervma::Platform;

use crate::errno::Errno;
use crate::flags::VmFlags;

/// An open file, as far as mapping it is concerned.
///
/// Its identity is the [`Arc`](alloc::sync::Arc) that holds it: two mappings are of the same open
/// file if they hold the same one, and only such mappings merge. A file that is opened twice has
/// two of them, with the same contents ([`Vma::inode`](crate::Vma::inode)). The facts about it may
/// change meanwhile (seals are set, a name is changed or removed, it becomes shorter), and are
/// asked each time that they are needed. The contents of the file are the
/// [`Backing`](crate::Backing)'s, which finds the caller's own type by a conversion to [`Any`].
///
/// [`OpenFile`] is one whose facts are set by its owner. The methods are called from inside of
/// calls, with the map locked: they may not call the same [`Mm`](crate::Mm), nor wait for a thread
/// that does. That goes for `Drop`, too: the last owner of a file may be a mapping that a call
/// removes.
///
/// ```
/// use pervma_linux::{Config, File, FileFacts, Mm, NoBacking, abi::*};
/// use std::any::Any;
/// use std::sync::{Arc, Mutex};
///
/// /// A file of an emulator, which has its own table of names.
/// #[derive(Debug)]
/// struct GuestFile {
///     inode: u64,
///     name: Mutex<String>,
/// }
///
/// impl File for GuestFile {
///     fn facts(&self) -> FileFacts {
///         FileFacts { inode: self.inode, ..FileFacts::new() }
///     }
///
///     fn path(&self) -> String {
///         self.name.lock().unwrap().clone()
///     }
/// }
///
/// let guest = Arc::new(GuestFile { inode: 7, name: Mutex::new("/old".to_owned()) });
/// let file: Arc<dyn File> = guest.clone();
/// let mm = Mm::new(NoBacking, Config::default());
/// let addr = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE, Some(&file), 0)?;
/// *guest.name.lock().unwrap() = "/new".to_owned();
/// assert!(mm.maps()?.ends_with("7                          /new\n"));
///
/// let known: &dyn Any = &*file;
/// assert_eq!(known.downcast_ref::<GuestFile>().map(|file| file.inode), Some(7));
/// # Ok::<(), pervma_linux::Errno>(())
/// ```
pub trait File: Any + fmt::Debug + Send + Sync {
    /// The facts about the file at the moment of the call.
    fn facts(&self) -> FileFacts;

    /// Its path as `/proc/PID/maps` shows it, with ` (deleted)` behind it if it has no name any
    /// more.
    fn path(&self) -> String;
}

/// The facts about an open file at one moment: what calls look at, and what is shown beside its
/// path.
///
/// ```
/// use pervma_linux::FileFacts;
///
/// let facts = FileFacts { writable: false, ..FileFacts::new() };
/// assert!(facts.readable);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Open for reading.
    pub readable: bool,
    /// Open for writing.
    pub writable: bool,
    /// Marked as one that can only be appended to (`chattr +a`), which forbids shared mappings when
    /// it is open for writing. That it was opened with `O_APPEND` is not meant, and forbids
    /// nothing.
    pub append_only: bool,
    /// On a file system that forbids executing.
    pub noexec: bool,
    /// On a file system whose files may be DAX (ext4, XFS): only there `MAP_SHARED_VALIDATE` knows
    /// `MAP_SYNC`.
    pub knows_sync: bool,
    /// The answer of its file operation `mmap`.
    pub operation: MapOperation,
    /// The seal that forbids writing (`F_SEAL_WRITE`).
    pub seal_write: bool,
    /// The seal that forbids new ways of writing (`F_SEAL_FUTURE_WRITE`).
    pub seal_future_write: bool,
    /// Whether mappings of at least a huge page are placed so that huge pages fit, as most disk
    /// file systems do.
    pub huge_aligned: bool,
    /// On a file system that lies over others (overlayfs). What is mapped there is the file below,
    /// which Linux learns too late: a new mapping merges with none, but later calls merge it.
    pub stacked: bool,
    /// The largest file that its file system knows, in bytes.
    pub max_bytes: u64,
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Inode number.
    pub inode: u64,
}

impl FileFacts {
    /// Returns the facts of an ordinary file, open for reading and writing.
    ///
    /// ```
    /// assert!(pervma_linux::FileFacts::new().writable);
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self {
            readable: true,
            writable: true,
            append_only: false,
            noexec: false,
            knows_sync: false,
            operation: MapOperation::Accepts,
            seal_write: false,
            seal_future_write: false,
            huge_aligned: false,
            stacked: false,
            max_bytes: i64::MAX.unsigned_abs(),
            device: (0, 0),
            inode: 0,
        }
    }
}

impl Default for FileFacts {
    fn default() -> Self {
        Self::new()
    }
}

/// The device that shared anonymous memory is shown with: that of a file system without a name.
pub(crate) const OBJECTS: (u32, u32) = (0, 1);
/// The path that it is shown with.
pub(crate) const NAMELESS: &str = "/dev/zero (deleted)";

/// The memory of one shared anonymous mapping. In Linux it is a file without a name, which can be
/// opened where it is mapped and mapped again: [`OpenFile::of_object`].
#[derive(Debug)]
pub struct Object {
    /// Its number among the objects of an address space and its forks. It is shown as its inode's,
    /// on the device 0:1, on which no file of the caller's may have the same.
    pub number: u64,
    /// Its size in bytes, when it was made. No call on a map changes it; `ftruncate` of a file that
    /// was opened of it does, and then the [`Backing`](crate::Backing) has to know the size.
    pub size: usize,
}

/// What identifies the contents that a VMA maps, whatever else is known of them: all open files of
/// an inode have the same contents, whatever they are called at the moment.
///
/// Which mappings merge goes by open files, not by this: see [`File`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode {
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Inode number.
    pub number: u64,
}

/// The answer of a file's own part of `mmap`, the file operation of that name.
///
/// All but [`Absent`](Self::Absent) is asked when everything else has been checked and what was
/// mapped in the range is gone: a refusal leaves a hole there.
///
/// | open file | operation | `noexec` | `max_bytes` |
/// |---|---|---|---|
/// | directory | `Absent` | of its mount | `u64::MAX` |
/// | `/dev/null` and its like | `Absent` | of its mount | `u64::MAX` |
/// | pipe, `eventfd`, `epoll` | `Absent` | yes | `u64::MAX` |
/// | `pidfd`, most files in `/proc` | `Absent` | yes | `i64::MAX` |
/// | socket | `Refuses(ENODEV)` | yes | `i64::MAX` |
/// | packet socket without rings | `Refuses(EINVAL)` | yes | `i64::MAX` |
/// | TCP socket | `Tcp` | yes | `i64::MAX` |
/// | file in `/sys` | `Refuses(ENODEV)` | yes | `i64::MAX` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "mmap_prepare")]
pub enum MapOperation {
    /// There is no such operation (pipes, directories): `ENODEV`, and nothing has changed.
    Absent,
    /// Every mapping is accepted.
    Accepts,
    /// A file that could be DAX and is not: every mapping with `MAP_SYNC`, whatever its type, is
    /// refused with `EOPNOTSUPP`.
    RefusesSync,
    /// Every mapping is refused with this error (files in `/sys`, most sockets: `ENODEV`).
    Refuses(Errno),
    /// That of a TCP socket: what can be written or executed is refused with `EPERM`, and never can
    /// be ([`VmFlags::MIXEDMAP`]). A touch is `SIGBUS`, until the program puts pages there.
    Tcp,
    /// That of `/dev/zero`: what is shared maps an object of its own
    /// ([`Source::SharedAnonymous`]), everything else is anonymous memory ([`Source::Zero`]).
    ///
    /// [`Source::SharedAnonymous`]: crate::Source::SharedAnonymous
    /// [`Source::Zero`]: crate::Source::Zero
    Zero,
}

impl MapOperation {
    /// The answer to a mapping with these flags.
    pub(crate) fn ask(self, flags: VmFlags) -> Result<(), Errno> {
        match self {
            Self::Absent => Err(Errno::ENODEV),
            Self::RefusesSync if flags.has(VmFlags::SYNC) => Err(Errno::EOPNOTSUPP),
            Self::Tcp if flags.any(VmFlags::WRITE | VmFlags::EXEC) => Err(Errno::EPERM),
            Self::Accepts | Self::RefusesSync | Self::Zero | Self::Tcp => Ok(()),
            Self::Refuses(error) => Err(error),
        }
    }
}

/// A [`File`] whose owner sets its facts. Its methods lock it for a moment, so they must not be
/// called in signal handlers.
///
/// ```
/// use pervma_linux::{Config, Errno, File, FileFacts, Mm, NoBacking, OpenFile, abi::*};
/// use std::sync::Arc;
///
/// let open = Arc::new(OpenFile::new("/data", FileFacts::new()));
/// let file: Arc<dyn File> = open.clone();
/// let mm = Mm::new(NoBacking, Config::default());
/// let addr = mm.mmap(0, 4096, PROT_READ, MAP_SHARED, Some(&file), 0)?;
///
/// open.update(|facts| facts.seal_future_write = true);
/// open.rename("/data (deleted)");
/// let writable = PROT_READ | PROT_WRITE;
/// assert_eq!(mm.mmap(0, 4096, writable, MAP_SHARED, Some(&file), 0), Err(Errno::EPERM));
/// assert!(mm.maps()?.ends_with("/data (deleted)\n"));
/// # Ok::<(), Errno>(())
/// ```
pub struct OpenFile<P: Platform> {
    known: RwLock<P::Lock, Known>,
}

#[derive(Clone, Debug)]
struct Known {
    facts: FileFacts,
    path: String,
}

#[cfg(feature = "std")]
impl OpenFile<pervma::StdPlatform> {
    /// Makes an open file with this path and these facts.
    ///
    /// ```
    /// use pervma_linux::{File, FileFacts, OpenFile};
    /// assert_eq!(OpenFile::new("/etc/passwd", FileFacts::new()).path(), "/etc/passwd");
    /// ```
    #[must_use]
    pub fn new(path: impl Into<String>, facts: FileFacts) -> Self {
        Self::with_platform(path, facts)
    }
}

impl<P: Platform> OpenFile<P> {
    /// Makes an open file with this path and these facts, on the platform `P`.
    ///
    /// ```
    /// use pervma_linux::{File, FileFacts, OpenFile, StdPlatform};
    /// let file = OpenFile::<StdPlatform>::with_platform("/data", FileFacts::new());
    /// assert_eq!(file.facts(), FileFacts::new());
    /// ```
    #[must_use]
    pub fn with_platform(path: impl Into<String>, facts: FileFacts) -> Self {
        Self { known: RwLock::new(Known { facts, path: path.into() }) }
    }

    /// Opens shared anonymous memory that is mapped, to map it again, as can be done in Linux at
    /// `/proc/PID/map_files`. Each open file is one of its own: mappings of it merge with no others
    /// of that memory.
    ///
    /// ```
    /// use pervma_linux::{File, Object, OpenFile, StdPlatform};
    ///
    /// let file = OpenFile::<StdPlatform>::of_object(&Object { number: 7, size: 4096 });
    /// assert_eq!((file.path().as_str(), file.facts().inode), ("/dev/zero (deleted)", 7));
    /// ```
    #[must_use]
    pub fn of_object(object: &Object) -> Self {
        let facts = FileFacts { device: OBJECTS, inode: object.number, ..FileFacts::new() };
        Self::with_platform(NAMELESS, facts)
    }

    /// Changes the facts. The next call goes by the new ones. The file is locked while `change`
    /// runs, so that must not ask it, nor make a call that does: it would wait for itself.
    ///
    /// ```
    /// use pervma_linux::{File, FileFacts, OpenFile};
    /// let file = OpenFile::new("/data", FileFacts::new());
    /// file.update(|facts| facts.append_only = true);
    /// assert!(file.facts().append_only);
    /// ```
    pub fn update(&self, change: impl FnOnce(&mut FileFacts)) {
        change(&mut self.known.write().facts);
    }

    /// Changes the path that mappings are shown with.
    ///
    /// ```
    /// use pervma_linux::{File, FileFacts, OpenFile};
    /// let file = OpenFile::new("/a", FileFacts::new());
    /// file.rename("/b");
    /// assert_eq!(file.path(), "/b");
    /// ```
    pub fn rename(&self, path: impl Into<String>) {
        let path = path.into();
        self.known.write().path = path;
    }
}

impl<P: Platform> File for OpenFile<P> {
    fn facts(&self) -> FileFacts {
        self.known.read().facts
    }

    fn path(&self) -> String {
        self.known.read().path.clone()
    }
}

impl<P: Platform> fmt::Debug for OpenFile<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Known { facts, path } = self.known.read().clone();
        f.debug_struct("OpenFile").field("path", &path).field("facts", &facts).finish()
    }
}
