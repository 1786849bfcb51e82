//! The file to page: opened without waiting, and checked before anything is begun.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// A regular file with at least one byte.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) path: PathBuf,
    file: File,
}

impl Input {
    /// Opens FILE, or this program's own.
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
        let reason = match () {
            () if kind.is_dir() => "is a directory",
            () if kind.is_fifo() => "is a FIFO",
            () if kind.is_char_device() || kind.is_block_device() => "is a device",
            () if !kind.is_file() => "is not a regular file",
            () if metadata.len() == 0 => "is empty",
            () => return Ok(Self { path, file }),
        };
        let advice = "give a regular file with at least one byte";
        Err(Error::File { file: path, reason: reason.to_owned(), advice })
    }

    /// The file once more, for a source to own.
    pub(crate) fn reopen(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(|error| cannot_read(self.path.clone(), error))
    }

    /// Its bytes now.
    pub(crate) fn size(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata();
        metadata.map(|data| data.len()).map_err(|error| cannot_read(self.path.clone(), error))
    }

    /// The SHA-256 of what ordinary reads get, to the end of the file.
    pub(crate) fn sha256(&self) -> Result<String, Error> {
        let mut hash = Sha256::new();
        let mut buffer = [0; 1 << 16];
        let mut at = 0;
        loop {
            match self.file.read_at(&mut buffer, at) {
                Ok(0) => return Ok(hex(hash)),
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(cannot_read(self.path.clone(), error)),
            }
        }
    }
}

/// A finished SHA-256, in hexadecimal.
pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
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
