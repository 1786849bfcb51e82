//! Restores by CRIU, where there is one: pervma in place of its own daemon.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pervma_serve::images::{Images, PageServer};
use pervma_serve::{Limits, Options, Restores};
use rustix::process::{
    Pid, WaitId, WaitIdOptions, WaitOptions, getpid, set_child_subreaper, setsid, waitid, waitpid,
};
use tempfile::TempDir;

use super::page_server;
use super::setup::Errors;
use crate::comparison::{Bound, Comparison, Effort, Goal, Outcome};
use crate::layout::PAGE;
use crate::report::{Figures, Table};

const CRIU: &str = "criu lazy-pages";
const PERVMA: [&str; 2] = ["pervma, 1 thread", "pervma, 2 threads"];
const REMOTE: &str = "pervma";

/// So far away is the page server.
const AWAY: Duration = Duration::from_millis(1);
/// Requests under way, as the command `pervma lazy-pages` has them.
const REQUESTS: usize = 16;
/// What is waited for is looked at so often.
const LOOK: Duration = Duration::from_micros(200);

const RESPONSE: usize = 0;
const ALL: usize = 1;
const CPU: usize = 2;

const ABSENT: Figures = (
    "ABSENT: there is no criu that passes `criu check`, and dumps and restores.",
    Vec::new(),
    Vec::new(),
);

pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    if !criu(&["check".as_ref()]).is_ok_and(|status| status.success()) {
        return Ok(ABSENT);
    }
    set_child_subreaper(Some(getpid()))?;
    let mut goals = Vec::new();
    let titles = [
        ("until the restored process answers", RESPONSE),
        ("until it has all of its memory, from when the restore has returned", ALL),
        ("CPU time of the daemon", CPU),
    ];
    let places = ["local images", "page server 1 ms away"];
    let tables =
        places.map(|place| titles.map(|(title, _)| Table::new(format!("{place}: {title}"), "ms")));
    let mut tables: Vec<Table> = tables.into_iter().flatten().collect();
    let sizes = [effort.pages * 4, effort.pages * 64].map(|pages| pages * PAGE);
    for len in sizes {
        let Some(checkpoint) = Checkpoint::make(len)? else { return Ok(ABSENT) };
        let server = page_server::start(&checkpoint.images(), AWAY)?;
        let local = checkpoint.compare(effort, None)?;
        let remote = checkpoint.compare(effort, Some(server))?;
        let title = format!("{} MiB", len >> 20);
        let outcomes = [&local, &remote];
        let measures = outcomes.iter().flat_map(|&outcome| titles.map(|(_, m)| (outcome, m)));
        for (table, (outcome, measure)) in tables.iter_mut().zip(measures) {
            let figures = outcome.names().map(|name| (name, outcome.summary(name, measure)));
            table.case(&title, figures);
        }
        let mut times = |what: &str, outcome, least, name| {
            let what = format!("{title}{what}: all is there sooner than with {CRIU}, {name}");
            let goal = Bound::AtLeast(least);
            goals.extend(Goal::ratio(what, goal, outcome, (CRIU, ALL), (name, ALL)));
        };
        times("", &local, 1.25, PERVMA[1]);
        times(", page server 1 ms away", &remote, 3.0, REMOTE);
    }
    let about = "A process with a heap of words that differ everywhere is dumped by CRIU, and restored with `--lazy-pages` \
                 again and again, through CRIU's daemon or pervma's. It touches a page of its heap as soon as it \
                 runs, and compares all of it when the daemon has ended. CPU time is counted in units of 10 ms. The page \
                 server is the same for both: what is sent to it and from it takes 1 ms to come.";
    Ok((about, tables, goals))
}

fn criu(arguments: &[&std::ffi::OsStr]) -> io::Result<ExitStatus> {
    quiet(Command::new("criu").args(arguments)).status()
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// A process that was dumped.
struct Checkpoint {
    folder: TempDir,
    pid: Pid,
}

impl Checkpoint {
    /// Dumps a process with a heap of so many bytes; `None` if that cannot be done here.
    fn make(len: usize) -> Result<Option<Self>, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("heap").arg(len.to_string()).arg(folder.path());
        let mut heap = quiet(&mut command).spawn()?;
        let checkpoint = Self { pid: Pid::from_child(&heap), folder };
        fs::create_dir(checkpoint.images())?;
        checkpoint.wait_for("ready")?;
        let pid = heap.id().to_string();
        let images = checkpoint.images();
        let dumped =
            criu(&["dump".as_ref(), "-t".as_ref(), pid.as_ref(), "-D".as_ref(), images.as_ref()])?;
        if !dumped.success() {
            heap.kill()?;
        }
        heap.wait()?;
        Ok(dumped.success().then_some(checkpoint))
    }

    fn images(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn wait_for(&self, name: &str) -> Result<(), Box<dyn Error>> {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.path(name).exists() {
            if Instant::now() > until {
                return Err(format!("a process that was restored does not do: {name}").into());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn compare(
        &self,
        effort: &Effort,
        server: Option<SocketAddr>,
    ) -> Result<Outcome, Box<dyn Error>> {
        let errors = Errors::default();
        let mut comparison = Comparison::new();
        let mut add = |name: &'static str, daemon: Box<dyn Fn() -> io::Result<Command>>| {
            let errors = &errors;
            comparison.add(name, move |(): &()| errors.measures(|| self.restore(&mut daemon()?)));
        };
        let images = self.images();
        add(
            CRIU,
            Box::new(move || {
                let mut command = Command::new("criu");
                command.args(["lazy-pages", "--status-fd", "1", "-W", ".", "-D"]).arg(&images);
                if let Some(server) = server {
                    let (address, port) = (server.ip().to_string(), server.port().to_string());
                    command.args(["--page-server", "--address", &address, "--port", &port]);
                }
                Ok(command)
            }),
        );
        let fillers = [(PERVMA[0], 1), (PERVMA[1], 2)];
        let remote = [(REMOTE, REQUESTS)];
        for &(name, fillers) in if server.is_some() { &remote[..] } else { &fillers } {
            let images = self.images();
            add(
                name,
                Box::new(move || {
                    let mut command = Command::new(std::env::current_exe()?);
                    command.arg("restores").arg(&images).arg(fillers.to_string());
                    command.args(server.map(|server| server.to_string()));
                    Ok(command)
                }),
            );
        }
        let title = if server.is_some() { "restores from a page server" } else { "restores" };
        let outcome = comparison.run(title, effort.rounds.div_ceil(8), |_| ());
        errors.first()?;
        Ok(outcome)
    }

    /// Restores the process with a daemon; ms until it answers, until the daemon has ended, and of
    /// the daemon's CPU time.
    fn restore(&self, daemon: &mut Command) -> Result<Vec<f64>, Box<dyn Error>> {
        for name in ["go", "answered", "compare", "compared"] {
            // It was not there, perhaps.
            let _ = fs::remove_file(self.path(name));
        }
        let work = tempfile::tempdir()?;
        daemon.current_dir(work.path()).stdin(Stdio::null()).stderr(Stdio::null());
        let mut daemon = daemon.stdout(Stdio::piped()).spawn()?;
        if let Some(mut ready) = daemon.stdout.take() {
            ready.read_exact(&mut [0])?;
        }
        let begin = Instant::now();
        let (images, work) = (self.images(), work.path());
        let restored = criu(&[
            "restore".as_ref(),
            "--lazy-pages".as_ref(),
            "-d".as_ref(),
            "-o".as_ref(),
            "restore.log".as_ref(),
            "-D".as_ref(),
            images.as_ref(),
            "-W".as_ref(),
            work.as_ref(),
        ])?;
        let returned = Instant::now();
        if !restored.success() {
            let log = fs::read_to_string(work.join("restore.log")).unwrap_or_default();
            let line = log.lines().rfind(|line| line.contains("Error")).unwrap_or_default();
            return Err(format!("criu cannot restore: {line}").into());
        }
        File::create(self.path("go"))?;
        self.wait_for("answered")?;
        let answered = begin.elapsed();
        let cpu = end(&mut daemon)?;
        let all = returned.elapsed();
        File::create(self.path("compare"))?;
        self.wait_for("compared")?;
        waitpid(Some(self.pid), WaitOptions::empty())?;
        if fs::read(self.path("compared"))? != *b"right" {
            return Err("a process was not restored as it was".into());
        }
        Ok([answered, all, cpu].map(|time| time.as_secs_f64() * 1e3).to_vec())
    }
}

/// Waits until a process has ended; its CPU time.
fn end(child: &mut Child) -> Result<Duration, Box<dyn Error>> {
    let pid = Pid::from_child(child);
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    let about = fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    if !child.wait()?.success() {
        return Err("a daemon has failed".into());
    }
    let behind_name = about.rsplit(") ").next().unwrap_or_default();
    let ticks = behind_name.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// Is the process that is dumped, in its own process.
pub(crate) fn heap(len: usize, folder: &Path) -> Result<(), Box<dyn Error>> {
    let word = |at: usize| (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    setsid()?;
    let words: Vec<u64> = (0..len / 8).map(word).collect();
    let tell = |name: &str, what: &[u8]| {
        let written = folder.join("new");
        fs::write(&written, what)?;
        fs::rename(written, folder.join(name))
    };
    // If whoever dumps it ends, its folder goes.
    let wait_for = |name: &str| {
        while folder.exists() && !folder.join(name).exists() {
            thread::sleep(LOOK);
        }
    };
    tell("ready", b"")?;
    wait_for("go");
    let half = words.len() / 2;
    tell("answered", &std::hint::black_box(&words)[half].to_le_bytes())?;
    wait_for("compare");
    let is_right = words.iter().enumerate().all(|(at, found)| *found == word(at));
    Ok(tell("compared", if is_right { b"right" } else { b"wrong" })?)
}

/// Is the daemon, in its own process, and serves one restore.
pub(crate) fn restores(
    images: &Path,
    fillers: usize,
    server: Option<SocketAddr>,
) -> Result<(), Box<dyn Error>> {
    let images = match server {
        None => Images::open(images)?,
        Some(server) => Images::open_remote(images, PageServer::connect(&server)?)?,
    };
    let options = Options::new().workers(2).fillers(fillers);
    let restores =
        Restores::at(Path::new("lazy-pages.socket"), images, options, Limits::default())?;
    let (_stop, never) = UnixStream::pair()?;
    let ready = || io::stdout().write_all(&[0]).and_then(|()| io::stdout().flush());
    let ended = restores.only_one().run(never.as_fd(), ready)?;
    if ended.failed > 0 { Err("a restore has failed".into()) } else { Ok(()) }
}
