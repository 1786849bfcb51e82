//! A file, read page by page.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_getfl, fstat};
use rustix::io::{Errno, pread};

use super::{ReadFailed, SignalSafe, Source};
use crate::Error;

/// A regular file, read with `pread` and written with `pwrite`.
///
/// A page is read when it is first touched, and again when it is touched after it was given back;
/// what the file becomes between does not show. A file that has shrunk below a page that is touched
/// is a failure of that access. (One that is cut short and written anew during a single read can be
/// read as zeros: the kernel's `read` has no better answer while it cuts what it keeps of a file.)
///
/// It is writable if the file was opened for writing.
///
/// ```
/// use std::io::Write;
/// use pervma_pager::{FileSource, Region};
///
/// let mut file = tempfile::tempfile()?;
/// file.write_all(b"on demand")?;
/// let region = Region::map(FileSource::new(file)?)?;
/// assert_eq!(&region[3..], b"demand");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileSource {
    file: File,
    size: u64,
    is_writable: bool,
}

impl FileSource {
    /// Takes the file. Its size is asked for when a region is mapped.
    ///
    /// # Errors
    ///
    /// When it is not a regular file, or its last byte cannot be read: not opened for reading, or
    /// a file, as in `/sys`, whose size is not that of its content.
    pub fn new(file: File) -> Result<Self, Error> {
        let metadata = file.metadata().map_err(Error::File)?;
        if !metadata.is_file() {
            return Err(Error::NotARegularFile);
        }
        let flags = fcntl_getfl(&file).map_err(|error| Error::File(error.into()))?;
        let is_writable = flags.intersection(OFlags::RWMODE) == OFlags::RDWR;
        let source = Self { file, size: metadata.len(), is_writable };
        if let Some(last) = source.size.checked_sub(1) {
            let read = pread(&source.file, &mut [0; 1], last).map_err(|e| Error::File(e.into()))?;
            if read == 0 {
                return Err(Error::NotItsSize { bytes: source.size });
            }
        }
        Ok(source)
    }
}

impl Source for FileSource {
    fn size(&self) -> u64 {
        // It may have grown; if it has shrunk, so be it.
        self.file.metadata().map_or(self.size, |metadata| metadata.len())
    }

    #[inline]
    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<(), ReadFailed> {
        let end = offset + buf.len() as u64;
        while !buf.is_empty() {
            match pread(&self.file, &mut *buf, offset) {
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
        match fstat(&self.file) {
            Ok(now) if now.st_size.cast_unsigned() >= end => Ok(()),
            _ => Err(ReadFailed),
        }
    }

    fn is_writable(&self) -> bool {
        self.is_writable
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // It would become longer, with zeros between.
        if self.file.metadata()?.len() < offset + bytes.len() as u64 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file has become shorter",
            ));
        }
        self.file.write_all_at(bytes, offset)
    }
}

// SAFETY: a loop around one system call and the caller's buffer; rustix makes the call itself,
// with no state of its own.
#[expect(unsafe_code, reason = "the contract of a source")]
unsafe impl SignalSafe for FileSource {}

#[cfg(test)]
mod tests {
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
    fn a_file_that_cannot_be_read_is_refused_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1).unwrap();
        let unreadable = File::options().write(true).open(file.path()).unwrap();
        assert!(matches!(FileSource::new(unreadable), Err(Error::File(_))));
        let directory = File::open("/").unwrap();
        assert!(matches!(FileSource::new(directory), Err(Error::NotARegularFile)));
    }
}
