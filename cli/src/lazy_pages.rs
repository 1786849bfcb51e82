//! The command `lazy-pages`: a daemon that stands in for `criu lazy-pages`.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::ToSocketAddrs;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use pervma_serve::images::{Images, PageServer};
use pervma_serve::sandbox::Sandbox;
use pervma_serve::{Limits, Options, Restores};
use rustix::process::{Pid, Signal, kill_process};
use tracing_subscriber::filter::LevelFilter;

use crate::daemon::{self, KeeperOptions, Output};
use crate::error::{Error, MATCHED, one_line};
use crate::inherited;
use crate::values::{Granule, threads};
use crate::working_set;

/// Where `criu restore` connects to, in the work directory.
const SOCKET: &str = "lazy-pages.socket";

/// So many requests to a page server are under way, of 256 KiB each, for what is not touched.
const REMOTE_FILLERS: usize = 16;

#[derive(Args, Debug)]
pub(crate) struct LazyPagesOptions {
    /// The directory of the images.
    #[arg(short = 'D', long, value_name = "DIR", default_value = ".")]
    images_dir: PathBuf,
    /// The directory of the socket, the log and the pidfile [default: that of the images].
    #[arg(short = 'W', long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Log to this file, in the work directory [default: standard error].
    #[arg(short = 'o', long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// How much is logged: 1 errors, 2 warnings, 3 restores and tasks, 4 more; or as many letters
    /// [default: 2].
    #[arg(short = 'v', long = "verbosity", value_name = "N", num_args = 0..=1,
        default_missing_value = "1", value_parser = verbosity)]
    verbosity: Vec<u8>,
    /// Write the number of the process to this file, in the work directory; it must not be there.
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Serve in the background: return when the socket is there.
    #[arg(short = 'd', long)]
    daemon: bool,
    /// Write a zero byte to this descriptor when the socket is there, and close it.
    #[arg(long, value_name = "N")]
    status_fd: Option<i32>,
    /// Ask a page server for the pages (`criu page-server --lazy-pages`, `criu dump --lazy-pages`):
    /// the images need no files with pages.
    #[arg(long, requires = "address", requires = "port")]
    page_server: bool,
    /// The address of the page server.
    #[arg(long, value_name = "ADDRESS", requires = "page_server")]
    address: Option<String>,
    /// The port of the page server.
    #[arg(long, value_name = "PORT", requires = "page_server")]
    port: Option<u16>,
    /// Read no configuration file: none is read in any case.
    #[arg(long)]
    no_default_config: bool,
    /// Serve any number of restores, one after the other or at a time, until it is told to stop:
    /// without this it is one.
    #[arg(long)]
    serve: bool,
    /// The number of threads that serve faults, and of those that fill what is not touched, 1 to
    /// 1024 [default: one per core].
    #[arg(long, value_name = "N", value_parser = threads)]
    workers: Option<NonZeroUsize>,
    /// How much one fault fills: 4K, 64K or 2M.
    #[arg(long, value_name = "SIZE", default_value = "64K")]
    granule: Granule,
    /// Record what each task asks for: of the first that comes in this file, of the n-th in FILE.n,
    /// written when it has all its memory or has ended. `pervma working-set` says what is in it.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Fill what was recorded of any task ahead of all else, once the tasks run; may be given many
    /// times.
    #[arg(long, value_name = "FILE")]
    replay: Vec<PathBuf>,
    /// Keep all privileges. Without it the process gives up files, other system calls than serving
    /// takes, and capabilities once its socket is there.
    #[arg(long)]
    no_sandbox: bool,
    /// This is the process in the background, whose standard input is a socket of the one that has
    /// started it.
    #[arg(long, hide = true)]
    in_background: bool,
    #[command(flatten)]
    keeper: KeeperOptions,
}

/// Reads what is given to `-v`: a number, or more letters.
fn verbosity(text: &str) -> Result<u8, String> {
    if !text.is_empty() && text.bytes().all(|letter| letter == b'v') {
        return Ok(u8::try_from(text.len() + 1).unwrap_or(u8::MAX));
    }
    text.parse().map_err(|_| "give a number, or letters v".to_owned())
}

impl LazyPagesOptions {
    /// Connects to the page server, if there is to be one.
    fn page_server(&self) -> Result<Option<PageServer>, Error> {
        let (true, Some(host), Some(port)) = (self.page_server, &self.address, self.port) else {
            return Ok(None);
        };
        let connected = (host.as_str(), port).to_socket_addrs().and_then(|mut addresses| {
            let address = addresses.next().ok_or_else(|| io::Error::other("no such address"))?;
            PageServer::connect(&address)
        });
        let failed = |reason| Error::PageServer { host: host.clone(), port, reason };
        connected.map(Some).map_err(failed)
    }

    fn level(&self) -> LevelFilter {
        let given = self.verbosity.iter().fold(0_u8, |sum, &more| sum.saturating_add(more));
        match (self.verbosity.is_empty(), given) {
            (true, _) | (_, 2) => LevelFilter::WARN,
            (_, 0 | 1) => LevelFilter::ERROR,
            (_, 3) => LevelFilter::INFO,
            _ => LevelFilter::DEBUG,
        }
    }
}

/// Serves until its restore has ended, or it is told to stop; whether every task could be served to
/// its end, as an exit status.
pub(crate) fn run(options: &LazyPagesOptions) -> Result<u8, Error> {
    if options.daemon && !options.in_background {
        return start_in_background(options).map(|()| MATCHED);
    }
    if options.page_server && options.keeper.takes_over() {
        let message = "what comes from a page server cannot be taken over: leave --take-over out";
        return Err(Error::Usage(message.to_owned()));
    }
    // Before any descriptor is opened, which could have the number of one that comes.
    let mut taken = options.keeper.take_over(Vec::new())?;
    let status = options.status_fd.map(|number| {
        let taken = inherited::take_first_of_all(number);
        taken.map_err(|reason| Error::StatusFd { number, reason })
    });
    let status = status.transpose()?;
    let parent = if options.in_background { Some(leave_parent()?) } else { None };
    let stop = daemon::stop_signals()?;
    let images = match options.page_server()? {
        None => Images::open(&options.images_dir)?,
        Some(server) => Images::open_remote(&options.images_dir, server)?,
    };
    let replays = options.replay.iter().map(|file| Ok((file, working_set::read(file)?)));
    let replays = replays.collect::<Result<Vec<_>, Error>>()?;
    // Wherever it works.
    let socket = options.keeper.socket(taken.as_mut())?;
    let record = options.record.as_ref().map(std::path::absolute).transpose()?;
    // CRIU connects to a name, not a path: to be found there however long the path is.
    let work_dir = options.work_dir.as_ref().unwrap_or(&options.images_dir);
    std::env::set_current_dir(work_dir).map_err(|error| file_error(work_dir, &error))?;
    let log_file = options.log_file.as_ref().map(|path| {
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(path);
        file.map_err(|error| file_error(path, &error))
    });
    daemon::log(log_file.transpose()?, options.level());
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = options.workers.map_or(cores, NonZeroUsize::get);
    // Those that wait for a page server take no processor.
    let fillers = if options.page_server { REMOTE_FILLERS } else { workers };
    let pager = Options::new().workers(workers).fillers(fillers).granule(options.granule.bytes());
    let (path, limits) = (Path::new(SOCKET), Limits::default());
    let restores = match &mut taken {
        Some(taken) => Restores::taken(taken, path, images, pager.clone(), limits),
        None => Restores::at(path, images, pager.clone(), limits),
    };
    let mut restores = restores.map_err(|error| file_error(&work_dir.join(SOCKET), &error))?;
    if options.keeper.takes_over() {
        restores = restores
            .identify()
            .map_err(|reason| Error::WorkingSet { file: options.images_dir.clone(), reason })?;
    }
    if let Some(socket) = socket {
        restores = restores.take_over(socket);
    }
    // What a page server has sent in part cannot be read on by another process.
    let keeper = if options.page_server { None } else { options.keeper.keeper(&pager, taken)? };
    let mut restores = if options.serve { restores } else { restores.only_one() };
    for (file, set) in replays {
        let replayed = restores.replay(set);
        restores = replayed.map_err(|reason| Error::WorkingSet { file: file.clone(), reason })?;
    }
    let writable = record.iter().map(|file| daemon::folder_of(file)).collect();
    let restores = match record {
        Some(file) => restores.record(file),
        None => restores,
    };
    if let Some(path) = options.pidfile.as_ref().filter(|_| !options.in_background) {
        write_pidfile(path, std::process::id())?;
    }
    if parent.is_some() {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null).map_err(io::Error::from)?;
        rustix::stdio::dup2_stdout(&null).map_err(io::Error::from)?;
        rustix::stdio::dup2_stderr(&null).map_err(io::Error::from)?;
    }
    if options.no_sandbox {
        tracing::warn!("no sandbox: all privileges are kept");
    } else {
        let removable = vec![PathBuf::from(".")];
        let starts_processes = keeper.is_some();
        let sandbox = Sandbox { removable, writable, starts_processes, ..Sandbox::default() };
        let report = sandbox.enter()?;
        tracing::info!("sandbox: {report}");
    }
    let tell_ready = || {
        for mut ready in [status, parent].into_iter().flatten() {
            ready.write_all(&[0])?;
        }
        Ok(())
    };
    let tell_ready = match keeper {
        // Once, by who is not replaced. Who connects now waits until somebody serves.
        Some(_) => tell_ready().map(|()| None)?,
        None => Some(tell_ready),
    };
    options.keeper.serve(keeper, !options.no_sandbox, |kept| {
        // Threads, so not before the sandbox, nor in the keeper.
        let (_output, _written) = Output::start();
        let started = || tell_ready.map_or(Ok(()), |tell_ready| tell_ready());
        let ended = match kept {
            Some(kept) => restores.run_kept(kept, stop.as_fd(), started),
            None => restores.run(stop.as_fd(), started),
        }?;
        Ok(ended.failed == 0)
    })
}

/// Starts this command once more, as a process of its own session, and waits until it serves.
fn start_in_background(options: &LazyPagesOptions) -> Result<(), Error> {
    let (mut here, there) = UnixStream::pair()?;
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    arguments.push("--in-background".into());
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments).stdin(OwnedFd::from(there)).stdout(Stdio::null());
    let mut child = command.spawn()?;
    // It has the other end.
    drop(command);
    if here.read(&mut [0])? == 0 {
        let status = child.wait()?;
        return Err(Error::Background(status));
    }
    if let Some(path) = &options.pidfile {
        let work_dir = options.work_dir.as_ref().unwrap_or(&options.images_dir);
        let written = write_pidfile(&work_dir.join(path), child.id());
        if written.is_err() {
            // It has served nobody yet.
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
        written?;
    }
    Ok(())
}

/// Begins a session of its own; returns where the process that has started this one is told that it
/// serves.
fn leave_parent() -> Result<File, Error> {
    rustix::process::setsid().map_err(io::Error::from)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(File::from(socket))
}

fn write_pidfile(path: &Path, pid: u32) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(pid.to_string().as_bytes()));
    written.map_err(|error| file_error(path, &error))
}

fn file_error(path: &Path, error: &io::Error) -> Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there: end it, or give another -W",
        io::ErrorKind::AlreadyExists => "remove it, or give another one",
        _ => "give a directory that can be written",
    };
    Error::File { file: path.to_owned(), reason: one_line(Path::new(&error.to_string())), advice }
}
