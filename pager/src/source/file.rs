//! A file, read page by page.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, OFlags, SealFlags, fcntl_get_seals, fcntl_getfl, fdatasync, fstat};
use rustix::io::{Errno, ReadWriteFlags, pread, pwritev2};

use super::sparse::Sparse;
use super::{ReadFailed, SignalSafe, Source};
use crate::Error;

/// A regular file or a [part](Self::part) of one, read and written by position.
///
/// A page is read when it is first touched, and again when it is touched after it was given back;
/// what the file becomes between does not show. A file that has shrunk below a page that is touched
/// is a failure of that access. (One that is cut short and written anew during a single read can be
/// read as zeros: the kernel's `read` has no better answer while it cuts what it keeps of a file.)
///
/// Holes of a sparse file are not read ([`zeros`](Source::zeros)). Such a file takes a second
/// descriptor, since the kernel tells of holes by moving a position; without `/proc` its holes are
/// read as zeros.
///
/// It is writable if the file was opened for reading and writing and is not sealed against writes.
/// What is written is stored at its offset, or refused with an error that says why:
///
/// - A descriptor that cannot be read by position is refused at once: one for writing only or with
///   `O_PATH` ([`Error::NotReadable`]), a directory, pipe, socket, terminal or device
///   ([`Error::NotARegularFile`]), a file in `/proc` or `/sys` whose size is not that of its
///   content ([`Error::Empty`], [`Error::NotItsSize`]).
/// - One with `O_DIRECT` is opened once more without it, for what is not aligned to 4096 bytes (the
///   end of the file, as a rule), so it takes `/proc` and the permission ([`Error::DirectIo`]). All
///   else is read and written past the page cache. If `O_DIRECT` is set later, accesses fail where
///   the file system reads to aligned memory only.
/// - With `O_APPEND`, set before or later, bytes go to their offset all the same from Linux 6.9 on.
///   Before that the write is an error.
/// - A write is an error as well when the file was sealed meanwhile (`F_SEAL_WRITE`,
///   `F_SEAL_FUTURE_WRITE`), has become shorter (it does not become longer again), or is larger
///   than the process may write (`ulimit -f`; no `SIGXFSZ` is raised).
///
/// ```
/// use std::io::Write;
/// use pervma_pager::{FileSource, FrozenRegion};
///
/// let mut file = tempfile::tempfile()?;
/// file.write_all(b"on demand")?;
/// let region = FrozenRegion::map(FileSource::new(file)?)?;
/// assert_eq!(&region[3..], b"demand");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileSource {
    file: File,
    /// The same file, open for direct I/O, if it was handed in so.
    direct: Option<File>,
    size: u64,
    /// It was opened for reading and writing, which cannot change.
    is_open_for_writing: bool,
    /// If it had holes when it was taken.
    sparse: Option<Sparse>,
    /// Where in the file it begins.
    start: u64,
    /// Where it ends there; `None` if with the file.
    end: Option<u64>,
}

impl FileSource {
    /// Takes the file. Its size is asked for when a region is mapped.
    ///
    /// # Errors
    ///
    /// When it is not a regular file, or its bytes cannot be read by position: see above.
    pub fn new(file: File) -> Result<Self, Error> {
        let about = fstat(&file).map_err(|error| Error::File(error.into()))?;
        if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
            return Err(Error::NotARegularFile);
        }
        let flags = fcntl_getfl(&file).map_err(|error| Error::File(error.into()))?;
        if flags.contains(OFlags::PATH) || flags.intersection(OFlags::RWMODE) == OFlags::WRONLY {
            return Err(Error::NotReadable);
        }
        let is_open_for_writing = flags.intersection(OFlags::RWMODE) == OFlags::RDWR;
        let (size, sparse) = (about.st_size.cast_unsigned(), Sparse::of(&file, &about));
        let (file, direct) = if flags.contains(OFlags::DIRECT) {
            let mut again = File::options();
            again.read(true).write(is_open_for_writing);
            let again = again.open(format!("/proc/self/fd/{}", file.as_raw_fd()));
            (again.map_err(Error::DirectIo)?, Some(file))
        } else {
            (file, None)
        };
        let source = Self { file, direct, size, is_open_for_writing, sparse, start: 0, end: None };
        if let Some(last) = source.size.checked_sub(1) {
            let read = pread(&source.file, &mut [0; 1], last).map_err(|e| Error::File(e.into()))?;
            if read == 0 {
                return Err(Error::NotItsSize { bytes: source.size });
            }
        }
        Ok(source)
    }

    /// A part of the file, in bytes from the start of this source: all offsets are from there on.
    /// It need not be whole pages. Behind a part that does not fill its last page there are zeros,
    /// which are never written to the file; what is before and behind it is not touched.
    ///
    /// A part has the length it was given, also when the file grows. When the file becomes shorter,
    /// accesses to what is missing fail as those to the whole file do.
    ///
    /// ```
    /// use std::io::Write;
    /// use pervma_pager::{FileSource, FrozenRegion};
    ///
    /// let mut file = tempfile::tempfile()?;
    /// file.write_all(b"header, body, trailer")?;
    /// let region = FrozenRegion::map(FileSource::new(file)?.part(8..12)?)?;
    /// assert_eq!(&region[..], b"body");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::BeyondFile`] when it is not within this source as it is now, [`Error::Empty`] when
    /// it has no bytes, [`Error::File`] when the file cannot be asked.
    pub fn part(self, range: Range<u64>) -> Result<Self, Error> {
        let now = size_of(&self.file).map_err(|error| Error::File(error.into()))?;
        let bytes = self.size_of_part(now);
        if range.start > range.end || range.end > bytes {
            return Err(Error::BeyondFile { start: range.start, end: range.end, bytes });
        }
        if range.is_empty() {
            return Err(Error::Empty);
        }
        let (start, end) = (self.start + range.start, Some(self.start + range.end));
        Ok(Self { start, end, ..self })
    }

    /// How many bytes of it there are when the file has so many.
    fn size_of_part(&self, file: u64) -> u64 {
        self.end.map_or(file, |end| end.min(file)).saturating_sub(self.start)
    }

    /// Where in the file some of its bytes are; `None` if they are not all its own.
    #[inline]
    fn place(&self, offset: u64, bytes: usize) -> Option<Range<u64>> {
        let start = self.start.checked_add(offset)?;
        let end = start.checked_add(bytes as u64)?;
        self.end.is_none_or(|last| end <= last).then_some(start..end)
    }

    /// The descriptor for bytes at an offset of the file, to or from memory at `memory`.
    #[inline]
    fn descriptor(&self, offset: u64, bytes: usize, memory: *const u8) -> &File {
        /// Enough for any file system.
        const UNIT: usize = 4096;
        match &self.direct {
            Some(direct) if (offset as usize | bytes | memory.addr()).is_multiple_of(UNIT) => {
                direct
            }
            _ => &self.file,
        }
    }

    fn is_sealed(&self) -> bool {
        // Only files in memory have seals; for others the question is an error.
        fcntl_get_seals(&self.file)
            .is_ok_and(|seals| seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE))
    }

    /// Fails if the bytes up to `end` cannot be written, for a reason that can be told before.
    fn check_write(&self, end: u64) -> io::Result<()> {
        if !self.is_open_for_writing {
            return Err(refused(ErrorKind::PermissionDenied, "the file is not open for writing"));
        }
        // It would become longer, with zeros between.
        if size_of(&self.file)? < end {
            return Err(refused(ErrorKind::UnexpectedEof, "the file has become shorter"));
        }
        // The kernel would send a signal that ends the process.
        if size_limit().is_some_and(|limit| limit < end) {
            let text = "beyond the limit of file sizes (ulimit -f)";
            return Err(refused(ErrorKind::FileTooLarge, text));
        }
        Ok(())
    }

    /// Writes some of the bytes, at the offset even if the file is open for appending: `pwrite`
    /// appends then, whatever its offset.
    fn write_some(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        /// `RWF_NOAPPEND`.
        const NO_APPEND: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x20);
        let file = self.descriptor(offset, bytes.len(), bytes.as_ptr());
        match pwritev2(file, &[IoSlice::new(bytes)], offset, NO_APPEND) {
            // Linux before 6.9, or a filter.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {}
            done => return done.map_err(Into::into),
        }
        check_not_appending(file)?;
        let written = match file.write_at(bytes, offset) {
            Err(_) if self.is_sealed() => {
                Err(refused(ErrorKind::PermissionDenied, "the file is sealed against writing"))
            }
            done => done,
        };
        // Nothing tells whether it was set before the write or after.
        check_not_appending(file)?;
        written
    }
}

fn check_not_appending(file: &File) -> io::Result<()> {
    if fcntl_getfl(file)?.contains(OFlags::APPEND) {
        let text = "the file is open for appending: open it without O_APPEND";
        return Err(refused(ErrorKind::Unsupported, text));
    }
    Ok(())
}

fn size_of(file: &File) -> Result<u64, Errno> {
    fstat(file).map(|about| about.st_size.cast_unsigned())
}

/// How large a file this process may write.
#[expect(unsafe_code, reason = "asks the C library")]
fn size_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the limit to the place it is given.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    (asked == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn refused(kind: ErrorKind, text: &'static str) -> io::Error {
    io::Error::new(kind, text)
}

impl Source for FileSource {
    fn size(&self) -> u64 {
        // It may have grown; if it has shrunk, so be it.
        self.size_of_part(size_of(&self.file).unwrap_or(self.size))
    }

    #[inline]
    fn read_at(&self, offset: u64, mut buf: &mut [u8]) -> Result<(), ReadFailed> {
        let Range { start: mut offset, end } = self.place(offset, buf.len()).ok_or(ReadFailed)?;
        while !buf.is_empty() {
            let file = self.descriptor(offset, buf.len(), buf.as_ptr());
            match pread(file, &mut *buf, offset) {
                // Within the size there is no end of file, unless the file has shrunk.
                Ok(0) => return Err(ReadFailed),
                Ok(read) => {
                    buf = buf.get_mut(read..).ok_or(ReadFailed)?;
                    offset += read as u64;
                }
                Err(Errno::INTR) => {}
                Err(_) => return Err(ReadFailed),
            }
        }
        // While a file is cut short, a read that is under way can get zeros for what was cut.
        match size_of(&self.file) {
            Ok(now) if now >= end => Ok(()),
            _ => Err(ReadFailed),
        }
    }

    fn zeros(&self, range: Range<u64>) -> Option<Range<u64>> {
        let range = self.place(range.start, range.end.checked_sub(range.start)? as usize)?;
        let hole = self.sparse.as_ref()?.hole(range.clone())?;
        // Behind the end of a file that has shrunk there are no zeros.
        let is_there = size_of(&self.file).is_ok_and(|now| now >= range.end);
        // It begins within the range.
        is_there.then(|| hole.start - self.start..hole.end - self.start)
    }

    #[inline]
    fn fills_buffer(&self) -> bool {
        true
    }

    fn is_writable(&self) -> bool {
        self.is_open_for_writing && !self.is_sealed()
    }

    /// `fdatasync`.
    fn sync(&self) -> io::Result<()> {
        loop {
            match fdatasync(&self.file) {
                Err(Errno::INTR) => {}
                done => return done.map_err(Into::into),
            }
        }
    }

    fn write_at(&self, offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        let beyond = || refused(ErrorKind::InvalidInput, "beyond the part of the file");
        let Range { start: mut offset, end } =
            self.place(offset, bytes.len()).ok_or_else(beyond)?;
        self.check_write(end)?;
        while !bytes.is_empty() {
            match self.write_some(offset, bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    offset += written as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

// SAFETY: a loop around one system call and the caller's buffer; rustix makes the call itself,
// with no state of its own.
#[expect(unsafe_code, reason = "the contract of a source")]
unsafe impl SignalSafe for FileSource {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn a_file_that_has_shrunk_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10_000).unwrap();
        let source = FileSource::new(file.try_clone().unwrap()).unwrap();
        let mut buf = [1; 100];
        assert_eq!(source.read_at(9_900, &mut buf), Ok(()));
        assert_eq!(buf, [0; 100]);
        file.set_len(9_950).unwrap();
        assert_eq!(source.read_at(9_900, &mut buf), Err(ReadFailed));
    }

    #[test]
    fn what_is_aligned_goes_past_the_page_cache() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut direct = File::options();
        direct.read(true).write(true).custom_flags(libc::O_DIRECT);
        // On a file system without it there is nothing to choose.
        let Ok(direct) = direct.open(file.path()) else { return };
        let source = FileSource::new(direct).unwrap();
        let is_direct = |offset, bytes, memory| {
            let memory = std::ptr::without_provenance(memory);
            let flags = fcntl_getfl(source.descriptor(offset, bytes, memory)).unwrap();
            flags.contains(OFlags::DIRECT)
        };
        assert!(is_direct(8192, 4096, 4096));
        for (offset, bytes, memory) in [(8193, 4096, 4096), (8192, 4095, 4096), (8192, 4096, 512)] {
            assert!(!is_direct(offset, bytes, memory));
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_refused_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1).unwrap();
        let unreadable = File::options().write(true).open(file.path()).unwrap();
        assert!(matches!(FileSource::new(unreadable), Err(Error::NotReadable)));
        let directory = File::open("/").unwrap();
        assert!(matches!(FileSource::new(directory), Err(Error::NotARegularFile)));
    }
}
