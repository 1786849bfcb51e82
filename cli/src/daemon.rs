//! What daemons have in common: signals, logs, descriptors.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::Args;
use pervma_serve::steps::die_at_random;
use pervma_serve::{Keeper, Kept, Options, TakeOverSocket, TakenOver, sandbox};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;

use crate::error::{Error, MATCHED, MISMATCHED, one_line};

/// Can be read when a signal has told this process to stop.
pub(crate) fn stop_signals() -> io::Result<UnixStream> {
    let (wake, stop) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
        signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
    }
    for signal in [SIGUSR1, SIGUSR2] {
        // They would end the process, and let memory be zeros.
        signal_hook::flag::register(signal, Arc::default())?;
    }
    Ok(stop)
}

/// What is wrong with a socket's path.
pub(crate) fn socket_error(path: &Path, error: &io::Error) -> Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there: end it, or give another socket",
        io::ErrorKind::AlreadyExists => "it is no socket: remove it, or give another one",
        _ => "give a path at which a socket can be made",
    };
    Error::File { file: path.to_owned(), reason: one_line(Path::new(&error.to_string())), advice }
}

/// The folder that a file is in.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Where lines go once serving begins: a thread writes them. Who does not read them, or has gone,
/// loses lines, and stops nothing.
#[derive(Clone)]
pub(crate) struct Output {
    pub(crate) out: NonBlocking,
    pub(crate) err: NonBlocking,
}

static OUTPUT: OnceLock<Output> = OnceLock::new();

/// A file that is logged to, in place of standard error.
static LOG: OnceLock<File> = OnceLock::new();

impl Output {
    /// What is returned beside it writes what is left when it is dropped, for a second at most.
    pub(crate) fn start() -> (Self, [WorkerGuard; 2]) {
        let (out, out_guard) = NonBlockingBuilder::default().lossy(true).finish(io::stdout());
        let (err, err_guard) = NonBlockingBuilder::default().lossy(true).finish(log_file());
        let output = Self { out, err };
        (OUTPUT.get_or_init(|| output).clone(), [out_guard, err_guard])
    }
}

fn log_file() -> Box<dyn Write + Send> {
    match LOG.get() {
        Some(file) => Box::new(file),
        None => Box::new(io::stderr()),
    }
}

/// Logs to a file, or to standard error.
pub(crate) fn log(file: Option<File>, level: LevelFilter) {
    let is_terminal = file.is_none() && io::stderr().is_terminal();
    if let Some(file) = file {
        LOG.get_or_init(|| file);
    }
    let writer = || -> Box<dyn Write> {
        match OUTPUT.get() {
            Some(output) => Box::new(output.err.clone()),
            None => log_file(),
        }
    };
    tracing_subscriber::fmt()
        .with_writer(writer)
        .with_max_level(level)
        .with_ansi(is_terminal)
        .with_target(false)
        .log_internal_errors(false)
        .init();
}

/// How the serving process is replaced if it dies.
#[derive(Args, Debug)]
pub(crate) struct KeeperOptions {
    /// Serve in this process alone: if it dies, its clients freeze, or read zeros. Without it
    /// another process serves, and is replaced whenever it dies.
    #[arg(long)]
    no_keeper: bool,
    /// Kill the serving process at random for so long, up to some 30 times a second, to see that
    /// clients go on.
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_keeper")]
    chaos: Option<u64>,
    /// A socket at which another pervma, of a later version perhaps, takes over all that this one
    /// serves; made with mode 0600.
    #[arg(long, value_name = "PATH", conflicts_with = "no_keeper")]
    take_over_socket: Option<PathBuf>,
    /// Take over all that the pervma serves that has this take-over socket, which ends then; and
    /// its other sockets, where they are given here as well.
    #[arg(long, value_name = "PATH", conflicts_with = "no_keeper")]
    take_over: Option<PathBuf>,
}

/// How often `--chaos` kills, on average.
const OFTEN: Duration = Duration::from_millis(33);

impl KeeperOptions {
    /// Takes over from another one, if that is asked for, or from one that has died, of which a
    /// service manager has kept this. To be called before this process opens descriptors.
    pub(crate) fn take_over(
        &self,
        kept: Vec<(String, OwnedFd)>,
    ) -> Result<Option<TakenOver>, Error> {
        raise_descriptors();
        let failed = |socket: &Path, reason| Error::TakeOver { socket: socket.into(), reason };
        match &self.take_over {
            Some(path) => TakenOver::ask(path).map(Some).map_err(|error| failed(path, error)),
            None => TakenOver::stored(kept).map_err(|error| failed(Path::new("FDSTORE"), error)),
        }
    }

    /// Whether anything is taken over, or may be.
    pub(crate) fn takes_over(&self) -> bool {
        self.take_over.is_some() || self.take_over_socket.is_some()
    }

    /// The socket at which others take over, if there is to be one.
    pub(crate) fn socket(
        &self,
        taken: Option<&mut TakenOver>,
    ) -> Result<Option<TakeOverSocket>, Error> {
        let Some(path) = &self.take_over_socket else { return Ok(None) };
        let made = match taken {
            Some(taken) => TakeOverSocket::taken(taken, path),
            None => TakeOverSocket::at(path),
        };
        made.map(Some).map_err(|error| socket_error(path, &error))
    }

    /// To be called before the sandbox is entered.
    pub(crate) fn keeper(
        &self,
        options: &Options,
        taken: Option<TakenOver>,
    ) -> Result<Option<Keeper>, Error> {
        match taken {
            _ if self.no_keeper => Ok(None),
            Some(taken) => {
                let failed = |reason| Error::TakeOver { socket: self.taken_from(), reason };
                Keeper::taking_over(options, taken).map(Some).map_err(failed)
            }
            None => Keeper::new(options).map(Some).map_err(Error::Keeper),
        }
    }

    /// Whose place this one takes.
    fn taken_from(&self) -> PathBuf {
        self.take_over.clone().unwrap_or_else(|| "FDSTORE".into())
    }

    /// Serves: in a process of the keeper, and in the next one if that dies. Whether all clients
    /// were served to their end.
    pub(crate) fn serve(
        &self,
        keeper: Option<Keeper>,
        is_in_sandbox: bool,
        serve: impl FnOnce(Option<Kept>) -> Result<bool, Error>,
    ) -> Result<u8, Error> {
        let code = |served| if served { MATCHED } else { MISMATCHED };
        let Some(keeper) = keeper else { return serve(None).map(code) };
        let until = Instant::now() + Duration::from_secs(self.chaos.unwrap_or_default());
        let work = |kept: Kept| {
            let before = kept.before();
            let served = || {
                let begun = || -> Result<(), Error> {
                    if is_in_sandbox {
                        sandbox::enter_as_started()?;
                    }
                    match self.chaos {
                        Some(_) => Ok(die_at_random(OFTEN, until)?),
                        None => Ok(()),
                    }
                };
                match begun() {
                    // Another process tries it again: `serve` owns what that has as well.
                    Err(error) if before > 0 => std::process::exit(error.tell().into()),
                    other => other?,
                }
                serve(Some(kept))
            };
            served().map(code).unwrap_or_else(|error| error.tell())
        };
        keeper.run(work).map_err(|error| match error.downcast() {
            Ok(reason) => Error::TakeOver { socket: self.taken_from(), reason },
            Err(error) => Error::Kept(error),
        })
    }
}

/// Lets this process have as many descriptors as it may have: each VM takes four.
fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of descriptors cannot be raised");
    }
}
