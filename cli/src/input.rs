//! The file to page: opened without waiting, and checked before anything begins.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// The size of a page in bytes.
pub(crate) const PAGE: usize = 4096;

/// Bytes that are read at a time to be hashed.
const CHUNK: usize = 1 << 20;

/// A regular file with at least one byte.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) path: PathBuf,
    file: File,
}

impl Input {
    /// Opens FILE, or this program's own file.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Error> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => std::env::current_exe().map_err(Error::NoExecutable)?,
        };
        // Opening a FIFO would wait for its writer, without this flag.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(errno) => return Err(cannot_read(path, errno.into())),
        };
        let metadata = file.metadata().map_err(|error| cannot_read(path.clone(), error))?;
        let kind = metadata.file_type();
        let regular = "give a regular file with at least one byte";
        let (reason, advice) = match () {
            () if kind.is_dir() => ("is a directory", regular),
            () if kind.is_fifo() => ("is a FIFO", regular),
            () if kind.is_char_device() || kind.is_block_device() => ("is a device", regular),
            () if !kind.is_file() => ("is not a regular file", regular),
            () if metadata.len() == 0 && has_bytes(&file) => (
                "has bytes but says that it has none, as files in /proc do",
                "copy its content to a plain file",
            ),
            () if metadata.len() == 0 => ("is empty", regular),
            () => return Ok(Self { path, file }),
        };
        Err(Error::File { file: path, reason: reason.to_owned(), advice })
    }

    /// Duplicates the file, for a source to own.
    pub(crate) fn reopen(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(|error| cannot_read(self.path.clone(), error))
    }

    /// Returns the present length of the file in bytes.
    pub(crate) fn size(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata();
        metadata.map(|data| data.len()).map_err(|error| cannot_read(self.path.clone(), error))
    }

    /// Returns the open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Fills `bytes` with what is at an offset.
    pub(crate) fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), Error> {
        match self.file.read_exact_at(bytes, at as u64) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Error::Shortened { file: self.path.clone() })
            }
            Err(error) => Err(cannot_read(self.path.clone(), error)),
        }
    }
}

/// Returns the SHA-256 of `len` bytes. They are read in order; `watch` is told how many have been.
pub(crate) fn sha256(
    len: usize,
    read: impl Fn(usize, &mut [u8]) -> Result<(), Error>,
    watch: impl Fn(usize),
) -> Result<String, Error> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK.min(len)];
    for at in (0..len).step_by(CHUNK) {
        let chunk = &mut chunk[..CHUNK.min(len - at)];
        read(at, chunk)?;
        hash.update(&chunk);
        watch(at + chunk.len());
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns whether there is something to read.
fn has_bytes(file: &File) -> bool {
    file.read_at(&mut [0], 0).is_ok_and(|read| read > 0)
}

fn cannot_read(file: PathBuf, error: io::Error) -> Error {
    let descriptors = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    let advice = match error.kind() {
        _ if descriptors.contains(&error.raw_os_error()) => "raise ulimit -n",
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "give a file that you may read",
        _ => "give a regular file that can be read",
    };
    Error::File { file, reason: error.to_string(), advice }
}
