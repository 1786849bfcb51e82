//! The process that runs a command: what it passes on, what it says, and that it ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/child.rs"]
mod child;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use pervma_serve::exec_helper::{ExecHelper, Outcome};
use pervma_serve::sandbox::Sandbox;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A script as a command, whose further arguments are `$1`, `$2`.
fn script(text: &str) -> Vec<OsString> {
    ["/bin/sh", "-c", text, "script"].map(OsString::from).to_vec()
}

/// A script that writes what `command` prints to a file.
fn writing(command: &str, file: &Path) -> Vec<OsString> {
    script(&format!("{command} > '{}'", file.display()))
}

fn process(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap()
}

fn wait_exited(process: &OwnedFd) {
    poll(&mut [PollFd::new(process, PollFlags::IN)], None).unwrap();
}

fn has_exited(process: &OwnedFd) -> bool {
    let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&none)).unwrap() > 0
}

#[test]
fn arguments_arrive_as_they_are() {
    child::alone(
        "arguments_arrive_as_they_are",
        [|| {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("arguments");
            let helper = ExecHelper::start(&writing(r#"printf '%s\n' "$@""#, &file)).unwrap();
            for (id, pid, reason) in [
                (1, 4711, "a  b; $(c) 'd' \"e\" * \\"),
                (2, 0, ""),
                (u64::MAX, u32::MAX, "\u{e9}\t"),
            ] {
                assert_eq!(helper.run(id, pid, reason).unwrap(), Outcome::Exited(0));
                assert_eq!(fs::read_to_string(&file).unwrap(), format!("{pid}\n{reason}\n"));
            }
            assert_eq!(helper.run(3, 1, "a\0b").unwrap(), Outcome::Exited(0));
            assert_eq!(fs::read_to_string(&file).unwrap(), "1\na b\n");
            // The limit is in the middle of a character.
            assert_eq!(
                helper.run(4, 1, &format!("x{}", "\u{e9}".repeat(3000))).unwrap(),
                Outcome::Exited(0)
            );
            let cut = format!("1\nx{}\n", "\u{e9}".repeat(2047));
            assert_eq!(fs::read_to_string(&file).unwrap(), cut);
        }],
    );
}

#[test]
fn the_end_of_the_command_is_reported() {
    child::alone(
        "the_end_of_the_command_is_reported",
        [|| {
            let run = |command: &[OsString]| {
                ExecHelper::start(command).unwrap().run(1, 1, "why").unwrap()
            };
            assert_eq!(run(&["true".into()]), Outcome::Exited(0));
            assert_eq!(run(&script("exit 7")), Outcome::Exited(7));
            assert_eq!(run(&script("kill -TERM $$")), Outcome::Killed(libc::SIGTERM));
            assert_eq!(run(&["/no/such".into()]), Outcome::NotStarted(libc::ENOENT));
            assert_eq!(run(&["/dev/null".into()]), Outcome::NotStarted(libc::EACCES));
            assert_eq!(run(&["a\0b".into()]), Outcome::NotStarted(libc::EINVAL));
        }],
    );
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_what_it_started() {
    child::alone(
        "a_command_that_takes_too_long_is_killed_with_what_it_started",
        [|| {
            let directory = tempfile::tempdir().unwrap();
            let fifo = directory.path().join("fifo");
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &fifo,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
                0,
            )
            .unwrap();
            // This one can be written to by each process of the script.
            let mut reader = File::from(
                rustix::fs::open(&fifo, nonblocking(), rustix::fs::Mode::empty()).unwrap(),
            );
            let text =
                format!("exec 3> '{}'; sleep 1000 & echo started >&3; sleep 1000", fifo.display());
            let limit = Duration::from_millis(300);
            let helper = ExecHelper::start_with_limit(&script(&text), limit).unwrap();
            assert_eq!(helper.run(1, 1, "why").unwrap(), Outcome::TimedOut);
            // The end of it is there once none of them is.
            rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::empty()).unwrap();
            reader.read_to_end(&mut Vec::new()).unwrap();
            assert_eq!(helper.run(2, 1, "again").unwrap(), Outcome::TimedOut, "it answers on");
        }],
    );
}

#[test]
fn a_run_that_is_asked_for_again_is_not_run_again() {
    child::alone(
        "a_run_that_is_asked_for_again_is_not_run_again",
        [|| {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("lines");
            let helper =
                ExecHelper::start(&script(&format!("echo $2 >> '{}'; exit $1", file.display())));
            let helper = helper.unwrap();
            for (id, status, reason, outcome) in
                [(1, 3, "first", 3), (2, 4, "second", 4), (1, 5, "again", 3), (2, 5, "again", 4)]
            {
                assert_eq!(helper.run(id, status, reason).unwrap(), Outcome::Exited(outcome));
            }
            assert_eq!(fs::read_to_string(&file).unwrap(), "first\nsecond\n");
        }],
    );
}

fn nonblocking() -> rustix::fs::OFlags {
    rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK
}

#[test]
fn it_runs_the_command_for_a_process_in_the_sandbox() {
    child::alone(
        "it_runs_the_command_for_a_process_in_the_sandbox",
        [|| {
            let helper = ExecHelper::start(&script("exit 3")).unwrap();
            let pidfd = process(helper.pid());
            Sandbox::default().enter().unwrap();
            assert_eq!(helper.run(1, 1, "why").unwrap(), Outcome::Exited(3));
            assert!(std::process::Command::new("true").status().is_err());
            drop(helper);
            assert!(has_exited(&pidfd));
        }],
    );
}

#[test]
fn neither_helper_nor_command_has_descriptors_of_the_daemon() {
    child::alone(
        "neither_helper_nor_command_has_descriptors_of_the_daemon",
        [|| {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("list");
            let kept = directory.path().join("kept");
            let open = File::create(&kept).unwrap();
            let sockets = UnixStream::pair().unwrap();
            let inherited = open.try_clone().unwrap();
            rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
            let list = |command: &str| {
                let helper = ExecHelper::start(&writing(command, &file)).unwrap();
                assert_eq!(helper.run(1, 1, "why").unwrap(), Outcome::Exited(0));
                fs::read_to_string(&file).unwrap()
            };
            // It also has what it watches the command by, and for a moment what it starts it by.
            let helper = list(
                "while [ $(readlink /proc/$PPID/fd/* | grep -c socket:) -gt 1 ]; do :; done; \
                 readlink /proc/$PPID/fd/*",
            );
            assert!(!helper.contains(kept.to_str().unwrap()), "{helper}");
            assert_eq!(helper.matches("socket:").count(), 1, "{helper}");
            // The standard ones, and the directory that is listed.
            assert_eq!(list("ls /proc/self/fd"), "0\n1\n2\n3\n");
            drop((open, sockets, inherited));
        }],
    );
}

#[test]
fn it_ends_with_its_owner() {
    child::alone(
        "it_ends_with_its_owner",
        [|| {
            let helper = ExecHelper::start(&["true".into()]).unwrap();
            let pidfd = process(helper.pid());
            assert!(!has_exited(&pidfd));
            drop(helper);
            assert!(has_exited(&pidfd));
        }],
    );
}

#[test]
fn signals_that_ask_the_daemon_to_end_end_commands_and_not_the_helper() {
    child::alone(
        "signals_that_ask_the_daemon_to_end_end_commands_and_not_the_helper",
        [|| {
            let helper = ExecHelper::start(&script("kill -TERM $$")).unwrap();
            let process = Pid::from_raw(helper.pid().cast_signed()).unwrap();
            for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1] {
                kill_process(process, signal).unwrap();
            }
            assert_eq!(helper.run(1, 1, "why").unwrap(), Outcome::Killed(libc::SIGTERM));
        }],
    );
}

#[test]
fn it_ends_when_the_daemon_is_killed() {
    const NAME: &str = "it_ends_when_the_daemon_is_killed";
    if child::case().is_none() {
        return child::run(NAME, "alone");
    }
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let daemon = || {
        let helper = ExecHelper::start(&["true".into()]).unwrap();
        writer.write_all(&helper.pid().to_ne_bytes()).unwrap();
        loop {
            std::thread::park();
        }
    };
    let mut pidfd = None;
    let status = child::with_one_thread(daemon, |daemon| {
        let mut number = [0; 4];
        reader.read_exact(&mut number).unwrap();
        let helper = process(u32::from_ne_bytes(number));
        assert!(!has_exited(&helper));
        pidfd = Some(helper);
        kill_process(Pid::from_raw(daemon.cast_signed()).unwrap(), Signal::KILL).unwrap();
    });
    assert!(!status.success());
    wait_exited(&pidfd.unwrap());
}

#[test]
fn a_helper_that_is_gone_is_an_error() {
    child::alone(
        "a_helper_that_is_gone_is_an_error",
        [|| {
            let helper = ExecHelper::start(&["true".into()]).unwrap();
            let pidfd = process(helper.pid());
            kill_process(Pid::from_raw(helper.pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
            wait_exited(&pidfd);
            assert!(helper.run(1, 1, "why").is_err());
            assert_eq!(helper.run(1, 1, "why").unwrap_err().kind(), ErrorKind::BrokenPipe);
        }],
    );
}

#[test]
fn it_is_not_started_without_a_command_or_beside_other_threads() {
    let error = ExecHelper::start(&[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    // The test runs on a thread that is not the first.
    let error = ExecHelper::start(&["true".into()]).unwrap_err();
    assert!(error.to_string().contains("one thread"), "{error}");
}
