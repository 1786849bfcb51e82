//! A daemon whose serving process is killed, or from which another one takes over, while clients
//! fault: how long they wait. What the keeper costs meanwhile.

use std::cell::RefCell;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Lines, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use clap::ValueEnum;
use pervma_serve::sandbox::{Sandbox, enter_as_started};
use pervma_serve::{
    Keeper, Kept, Limits, Listen, MemoryFile, Options, Server, TakeOverSocket, TakenOver,
};
use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, getpid, kill_process};
use tempfile::TempDir;

use super::client::{Client, Command, Memory};
use super::content;
use super::setup::Errors;
use crate::comparison::{Bound, Comparison, Effort, Goal, Outcome};
use crate::layout::PAGE;
use crate::machine::FewProcessors;
use crate::report::{Figures, Table, all};
use crate::summary::Summary;

/// Clients at a time.
const CLIENTS: [usize; 3] = [1, 10, 100];
/// By how many ms the longest fault may exceed the longest one while nothing happens.
const BEYOND: [(usize, &str, f64); 3] =
    [(1, KILLED, 100.0), (100, KILLED, 250.0), (100, TAKEN_OVER, 250.0)];
/// Bytes that may be noted of a client, when there are most.
const NOTED: f64 = 16384.0;
/// Threads that serve.
const WORKERS: usize = 2;
/// Threads that fault where the keeper is compared.
const THREADS: [usize; 2] = [1, 2];

const LEFT_ALONE: &str = "nothing happens";
const KILLED: &str = "the serving process is killed";
const TAKEN_OVER: &str = "another daemon takes over";
const WITH_KEEPER: &str = "with a keeper";
const WITHOUT: &str = "without";

const LONGEST: usize = 0;
const UNTIL_NEXT: usize = 1;

/// How a daemon serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServeHow {
    Kept,
    TakingOver,
    Alone,
}

pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    let mut stalls = Table::new("the longest fault of a round", "ms");
    let mut next = Table::new("until the next process serves", "ms");
    let mut memory = Table::new("memory of what is noted of a client", "bytes");
    let mut goals = Vec::new();
    for count in CLIENTS {
        let (outcome, noted) = deaths(count, effort)?;
        let exactly =
            |name, thousandths| outcome.per_mille(name, LONGEST, thousandths).map(Summary::exactly);
        for (part, thousandths) in [("p50", 500), ("p99", 990), ("worst", 1000)] {
            let figures = outcome.names().map(|name| (name, exactly(name, thousandths)));
            stalls.case(format!("{}, {part}", clients(count)), figures);
        }
        let until = [KILLED, TAKEN_OVER].map(|name| (name, outcome.summary(name, UNTIL_NEXT)));
        next.case(clients(count), until);
        let each = Summary::exactly(noted as f64 / count as f64);
        memory.case(clients(count), [("pervma", Some(each))]);
        for (_, name, most) in BEYOND.into_iter().filter(|(of, ..)| *of == count) {
            let [longest, without] =
                [name, LEFT_ALONE].map(|name| outcome.per_mille(name, LONGEST, 1000));
            let beyond = longest.zip(without).map(|(longest, without)| longest - without);
            let what =
                format!("{name}, {}: ms of the longest fault beyond that without", clients(count));
            let goal = |beyond: f64| Goal::new(what, Bound::AtMost(most), Summary::exactly(beyond));
            goals.extend(beyond.map(goal));
        }
        if Some(&count) == CLIENTS.last() {
            let what = format!("bytes that are noted of a client, of {count}");
            goals.push(Goal::new(what, Bound::AtMost(NOTED), each));
        }
    }
    let outcome = keeper(effort)?;
    let mut times = Table::new("4 KiB a fault", "µs");
    for (measure, threads) in THREADS.into_iter().enumerate() {
        times.case(format!("{threads} faulting"), all(&outcome, measure));
        let what = format!("time of a fault with a keeper over that without, {threads} faulting");
        let (of, to) = ((WITH_KEEPER, measure), (WITHOUT, measure));
        goals.extend(Goal::ratio(what, Bound::AtMost(1.03), &outcome, of, to));
    }
    let about = "A daemon with a keeper, in its sandbox, with two workers, serves processes of which a thread each \
                 touches pages in random order without a pause; a fault fills 4 KiB from a file in the page cache. In a \
                 round nothing happens, or the serving process is killed (SIGKILL), or another daemon is started that \
                 takes over. Each process times its faults, and the longest of all of them counts. The next process \
                 serves from when it has taken up all clients: after the signal, or after the other daemon's start. \
                 The keeper's cost is by two daemons that serve the same process by turns, one of them without a \
                 keeper, all on one processor.";
    Ok((about, vec![stalls, next, memory, times], goals))
}

fn clients(count: usize) -> String {
    format!("{count} client{}", if count == 1 { "" } else { "s" })
}

/// What happens to a daemon in a turn.
type Act = fn(&mut Daemon, &Place) -> Result<(), Box<dyn Error>>;

/// The longest fault of each round and the ms until the next process served; and the bytes that are
/// noted of all clients.
fn deaths(count: usize, effort: &Effort) -> Result<(Outcome, u64), Box<dyn Error>> {
    let place = Place::new(effort)?;
    let daemon = Daemon::start(&place, ServeHow::Kept)?;
    let without = daemon.noted()?;
    let served: Result<Vec<_>, _> = (0..count).map(|_| Served::start(&place)).collect();
    let served = served?;
    let noted = daemon.noted()? - without;

    let daemon = RefCell::new(daemon);
    let errors = Errors::default();
    let mut comparison = Comparison::new();
    let mut turn = |name, act: Act| {
        let (daemon, served, errors, place) = (&daemon, &served, &errors, &place);
        comparison.add(name, move |seed: &u64| {
            errors.measures(|| {
                let span = effort.span * 3;
                for Served { client, memory, .. } in served {
                    let (memory, pages, seed) = (memory.number, place.pages, *seed);
                    client.tell(&Command::Time { memory, first: 0, pages, span, seed })?;
                }
                thread::sleep(span / 3);
                let start = Instant::now();
                act(&mut daemon.borrow_mut(), place)?;
                let until_next = start.elapsed();
                let mut longest = 0.0_f64;
                for Served { client, .. } in served {
                    longest = longest.max(client.wait_for_times()?.longest);
                }
                served.iter().try_for_each(|served| discard(&served.client, served.memory))?;
                Ok(vec![longest / 1e3, until_next.as_secs_f64() * 1e3])
            })
        });
    };
    turn(LEFT_ALONE, |_, _| Ok(()));
    turn(KILLED, |daemon, _| daemon.kill());
    turn(TAKEN_OVER, |daemon, place| {
        // The other one has ended then.
        *daemon = Daemon::start(place, ServeHow::TakingOver)?;
        Ok(())
    });
    let title = format!("deaths with {}", clients(count));
    let outcome = comparison.run(&title, effort.rounds * 2, rand::RngExt::random::<u64>);
    errors.first()?;
    Ok((outcome, noted))
}

/// µs of a fault, for each number of threads.
///
/// All processes run on one processor: on which of several the kernel wakes whom differs from turn
/// to turn, by much more than is looked for here.
fn keeper(effort: &Effort) -> Result<Outcome, Box<dyn Error>> {
    let one_processor = FewProcessors::first(1)?;
    let client = Client::start()?;
    let mut daemons = Vec::new();
    let errors = Errors::default();
    let mut comparison = Comparison::new();
    for (number, (name, how)) in
        [(WITH_KEEPER, ServeHow::Kept), (WITHOUT, ServeHow::Alone)].into_iter().enumerate()
    {
        let place = Place::new(effort)?;
        let daemon = Daemon::start(&place, how)?;
        let (memory, connection) = place.map(&client, number)?;
        daemons.push((connection, daemon, place));
        let (client, errors, count) = (&client, &errors, effort.pages / 4);
        comparison.add(name, move |seed: &u64| {
            errors.measures(|| {
                let mut measures = Vec::new();
                for threads in THREADS {
                    let (of, granule, seed) = (memory.number, PAGE, *seed);
                    let touch = Command::Touch { memory: of, granule, count, threads, seed };
                    measures.push(client.took(&touch)?.as_secs_f64() * 1e6 / count as f64);
                    discard(client, memory)?;
                }
                Ok(measures)
            })
        });
    }
    drop(one_processor);
    let title = "with and without a keeper";
    let outcome = comparison.run(title, effort.rounds * 4, rand::RngExt::random::<u64>);
    errors.first()?;
    drop(client);
    Ok(outcome)
}

fn discard(client: &Client, memory: Memory) -> Result<(), Box<dyn Error>> {
    let (memory, pages) = (memory.number, memory.len / PAGE);
    client.took(&Command::Discard { memory, first: 0, pages }).map(drop)
}

/// A folder with a memory file and sockets.
struct Place {
    folder: TempDir,
    /// Of the file, and of each client: more than are touched in a round.
    pages: usize,
}

const MEMORY: &str = "memory";
const SOCKET: &str = "socket";
const TAKE_OVER_SOCKET: &str = "take-over";

impl Place {
    fn new(effort: &Effort) -> Result<Self, Box<dyn Error>> {
        let (folder, pages) = (tempfile::tempdir()?, effort.pages * 4);
        content::write(&mut File::create(folder.path().join(MEMORY))?, pages * PAGE)?;
        Ok(Self { folder, pages })
    }

    /// Has a client map memory, and that served.
    fn map(&self, client: &Client, number: usize) -> Result<(Memory, UnixStream), Box<dyn Error>> {
        let (memory, userfaultfd) = client.map(number, self.pages * PAGE, false)?;
        Ok((memory, self.arrive(memory, userfaultfd)?))
    }

    /// Has memory served, as Firecracker does, until what this returns is closed.
    fn arrive(&self, memory: Memory, userfaultfd: OwnedFd) -> Result<UnixStream, Box<dyn Error>> {
        let Memory { start, len, .. } = memory;
        let message = serde_json::json!([
            { "base_host_virt_addr": start, "size": len, "offset": 0, "page_size": PAGE }
        ])
        .to_string();
        let connection = UnixStream::connect(self.folder.path().join(SOCKET))?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [userfaultfd.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let parts = [IoSlice::new(message.as_bytes())];
        sendmsg(&connection, &parts, &mut control, SendFlags::NOSIGNAL)?;
        Ok(connection)
    }
}

/// A client, and its memory.
struct Served {
    client: Client,
    memory: Memory,
    _connection: UnixStream,
}

impl Served {
    /// It was served once when this returns.
    fn start(place: &Place) -> Result<Self, Box<dyn Error>> {
        let client = Client::start()?;
        let (memory, _connection) = place.map(&client, 0)?;
        let (number, granule) = (memory.number, PAGE);
        client.took(&Command::Touch { memory: number, granule, count: 1, threads: 1, seed: 0 })?;
        discard(&client, memory)?;
        Ok(Self { client, memory, _connection })
    }
}

/// A daemon's process, which is told to stop when this is dropped, if it has not ended yet.
struct Daemon {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    serving: Pid,
}

impl Daemon {
    fn start(place: &Place, how: ServeHow) -> Result<Self, Box<dyn Error>> {
        let how = how.to_possible_value().ok_or("no such way to serve")?;
        let mut child = std::process::Command::new(std::env::current_exe()?)
            .arg("serve")
            .args([place.folder.path(), how.get_name().as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let mut daemon = Self { child, lines, serving: getpid() };
        daemon.wait_for_next()?;
        Ok(daemon)
    }

    /// Waits until a process says that it serves.
    fn wait_for_next(&mut self) -> Result<(), Box<dyn Error>> {
        let line = self.lines.next().ok_or("the daemon has ended")??;
        self.serving = Pid::from_raw(line.parse()?).ok_or("no process serves")?;
        Ok(())
    }

    /// Kills the serving process, and waits for the next one.
    fn kill(&mut self) -> Result<(), Box<dyn Error>> {
        kill_process(self.serving, Signal::KILL)?;
        self.wait_for_next()
    }

    /// Bytes of the files in which it notes what it knows.
    fn noted(&self) -> Result<u64, Box<dyn Error>> {
        let mut bytes = 0;
        for entry in fs::read_dir(format!("/proc/{}/fd", self.child.id()))? {
            let path = entry?.path();
            let is_state = |to: &Path| to.to_string_lossy().contains("pervma-state");
            if fs::read_link(&path).is_ok_and(|to| is_state(&to)) {
                bytes += fs::metadata(&path)?.blocks() * 512;
            }
        }
        Ok(bytes)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It has ended, perhaps.
        let _ = self.child.wait();
    }
}

/// Is the daemon, in its own process, until its standard input is closed.
pub(crate) fn serve(folder: &Path, how: ServeHow) -> Result<(), Box<dyn Error>> {
    let (socket, take_over) = (folder.join(SOCKET), folder.join(TAKE_OVER_SOCKET));
    // Before it opens descriptors.
    let asked = (how == ServeHow::TakingOver).then(|| TakenOver::ask(&take_over));
    let mut taken = asked.transpose()?;
    let stop = std::io::stdin();
    let source = Arc::new(MemoryFile::new(File::open(folder.join(MEMORY))?)?);
    let options = Options::new().workers(WORKERS).granule(PAGE);
    let (listen, take_over) = match &mut taken {
        Some(taken) => {
            (Listen::taken(taken, &socket, source)?, TakeOverSocket::taken(taken, &take_over)?)
        }
        None => (Listen::at(&socket, source)?, TakeOverSocket::at(&take_over)?),
    };
    let server = Server::new(vec![listen.identify()?], options.clone(), Limits::default());
    let keeper = match taken {
        _ if how == ServeHow::Alone => None,
        Some(taken) => Some(Keeper::taking_over(&options, taken)?),
        None => Some(Keeper::new(&options)?),
    };
    Sandbox {
        removable: vec![folder.to_owned()],
        writable: Vec::new(),
        kills_other_users: false,
        starts_processes: keeper.is_some(),
    }
    .enter()?;
    let started = || {
        let mut out = std::io::stdout();
        writeln!(out, "{}", getpid().as_raw_nonzero())?;
        out.flush()
    };
    let Some(keeper) = keeper else {
        server.run(stop.as_fd(), started, |_, _| ()).map(|_| ())?;
        return Ok(());
    };
    let work = |kept: Kept| {
        let served = enter_as_started().map_err(Box::<dyn Error>::from).and_then(|()| {
            let server = server.take_over(take_over);
            Ok(server.run_kept(kept, stop.as_fd(), started, |_, _| ())?)
        });
        match served {
            Ok(_) => 0,
            Err(error) => {
                eprintln!("pervma-bench: {error}");
                1
            }
        }
    };
    match keeper.run(work)? {
        0 => Ok(()),
        _ => Err("the serving process has failed".into()),
    }
}
