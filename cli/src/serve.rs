//! The command `serve`: a daemon that serves the page faults of microVMs.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use pervma_serve::exec_helper::ExecHelper;
use pervma_serve::sandbox::Sandbox;
use pervma_serve::{
    Ended, FailedClient, Limits, Listen, MemoryFile, OnFailure, OnStop, Options, Pager, Server,
    Stats, TakenOver, Tell,
};
use rustix::fs::{FileType, OFlags};
use serde::Serialize;
use tracing_subscriber::filter::LevelFilter;

use crate::daemon::{self, KeeperOptions, Output};
use crate::error::{Error, one_line};
use crate::inherited::Passed;
use crate::values::{Granule, positive, threads};
use crate::working_set;

#[derive(Args, Debug)]
pub(crate) struct ServeOptions {
    /// The Unix socket at which microVMs arrive; made with mode 0600. Without it, the first socket
    /// that a service manager has passed (socket activation).
    #[arg(long, value_name = "PATH", requires = "memory")]
    socket: Option<PathBuf>,
    /// The memory file of the snapshot that those who arrive there were taken from.
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// Another socket, with a memory file of its own; may be given many times.
    #[arg(long, value_name = "SOCKET=FILE", value_parser = vm)]
    vm: Vec<(PathBuf, PathBuf)>,
    /// The number of threads that serve faults, 1 to 1024 [default: one per core].
    #[arg(long, value_name = "N", value_parser = threads)]
    workers: Option<NonZeroUsize>,
    /// How much one fault fills: 4K, 64K or 2M.
    #[arg(long, value_name = "SIZE", default_value = "64K")]
    granule: Granule,
    /// So many granules are filled ahead of a VM that touches one after the other.
    #[arg(long, value_name = "N", default_value_t = 16)]
    ahead: usize,
    /// Record what each VM asks for: of the first that comes in this file, of the n-th in FILE.n,
    /// written when it has gone. `pervma working-set` says what is in it.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Fill what was recorded ahead of the faults of each VM of the same memory file; may be given
    /// many times. Records of e2b (JSON) and REAP (CSV) are taken as well if there is one memory
    /// file.
    #[arg(long, value_name = "FILE")]
    replay: Vec<PathBuf>,
    /// So long a thread looks for the next fault before it sleeps, in microseconds.
    #[arg(long, value_name = "MICROS", default_value_t = 0)]
    spin: u64,
    /// What is done with a VM that cannot be served, beside poisoning what it misses.
    #[arg(long, value_name = "WHAT", default_value = "poison")]
    on_failure: WhatOnFailure,
    /// For `--on-failure exec`: the command, and given again, its arguments. It gets the number of
    /// the VM's process and the reason as two more, runs outside of the sandbox, without a shell,
    /// and is killed after 30 seconds.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    exec: Vec<OsString>,
    /// What happens to VMs at SIGTERM, SIGINT, SIGHUP or SIGQUIT; a second one makes them fail at
    /// once.
    #[arg(long, value_name = "WHAT", default_value = "drain")]
    on_stop: WhatOnStop,
    /// How long `--on-stop drain` waits, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stop_timeout: u64,
    /// Serves VMs of this user only; may be given many times [default: whoever can connect].
    #[arg(long, value_name = "UID")]
    allow_uid: Vec<u32>,
    /// VMs at a time, forked children included.
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = Limits::default().clients)]
    max_clients: usize,
    /// Regions of a VM.
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = Limits::default().regions)]
    max_regions: usize,
    /// Bytes of a VM's message.
    #[arg(long, value_name = "BYTES", value_parser = positive, default_value_t = Limits::default().message)]
    max_message: usize,
    /// Peers at a time that have not said all yet.
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = Limits::default().handshakes)]
    max_handshakes: usize,
    /// Seconds until a peer has said all.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..),
        default_value_t = Limits::default().handshake.as_secs())]
    handshake_timeout: u64,
    /// Reads of the memory file at a time that wait for the disk, of one VM.
    #[arg(long, value_name = "N", default_value_t = Limits::default().reads)]
    max_reads: usize,
    /// Reads of memory files at a time that wait for the disk, of all VMs.
    #[arg(long, value_name = "N", default_value_t = Limits::default().all_reads)]
    max_all_reads: usize,
    #[command(flatten)]
    keeper: KeeperOptions,
    /// Keep all privileges. Without it the process gives up files, other system calls than serving
    /// takes, and capabilities once its sockets are there.
    #[arg(long)]
    no_sandbox: bool,
    /// Print a JSON object a second, one a line, and one at the end; as into a pipe.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WhatOnFailure {
    /// Nothing else: accesses to what is missing fail.
    Poison,
    /// Its process is killed.
    Kill,
    /// The command of `--exec` is run.
    Exec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WhatOnStop {
    /// They are served until they have gone.
    Drain,
    /// All that they miss is filled.
    Fill,
    /// They fail.
    Fail,
}

fn vm(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (socket, file) = text.split_once('=').ok_or("give SOCKET=FILE")?;
    if socket.is_empty() || file.is_empty() {
        return Err("give SOCKET=FILE".to_owned());
    }
    Ok((socket.into(), file.into()))
}

/// Serves until it is told to stop; returns whether all VMs could be served to their end, as an
/// exit status.
pub(crate) fn run(options: &ServeOptions) -> Result<u8, Error> {
    // Before any descriptor is opened, which could be taken for one of these, or have its number.
    let mut passed = Passed::from_env()?;
    let mut taken = options.keeper.take_over(std::mem::take(&mut passed.kept))?;
    let stop = daemon::stop_signals()?;
    daemon::log(None, LevelFilter::INFO);
    refuse_contradictions(options)?;
    // Before the sandbox, and before there are threads.
    let helper = match options.on_failure {
        WhatOnFailure::Exec => Some(ExecHelper::start(&options.exec)?),
        WhatOnFailure::Poison | WhatOnFailure::Kill => None,
    };
    let replays = options.replay.iter().map(|file| Ok((file, working_set::read(file)?)));
    let replays = replays.collect::<Result<Vec<_>, Error>>()?;
    let listens = listens(options, passed, taken.as_mut())?;
    let socket = options.keeper.socket(taken.as_mut())?;
    // It asks files for a quota, which the sandbox does not let it.
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let manager = Manager::find()?;
    let pager = pager(options, cores);
    let keeper = options.keeper.keeper(&pager, taken)?;
    if let Some(keeper) = &keeper
        && let Some(store) = manager.store()?
    {
        keeper.store_in(store);
    }
    if options.no_sandbox {
        tracing::warn!("no sandbox: all privileges are kept");
    } else {
        enter_sandbox(options, keeper.is_some())?;
    }
    let mut server = server(options, pager, listens);
    for (file, set) in replays {
        server = server
            .replay(set)
            .map_err(|reason| Error::WorkingSet { file: file.clone(), reason })?;
    }
    if let Some(socket) = socket {
        server = server.take_over(socket);
    }
    // What fails there drops what the next process has as well: nothing may.
    options.keeper.serve(keeper, !options.no_sandbox, |kept| {
        let (tell, teller) = helper.map(teller).unzip();
        if let Some(tell) = tell {
            server = server.on_failure(OnFailure::Tell(tell));
        }
        // Threads, so not before the sandbox, nor in the keeper.
        let (output, _written) = Output::start();
        let mut progress = Progress::new(options.json, output);
        let (before, deaths) = kept.as_ref().map_or((0, 0), |kept| (kept.before(), kept.deaths()));
        let started = || match manager.tell_ready() {
            // It knows, from a process before this one.
            Err(error) if before > 0 => {
                tracing::warn!(%error, "the service manager is not told");
                Ok(())
            }
            told => told,
        };
        let look = |pager: &Pager, ended: &Ended| progress.look(pager, ended);
        let ended = match kept {
            Some(kept) => server.run_kept(kept, stop.as_fd(), started, look),
            None => server.run(stop.as_fd(), started, look),
        }?;
        // The last failures may be those of the end.
        if let Some(teller) = teller {
            // It has told of its panic.
            let _ = teller.join();
        }
        progress.end(ended, deaths);
        Ok(ended.failed == 0 && ended.stats.poisoned == 0)
    })
}

/// What the command line cannot mean.
fn refuse_contradictions(options: &ServeOptions) -> Result<(), Error> {
    let is_exec = options.on_failure == WhatOnFailure::Exec;
    if is_exec && options.exec.is_empty() {
        return Err(Error::Usage("--on-failure exec needs --exec COMMAND".to_owned()));
    }
    if !is_exec && !options.exec.is_empty() {
        return Err(Error::Usage("--exec needs --on-failure exec".to_owned()));
    }
    let mut sockets = HashSet::new();
    let twice = options
        .socket
        .iter()
        .chain(options.vm.iter().map(|(socket, _)| socket))
        .find(|&socket| !sockets.insert(socket));
    match twice {
        Some(socket) => Err(Error::Usage(format!("{} is given twice", one_line(socket)))),
        None => Ok(()),
    }
}

/// The service manager, if there is one that wants to be told (`sd_notify`). Its socket is
/// connected before the sandbox is entered, in which no socket can be made.
struct Manager(Option<UnixDatagram>);

impl Manager {
    fn find() -> io::Result<Self> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self(None)) };
        let socket = UnixDatagram::unbound()?;
        match name.as_bytes() {
            [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            _ => socket.connect(&name)?,
        }
        // A manager that does not hear is waited for no longer.
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        Ok(Self(Some(socket)))
    }

    /// Where descriptors can be kept, if this one keeps some (`FileDescriptorStoreMax`).
    fn store(&self) -> io::Result<Option<OwnedFd>> {
        let keeps =
            std::env::var("FDSTORE").is_ok_and(|most| most.parse().is_ok_and(|most: u64| most > 0));
        let socket = self.0.as_ref().filter(|_| keeps);
        socket.map(|socket| Ok(socket.try_clone()?.into())).transpose()
    }

    fn tell_ready(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |socket| socket.send(b"READY=1").map(drop))
    }
}

/// Gives up what serving does not take.
fn enter_sandbox(options: &ServeOptions, starts_processes: bool) -> Result<(), Error> {
    let sockets = options.socket.iter().chain(options.vm.iter().map(|(socket, _)| socket));
    let removable = sockets.map(|socket| daemon::folder_of(socket)).collect();
    let writable = options.record.iter().map(|file| daemon::folder_of(file)).collect();
    let kills_other_users = options.on_failure == WhatOnFailure::Kill;
    let report = Sandbox { removable, writable, kills_other_users, starts_processes }.enter()?;
    tracing::info!("sandbox: {report}");
    Ok(())
}

/// Has a thread run the command for each failure, since it may take its time.
fn teller(helper: ExecHelper) -> (Box<Tell>, JoinHandle<()>) {
    let (send, failures) = channel::<FailedClient>();
    let teller = std::thread::spawn(move || {
        for failed in failures {
            let (id, pid) = (failed.id().number(), failed.peer().pid);
            match helper.run(id, pid, &failed.failure().to_string()) {
                Ok(outcome) => tracing::info!(pid, ?outcome, "the command was run"),
                Err(error) => tracing::error!(pid, %error, "the command was not run"),
            }
            failed.note_told();
        }
    });
    // The thread ends after this does.
    let tell = move |failed: FailedClient| drop(send.send(failed));
    (Box::new(tell), teller)
}

fn limits(options: &ServeOptions) -> Limits {
    Limits {
        clients: options.max_clients,
        handshakes: options.max_handshakes,
        handshake: Duration::from_secs(options.handshake_timeout),
        message: options.max_message,
        regions: options.max_regions,
        reads: options.max_reads,
        all_reads: options.max_all_reads,
    }
}

fn pager(options: &ServeOptions, cores: usize) -> Options {
    let workers = options.workers.map_or(cores, NonZeroUsize::get);
    Options::new()
        .workers(workers)
        .granule(options.granule.bytes())
        .ahead(options.ahead)
        .spin(Duration::from_micros(options.spin))
        .limits(limits(options))
}

fn server(options: &ServeOptions, pager: Options, listens: Vec<Listen>) -> Server {
    let server = Server::new(listens, pager, limits(options))
        .on_failure(match options.on_failure {
            WhatOnFailure::Kill => OnFailure::Kill,
            // Who is told is known later.
            WhatOnFailure::Poison | WhatOnFailure::Exec => OnFailure::Poison,
        })
        .on_stop(match options.on_stop {
            WhatOnStop::Drain => OnStop::Drain(Duration::from_secs(options.stop_timeout)),
            WhatOnStop::Fill => OnStop::Fill,
            WhatOnStop::Fail => OnStop::Fail,
        });
    let server = match &options.record {
        Some(file) => server.record(file.clone()),
        None => server,
    };
    if options.allow_uid.is_empty() { server } else { server.only_users(options.allow_uid.clone()) }
}

/// The sockets, each with its memory file. A file that is given twice is opened once.
fn listens(
    options: &ServeOptions,
    mut passed: Passed,
    mut taken: Option<&mut TakenOver>,
) -> Result<Vec<Listen>, Error> {
    let mut files: HashMap<PathBuf, Arc<MemoryFile>> = HashMap::new();
    let mut open = |path: &Path| -> Result<Arc<MemoryFile>, Error> {
        if let Some(file) = files.get(path) {
            return Ok(Arc::clone(file));
        }
        // Not to wait for who writes, if it is a pipe.
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let opened = File::options().read(true).custom_flags(nonblocking).open(path);
        let opened = opened.and_then(MemoryFile::new).map_err(|reason| Error::File {
            file: path.to_owned(),
            reason: reason.to_string(),
            advice: "give the memory file of a snapshot",
        })?;
        let file = Arc::new(opened);
        files.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    };
    let mut first_passed = match (options.socket.is_some(), passed.len()) {
        (_, 0) => None,
        (false, 1) => passed.take_first().map_err(|error| {
            Error::Usage(format!("the socket that was passed cannot be used: {error}"))
        })?,
        (false, _) => {
            return Err(Error::Usage("more than one socket was passed: give one".to_owned()));
        }
        (true, _) => {
            return Err(Error::Usage("a socket was passed: leave --socket out".to_owned()));
        }
    };
    let mut listens = Vec::new();
    let first = options.memory.as_ref().map(|memory| (options.socket.as_ref(), memory));
    let others = options.vm.iter().map(|(socket, memory)| (Some(socket), memory));
    for (socket, memory) in first.into_iter().chain(others) {
        let source = open(memory)?;
        let listen = match socket {
            Some(path) => match &mut taken {
                Some(taken) => Listen::taken(taken, path, source),
                None => Listen::at(path, source),
            }
            .map_err(|error| daemon::socket_error(path, &error))?,
            None => match first_passed.take() {
                Some(listener) => {
                    // It was given by who served there, too.
                    let place = listener.local_addr()?;
                    let place = place.as_pathname();
                    drop(taken.as_mut().zip(place).map(|(taken, path)| taken.listener(path)));
                    Listen::of(listener, source)?
                }
                None => {
                    let message = "--memory needs --socket, and no socket was passed";
                    return Err(Error::Usage(message.to_owned()));
                }
            },
        };
        listens.push(if options.keeper.takes_over() || std::env::var_os("FDSTORE").is_some() {
            let identified = listen.identify();
            identified.map_err(|reason| Error::WorkingSet { file: memory.clone(), reason })?
        } else {
            listen
        });
    }
    if listens.is_empty() {
        return Err(Error::Usage("give --socket and --memory, or --vm".to_owned()));
    }
    Ok(listens)
}

/// What is told about once a second.
struct Progress {
    output: Output,
    /// Whether JSON was asked for, and nothing else.
    only_json: bool,
    /// As for a pipe.
    json: bool,
    is_terminal: bool,
    since: Instant,
    /// The sum of clients that were seen last.
    last: Stats,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line {
    clients: usize,
    faults_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    resident_percent: f64,
    #[serde(flatten)]
    counts: Counts,
}

/// What was counted since the start.
#[derive(Serialize)]
struct Counts {
    faults: u64,
    pages: u64,
    zeros: u64,
    ahead: u64,
    reads: u64,
    retries: u64,
    poisoned: u64,
    removes: u64,
    unmaps: u64,
    remaps: u64,
    forks: u64,
}

/// The last line of `--json`.
#[derive(Serialize)]
struct LastLine {
    ended: bool,
    clients: u64,
    refused: u64,
    failed: u64,
    /// Of serving processes.
    deaths: u64,
    #[serde(flatten)]
    counts: Counts,
}

impl Progress {
    fn new(only_json: bool, output: Output) -> Self {
        let json = only_json || is_pipe(io::stdout());
        let is_terminal = !json && io::stderr().is_terminal();
        let (since, last) = (Instant::now(), Stats::default());
        Self { output, only_json, json, is_terminal, since, last }
    }

    fn look(&mut self, pager: &Pager, ended: &Ended) {
        let time = self.since.elapsed();
        if !(self.json || self.is_terminal) || time < Duration::from_secs(1) {
            return;
        }
        self.since = Instant::now();
        let (mut stats, mut bytes) = (Stats::default(), 0);
        let clients = pager.clients();
        for &client in &clients {
            stats += pager.stats(client).unwrap_or_default();
            bytes += pager.len(client).unwrap_or_default();
        }
        let resident = (stats.pages + stats.zeros) as f64 * 4096.0 / (bytes.max(1) as f64);
        stats += ended.stats;
        let faults = stats.faults.saturating_sub(self.last.faults);
        self.last = stats;
        let (_, [half, most]) = pager.latency().quantiles([0.5, 0.99]);
        let line = Line {
            clients: clients.len(),
            faults_per_second: faults as f64 / time.as_secs_f64(),
            p50_us: half.as_secs_f64() * 1e6,
            p99_us: most.as_secs_f64() * 1e6,
            resident_percent: 100.0 * resident.min(1.0),
            counts: stats.into(),
        };
        if self.json {
            self.print(&line);
        } else {
            self.say(line.to_string());
        }
    }

    fn end(&mut self, ended: Ended, deaths: u64) {
        let Ended { clients, refused, failed, stats, .. } = ended;
        if self.json {
            let counts = stats.into();
            self.print(&LastLine { ended: true, clients, refused, failed, deaths, counts });
        }
        if self.only_json {
            return;
        }
        let start = if self.is_terminal { "\n" } else { "" };
        let poisoned = match stats.poisoned {
            0 => String::new(),
            pages => format!(", pages poisoned {pages}"),
        };
        let deaths = match deaths {
            0 => String::new(),
            deaths => format!(", serving processes that died {deaths}"),
        };
        let text = format!("{start}VMs {clients}, refused {refused}, failed {failed}");
        self.say(format!("{text}{poisoned}{deaths}\n"));
    }

    fn print(&mut self, line: &impl Serialize) {
        // Numbers and their names, which can be written.
        if let Ok(mut text) = serde_json::to_vec(line) {
            text.push(b'\n');
            // Who does not read it loses it.
            let _ = self.output.out.write_all(&text);
        }
    }

    fn say(&mut self, text: String) {
        // As above.
        let _ = self.output.err.write_all(text.as_bytes());
    }
}

fn is_pipe(out: impl AsFd) -> bool {
    let about = rustix::fs::fstat(out);
    about.is_ok_and(|about| FileType::from_raw_mode(about.st_mode) == FileType::Fifo)
}

impl From<Stats> for Counts {
    fn from(stats: Stats) -> Self {
        Self {
            faults: stats.faults,
            pages: stats.pages,
            zeros: stats.zeros,
            ahead: stats.ahead,
            reads: stats.reads,
            retries: stats.retries,
            poisoned: stats.poisoned,
            removes: stats.removes,
            unmaps: stats.unmaps,
            remaps: stats.remaps,
            forks: stats.forks,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clients, faults_per_second, p50_us, p99_us, resident_percent, .. } = self;
        write!(
            f,
            "\r\u{1b}[KVMs {clients}, faults/s {faults_per_second:.0}, p50 {p50_us:.1} us, \
             p99 {p99_us:.1} us, resident {resident_percent:.1} %"
        )
    }
}
