//! Errors, each in one line that says what to do.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The exit status if everything matched.
pub(crate) const MATCHED: u8 = 0;
/// That if bytes differed, or pages were not faulted in; or the kernel and the model differ.
pub(crate) const MISMATCHED: u8 = 1;
/// That of errors; one line on standard error says what is wrong.
pub(crate) const BAD_INPUT: u8 = 2;

/// Why nothing was paged or compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0} (see pervma --help)")]
    Usage(String),
    #[error("{}: {reason}: {advice}", one_line(file))]
    File { file: PathBuf, reason: String, advice: &'static str },
    #[error(
        "{}: paging {bytes} bytes with {resident} of them in memory at a time takes {needed} bytes of \
         memory and {available} are available: give a smaller --resident or a smaller file",
        one_line(file)
    )]
    TooLarge { file: PathBuf, bytes: u64, resident: u64, needed: u64, available: u64 },
    #[error(
        "--resident {bytes} is too small for --granule {granule}: give at least four times as much, \
         {least}"
    )]
    Resident { bytes: usize, granule: usize, least: usize },
    #[error(
        "{}: its bytes cannot be read any more: give a file that is not shortened meanwhile",
        one_line(file)
    )]
    Shortened { file: PathBuf },
    #[error("--compare: the kernel could not map the file ({0}): check ulimit -v")]
    Compare(io::Error),
    #[error("--svg {}: {reason}: give a file that can be written", one_line(file))]
    Picture { file: PathBuf, reason: String },
    #[error("{}: {reason}", one_line(file))]
    WorkingSet { file: PathBuf, reason: pervma_serve::working_set::WorkingSetError },
    #[error("{}: {reason}", one_line(file))]
    Source { file: PathBuf, reason: pervma_pager::Error },
    #[error(transparent)]
    Region(#[from] pervma_pager::Error),
    #[error("thread {number} could not be started ({reason}): give a smaller --threads")]
    Thread { number: usize, reason: io::Error },
    #[error(
        "the thread that does the work could not be started ({0}): check ulimit -v and ulimit -u"
    )]
    NoThread(io::Error),
    #[error("this program's own file cannot be found ({0}): give a FILE")]
    NoExecutable(io::Error),
    #[error("no comparison can be made here: {0}")]
    Unfit(String),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[error("the comparison could not be made ({0}): it needs /proc and ptrace")]
    Differ(io::Error),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[error("{0}")]
    Mirror(#[from] pervma_differ::mirror::MirrorError),
    #[error("the process in the background has ended ({0}): see above, and its log")]
    Background(std::process::ExitStatus),
    #[error("{0}: give -D the directory of a checkpoint's images")]
    Images(#[from] pervma_serve::images::ImagesError),
    #[error("the page server {host:?}, port {port}: {reason}: start it first")]
    PageServer { host: String, port: u16, reason: io::Error },
    #[error("--status-fd {number}: {reason}: give an open descriptor")]
    StatusFd { number: i32, reason: io::Error },
    #[error("{0}: give --no-sandbox to serve without one")]
    Sandbox(#[from] pervma_serve::sandbox::SandboxError),
    #[error("{}: nothing is taken over: {reason}", one_line(socket))]
    TakeOver { socket: PathBuf, reason: pervma_serve::TakeOverError },
    #[error("no process can keep the serving one ({0}): see ulimit -l, or give --no-keeper")]
    Keeper(io::Error),
    #[error("the serving process is not kept any more: {0}")]
    Kept(io::Error),
    #[error("the report could not be written: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    /// Says what is wrong; returns the exit status.
    pub(crate) fn tell(&self) -> u8 {
        // If standard error is closed, there is no place left to report that.
        let _ = writeln!(io::stderr(), "pervma: {self}");
        BAD_INPUT
    }
}

/// Returns a name as text on one line.
pub(crate) fn one_line(file: &Path) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    file.to_string_lossy().chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_name_stays_on_one_line() {
        assert_eq!(one_line(Path::new("a\nb\u{1b}[31m é")), "a\\nb\\u{1b}[31m é");
    }
}
