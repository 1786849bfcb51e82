//! Sockets at which clients arrive.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Makes a socket that its owner alone can connect to (mode 0600), and that does not block. One
/// that nobody listens at any more is replaced.
///
/// # Errors
///
/// `AddrInUse` if another process listens there; `AlreadyExists` if the path is another file's.
pub(crate) fn listen_at(path: &Path, kind: SocketType) -> io::Result<(OwnedFd, Made)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let address = SocketAddrUnix::new(path)?;
    if let Ok(about) = fs::symlink_metadata(path) {
        if !about.file_type().is_socket() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let probe = socket_with(AddressFamily::UNIX, kind, flags, None)?;
        if connect(&probe, &address) != Err(Errno::CONNREFUSED) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    bind(&socket, &address)?;
    // Before it listens, nobody can connect.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&socket, 1024)?;
    Ok((socket, Made::of(path, Arc::new(OnceLock::from(())))?))
}

/// A socket's file, which is removed with this, unless something else is at its path by then.
#[derive(Debug)]
pub(crate) struct Made {
    path: PathBuf,
    /// Opened by its path only.
    file: OwnedFd,
    /// Where the kernel says that it is.
    place: PathBuf,
    /// Whether it is this program's.
    is_own: Arc<OnceLock<()>>,
}

impl Made {
    /// The file of a socket that listens there, which is this program's as soon as that is set.
    pub(crate) fn of(path: &Path, is_own: Arc<OnceLock<()>>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::Socket {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let place = place(&file)?;
        Ok(Self { path: path.to_owned(), file, place, is_own })
    }
}

impl Made {
    /// Removes it, if it is still there. Again it does nothing.
    pub(crate) fn remove(&self) {
        let is_own = self.is_own.get().is_some();
        if is_own && place(&self.file).is_ok_and(|place| place == self.place) {
            // The sandbox may refuse it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Where a file is, which the kernel says although no file can be asked for any more.
fn place(file: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
