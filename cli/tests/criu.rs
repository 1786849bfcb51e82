//! The daemon `pervma lazy-pages` with restores by CRIU, where there is one on PATH that passes
//! `criu check`: processes compare all of their memory while it is filled.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/memory.rs"]
mod memory;

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::pervma;
use daemon::Daemon;
use memory::{PAGE, random_bytes};
use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, setsid, waitpid};

const PLACE: &str = "PERVMA_CLI_TEST_DUMPED";
/// Which process of a tree one is: 0 is the root, whose children the others are.
const NUMBER: &str = "PERVMA_CLI_TEST_NUMBER";
/// The bytes of all of them.
const HEAPS: &str = "PERVMA_CLI_TEST_HEAPS";

/// Where processes are run that CRIU dumps and restores: each compares its memory when it is told
/// to, and adds a line to the file `compared`.
#[test]
fn dumped_process() {
    let Some(place) = std::env::var_os(PLACE).map(PathBuf::from) else { return };
    let number: usize = std::env::var(NUMBER).unwrap().parse().unwrap();
    let heaps: Vec<usize> =
        std::env::var(HEAPS).unwrap().split(' ').map(|len| len.parse().unwrap()).collect();
    let children = if number == 0 { 1..heaps.len() } else { 0..0 };
    let spawned = |child| dumped(&place, child, &heaps).spawn().unwrap();
    let children: Vec<_> = children.map(spawned).collect();
    // Each page begins with a word of its own.
    let common = random_bytes(PAGE, number as u64);
    let word = |page: usize| (page as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_ne_bytes();
    let mut heap = vec![0; heaps[number]];
    for (page, bytes) in heap.chunks_mut(PAGE).enumerate() {
        bytes.copy_from_slice(&common);
        bytes[..8].copy_from_slice(&word(page));
    }
    let [pid, ready] = ["pid", "ready"].map(|name| place.join(format!("{name}-{number}")));
    fs::write(&pid, std::process::id().to_string()).unwrap();
    fs::rename(pid, ready).unwrap();
    // If the test fails, its folder goes.
    while place.exists() && !place.join("go").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pages = heap.len() / PAGE;
    // In another order than theirs.
    let mut order = (0..pages).map(|turn| turn * 7919 % pages);
    let wrong = order.find(|&page| {
        let bytes = &heap[page * PAGE..][..PAGE];
        bytes[..8] != word(page) || bytes[8..] != common[8..]
    });
    // Nobody looks at it, perhaps.
    let compared = OpenOptions::new().append(true).create(true).open(place.join("compared"));
    let line = format!("{number}: {wrong:?}\n");
    let _ = compared.and_then(|mut file| file.write_all(line.as_bytes()));
    for mut child in children {
        child.wait().unwrap();
    }
}

/// The command that is a process of the tree.
fn dumped(place: &Path, number: usize, heaps: &[usize]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["dumped_process", "--exact", "--test-threads=1"]);
    let heaps: Vec<String> = heaps.iter().map(usize::to_string).collect();
    command.env(PLACE, place).env(NUMBER, number.to_string()).env(HEAPS, heaps.join(" "));
    quiet(&mut command);
    command
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// A tree of processes that was dumped.
struct Dumped {
    place: tempfile::TempDir,
    processes: usize,
}

impl Dumped {
    /// Dumps a process with a heap of so many bytes, and its children with heaps of theirs; `None`
    /// where that cannot be done.
    fn new(heaps: &[usize]) -> Option<Self> {
        let check = quiet(Command::new("criu").arg("check")).status();
        if !check.is_ok_and(|status| status.success()) {
            println!("NOT RUN: there is no criu that passes `criu check`");
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        let tree = Self { place, processes: heaps.len() };
        fs::create_dir(tree.images()).unwrap();
        // Its children are this process's when it has gone: their numbers have to be free again.
        set_child_subreaper(Some(getpid())).unwrap();
        let mut command = dumped(tree.place.path(), 0, heaps);
        let new_session = || Ok(setsid().map(drop)?);
        // SAFETY: it makes one system call.
        unsafe { command.pre_exec(new_session) };
        let mut root = command.spawn().unwrap();
        let ready = |number| tree.path(&format!("ready-{number}"));
        wait_until(|| (0..heaps.len()).all(|number| ready(number).exists()));
        let mut dump = Command::new("criu");
        dump.args(["dump", "-t", &root.id().to_string(), "-o", "dump.log", "-D"]);
        if !quiet(dump.arg(tree.images())).status().unwrap().success() {
            root.kill().unwrap();
            root.wait().unwrap();
            println!("NOT RUN: criu cannot dump a process here: {:?}", tree.errors("dump.log"));
            return None;
        }
        root.wait().unwrap();
        for number in 1..heaps.len() {
            let pid = fs::read_to_string(ready(number)).unwrap().parse().unwrap();
            waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap();
        }
        Some(tree)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn images(&self) -> PathBuf {
        self.path("images")
    }

    fn daemon(&self, more: &[&str]) -> Daemon {
        let mut command = pervma(["lazy-pages", "-v3", "-D"]);
        command.arg(self.images()).args(more);
        Daemon::start(command)
    }

    /// The arguments of CRIU for a restore.
    fn restore(&self, log: &str) -> Vec<OsString> {
        let words = ["criu", "restore", "--lazy-pages", "-o", log, "-D"];
        let words = words.into_iter().map(OsString::from);
        words.chain([self.images().into_os_string()]).collect()
    }

    /// What a restore has logged as errors.
    fn errors(&self, log: &str) -> Vec<String> {
        let text = fs::read_to_string(self.images().join(log)).unwrap_or_default();
        text.lines().filter(|line| line.contains("Error")).map(str::to_owned).collect()
    }

    /// Has restored processes compare their memory, now or as soon as they run.
    fn go(&self) {
        fs::write(self.path("go"), "").unwrap();
    }

    /// Waits until the processes of so many restores have compared their memory.
    fn compared(&self, restores: usize) {
        let said = || fs::read_to_string(self.path("compared")).unwrap_or_default();
        wait_until(|| said().lines().count() >= restores * self.processes);
        let mut expected: Vec<_> = (0..self.processes)
            .flat_map(|number| vec![format!("{number}: None"); restores])
            .collect();
        let said = said();
        let mut found: Vec<_> = said.lines().collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "no page is wrong");
    }
}

fn wait_until(is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < until, "it takes too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_tree_of_processes_has_all_of_its_memory() {
    let Some(tree) = Dumped::new(&[1 << 30, 64 << 20, 16 << 20]) else { return };
    let daemon = tree.daemon(&[]);
    let arguments = tree.restore("restore.log");
    let mut restore = Command::new(&arguments[0]);
    let restored = quiet(restore.args(&arguments[1..]).arg("-d")).status().unwrap();
    assert!(restored.success(), "{:#?}", tree.errors("restore.log"));
    // It is compared while it is filled, perhaps.
    tree.go();
    let ended = daemon.ended();
    assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
    tree.compared(1);
}

#[test]
fn ten_restores_at_once_from_the_same_images_have_all_of_their_memory() {
    const RESTORES: usize = 10;
    // CRIU restores the same process numbers each time.
    let mut command = Command::new("unshare");
    let namespaces = ["--mount", "--pid", "--fork", "--mount-proc", "--"];
    let unshare = quiet(command.args(namespaces).arg("true")).status();
    if !unshare.is_ok_and(|status| status.success()) {
        return println!("NOT RUN: `unshare` makes no process namespaces here");
    }
    let Some(tree) = Dumped::new(&[64 << 20, 8 << 20]) else { return };
    let daemon = tree.daemon(&["--serve"]);
    // All of them compare their memory beside the others' restores.
    tree.go();
    let restores: Vec<_> = (0..RESTORES)
        .map(|number| {
            let log = format!("restore-{number}.log");
            let mut command = Command::new("unshare");
            command.args(namespaces).args(tree.restore(&log));
            (quiet(&mut command).spawn().unwrap(), log)
        })
        .collect();
    for (mut restore, log) in restores {
        assert!(restore.wait().unwrap().success(), "{:#?}", tree.errors(&log));
    }
    tree.compared(RESTORES);
    let ended = daemon.stop();
    assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
    assert_eq!(ended.with("a restore has ended").len(), RESTORES, "{ended:?}");
}
