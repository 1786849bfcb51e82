//! The daemon, `pervma serve`, with clients that are processes of their own: every byte is what
//! belongs there, whatever becomes of clients and of the daemon.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/memory.rs"]
mod memory;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};

use client::{Client, Has, all_events};
use common::{pervma, run};
use daemon::{Daemon, Place, is_there};
use memory::{FORK, PAGE, REMOVE};
use rustix::process::Signal;
use serde_json::Value;

/// Where a client is run, which is a child of a test.
#[test]
fn client_process() {
    client::play();
}

const PAGES: usize = 512;

#[test]
fn a_client_has_every_byte_and_then_the_daemon_ends() {
    let place = Place::new(PAGES);
    for how in [&["--granule", "4K", "--ahead", "0"][..], &[], &["--granule", "2M"]] {
        let mut daemon = place.serve(how);
        assert_eq!(place.socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let mut client = place.client(Has::pages(PAGES, REMOVE));
        client.asked("check");
        client.end();
        daemon.wait_for("a client has gone");
        let ended = daemon.stop();
        assert_eq!((ended.exit, ended.last()), (Some(0), "VMs 1, refused 0, failed 0"));
        assert!(!is_there(&place.socket));
    }
}

#[test]
fn many_clients_of_many_sockets_have_each_its_own_bytes() {
    let place = Place::new(PAGES);
    let other = Place::new(0);
    let bytes = memory::random_bytes(PAGES * PAGE, 2);
    fs::write(&other.file, bytes).unwrap();
    let vm = format!("{}={}", other.socket.display(), other.file.display());
    let mut daemon = place.serve(["--vm", &vm, "--workers", "2"]);
    let part = Has { first: 100, ..Has::pages(PAGES - 100, REMOVE) };
    let mut clients: Vec<_> = [&place, &other, &place, &other]
        .iter()
        .flat_map(|place| [place.client(Has::pages(PAGES, REMOVE)), place.client(part)])
        .collect();
    clients.iter_mut().for_each(|client| client.tell("check"));
    for client in &mut clients {
        assert_eq!(client.answer(), "done");
    }
    clients.into_iter().for_each(Client::end);
    (0..8).for_each(|_| drop(daemon.wait_for("a client has gone")));
    let ended = daemon.stop();
    assert_eq!((ended.exit, ended.last()), (Some(0), "VMs 8, refused 0, failed 0"));
    assert!(!is_there(&place.socket) && !is_there(&other.socket));
}

#[test]
fn what_a_client_discards_is_zeros_and_its_forked_children_are_served() {
    let place = Place::new(PAGES);
    let mut daemon = place.serve(["--workers", "2"]);
    let events = all_events();
    let forks = events & FORK != 0;
    let mut client = place.client(Has::pages(PAGES, events));
    client.asked("check 0 100");
    client.asked("discard 50 150");
    client.asked("write 120");
    client.asked("write 200");
    for page in [300, 400] {
        if forks {
            client.asked("fork");
            daemon.wait_for("a client forked");
            daemon.wait_for("a client has gone");
        }
        client.asked(&format!("discard {page} {}", page + 1));
    }
    client.asked("check");
    client.end();
    daemon.wait_for("a client has gone");
    assert_eq!(daemon.stop().exit, Some(0));
}

#[test]
fn a_client_that_is_killed_is_forgotten_and_others_are_served_on() {
    let place = Place::new(PAGES);
    let mut daemon = place.serve(["--json"]);
    let mut clients: Vec<_> =
        (0..3).map(|_| place.client(Has::pages(PAGES, all_events()))).collect();
    clients.iter_mut().for_each(|client| client.asked("check 0 64"));
    // In the middle of what it does.
    clients[1].tell("check");
    assert_eq!(clients[1].kill().signal(), Some(libc::SIGKILL));
    daemon.wait_for("a client has gone");
    clients[0].asked("check");
    clients[2].asked("check");
    clients.clear();
    (0..2).for_each(|_| drop(daemon.wait_for("a client has gone")));
    let ended = daemon.stop();
    assert_eq!((ended.exit, ended.with("cannot").len()), (Some(0), 0), "{ended:?}");
    let lines: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!((&last["ended"], &last["clients"]), (&true.into(), &3.into()));
    assert_eq!((&last["refused"], &last["failed"]), (&0.into(), &0.into()));
}

#[test]
fn lines_of_json_count_what_is_served() {
    let place = Place::new(PAGES);
    let (reader, writer) = std::io::pipe().unwrap();
    let daemon = Daemon::start_with(place.command(["--json"]), writer.into());
    let mut client = place.client(Has::pages(PAGES, REMOVE));
    client.asked("check");
    client.asked("discard 0 1");
    let lines = std::io::BufRead::lines(std::io::BufReader::new(reader));
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    // One a second: the first may be of before.
    let line = lines.find(|line| line["pages"] == PAGES && line["removes"] == 1).unwrap();
    assert_eq!((&line["clients"], &line["poisoned"]), (&1.into(), &0.into()));
    assert!(line["faults"].as_u64().unwrap() >= 1 && line["p50_us"].as_f64().unwrap() > 0.0);
    assert_eq!(line["resident_percent"], 100.0);
    drop(client);
    let line = lines.find(|line| line["clients"] == 0).unwrap();
    assert_eq!(line["faults_per_second"], 0.0);
    daemon.signal(Signal::TERM);
    assert_eq!(lines.last().unwrap()["ended"], true);
    assert_eq!(daemon.ended().exit, Some(0));
}

#[test]
fn a_daemon_that_drains_serves_until_its_clients_have_gone() {
    let place = Place::new(PAGES);
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = place.serve(["--on-stop", "drain"]);
        let mut client = place.client(Has::pages(PAGES, REMOVE));
        client.asked("check 0 9");
        daemon.signal(signal);
        daemon.wait_for("clients are served until they have gone");
        assert!(!is_there(&place.socket), "nobody else comes");
        client.asked("check");
        client.end();
        let ended = daemon.ended();
        assert_eq!((ended.exit, ended.last()), (Some(0), "VMs 1, refused 0, failed 0"));
    }
}

/// Ways to stop by which a client that stays is not served to its end.
#[test]
fn a_client_that_the_daemon_leaves_fails_and_reads_no_zeros() {
    let place = Place::new(PAGES);
    for (how, signals, exit) in [
        (&["--stop-timeout", "1"][..], 1, 1),
        (&["--stop-timeout", "600"], 2, 1),
        (&["--on-stop", "fail"], 1, 0),
    ] {
        for keeps in [false, true] {
            let mut daemon = place.serve(how);
            let mut client = place.client(Has { keeps, ..Has::pages(PAGES, REMOVE) });
            client.asked("check 0 1");
            client.asked("discard 200 300");
            // The kernel has several mappings from here on.
            client.asked("protect 350 401");
            for signal in 0..signals {
                daemon.signal(Signal::TERM);
                if signal + 1 < signals {
                    daemon.wait_for("clients are served until");
                }
            }
            let ended = daemon.ended();
            assert_eq!(ended.exit, Some(exit), "{how:?}: {ended:?}");
            assert_eq!(ended.with("a client cannot be served: the pager ends").len(), 1);
            assert!(!is_there(&place.socket));
            client.asked("check 0 1");
            for page in (16..PAGES).step_by(31).chain([349, 350, 400, 401, PAGES - 1]) {
                let found = client.ask(&format!("touch {page}"));
                // What it has discarded is zeros, whoever serves it.
                let expected = if (200..300).contains(&page) { "byte 0" } else { "SIGBUS" };
                assert_eq!(found, expected, "page {page}, {how:?}, {keeps}");
            }
            // Nobody would read of it.
            client.asked("discard 0 9");
            client.asked("check 0 9");
        }
    }
}

#[test]
fn a_client_that_the_daemon_has_filled_goes_on_without_it() {
    let place = Place::new(PAGES);
    for features in [REMOVE, all_events()] {
        let daemon = place.serve(["--on-stop", "fill"]);
        let mut clients =
            [false, true].map(|keeps| place.client(Has { keeps, ..Has::pages(PAGES, features) }));
        clients[0].asked("check 5 6");
        for client in &mut clients {
            client.asked("discard 100 200");
            // The kernel has several mappings from here on.
            client.asked("protect 250 301");
        }
        let ended = daemon.stop();
        assert_eq!((ended.exit, ended.last()), (Some(0), "VMs 2, refused 0, failed 0"));
        assert_eq!(ended.with("all that a client missed is there").len(), 2);
        for client in &mut clients {
            client.asked("check");
            // Of one that keeps the descriptor, nobody would read of it.
            client.asked("discard 300 400");
            client.asked("fork");
            client.asked("check");
        }
    }
}

#[test]
fn what_cannot_be_filled_fails() {
    let place = Place::new(PAGES);
    let daemon = place.serve(["--on-stop", "fill"]);
    let mut client = place.client(Has::pages(PAGES, REMOVE));
    client.asked("check 0 16");
    let file = fs::File::options().write(true).open(&place.file).unwrap();
    file.set_len(64 * PAGE as u64).unwrap();
    let ended = daemon.stop();
    assert_eq!(ended.exit, Some(1), "{ended:?}");
    client.asked("check 0 16");
    assert_eq!(client.ask("touch 64"), "SIGBUS");
    assert_eq!(client.ask(&format!("touch {}", PAGES - 1)), "SIGBUS");
}

/// More than are accepted at a time, and their descriptors are with the daemon already.
#[test]
fn who_has_come_when_it_stops_is_served_to_the_end() {
    const MANY: usize = 200;
    const FEW: usize = 4;
    let place = Place::new(FEW);
    let daemon = place.serve(["--on-stop", "fill"]);
    daemon.signal(Signal::STOP);
    let clients: Vec<_> = (0..MANY)
        .map(|_| {
            let brought = memory::userfaultfd(REMOVE).unwrap();
            let memory = memory::Memory::map(FEW * PAGE, memory::Kind::Anonymous).unwrap();
            let memory = memory.register(&brought);
            let connection = std::os::unix::net::UnixStream::connect(&place.socket).unwrap();
            let message = client::message(&[(memory.start, memory.len, 0)]);
            client::send(&connection, message.as_bytes(), &[std::os::fd::AsFd::as_fd(&brought)]);
            (memory, connection)
        })
        .collect();
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::CONT);
    let ended = daemon.ended();
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    for (number, (memory, _)) in clients.iter().enumerate() {
        assert!(memory.copy() == place.bytes, "{number}");
        memory.unmap();
    }
}

/// More than can be filled in a moment, of zeros.
#[test]
fn a_second_signal_ends_filling() {
    const MANY: usize = (32 << 30) / PAGE;
    let place = Place::new(0);
    fs::File::create(&place.file).unwrap().set_len((MANY * PAGE) as u64).unwrap();
    let mut daemon = place.serve(["--on-stop", "fill"]);
    let brought = memory::userfaultfd(REMOVE).unwrap();
    let memory = memory::Memory::map(MANY * PAGE, memory::Kind::Anonymous).unwrap();
    let memory = memory.register(&brought);
    let connection = std::os::unix::net::UnixStream::connect(&place.socket).unwrap();
    let message = client::message(&[(memory.start, memory.len, 0)]);
    client::send(&connection, message.as_bytes(), &[std::os::fd::AsFd::as_fd(&brought)]);
    daemon.wait_for("a client has come");
    daemon.signal(Signal::TERM);
    daemon.wait_for("all that clients miss is filled");
    daemon.signal(Signal::TERM);
    let ended = daemon.ended();
    assert_eq!(ended.exit, Some(1), "{ended:?}");
    assert_eq!(ended.with("a client cannot be served: the pager ends").len(), 1);
    memory.unmap();
}

/// It has more memory than it tells of.
fn of_more_memory() -> Has {
    Has { told: 8, ..Has::pages(16, REMOVE) }
}

#[test]
fn a_client_that_cannot_be_served_is_poisoned() {
    let place = Place::new(PAGES);
    let mut daemon = place.serve(["--on-failure", "poison"]);
    let mut other = place.client(Has::pages(PAGES, REMOVE));
    let mut client = place.client(of_more_memory());
    client.asked("check 0 1");
    assert_eq!(client.ask("touch 12"), "SIGBUS");
    let line = daemon.wait_for("a client cannot be served");
    assert!(line.contains("which is outside of its memory"), "{line}");
    daemon.wait_for("all that a client missed is poisoned");
    other.asked("check");
    other.end();
    let ended = daemon.stop();
    assert_eq!((ended.exit, ended.last()), (Some(1), "VMs 2, refused 0, failed 1"));
}

#[test]
fn a_client_that_cannot_be_served_is_killed_on_request() {
    let place = Place::new(PAGES);
    let mut daemon = place.serve(["--on-failure", "kill"]);
    let mut other = place.client(Has::pages(PAGES, REMOVE));
    let mut client = place.client(of_more_memory());
    client.tell("touch 12");
    assert_eq!(client.wait().signal(), Some(libc::SIGKILL));
    daemon.wait_for("outside of its memory");
    other.asked("check");
    other.end();
    assert_eq!(daemon.stop().exit, Some(1));
}

#[test]
fn a_command_is_run_for_a_client_that_cannot_be_served() {
    let place = Place::new(PAGES);
    let told = place.path("told");
    let script = format!("printf '%s\\n' \"$@\" > {}", told.display());
    let words = ["--on-failure", "exec", "--exec", "/bin/sh", "--exec", "-c", "--exec", &script];
    for stops in [false, true] {
        let command = [&words[..], &["--exec", "name", "--on-stop", "fail"]].concat();
        let mut daemon = place.serve(&command);
        let mut client = place.client(of_more_memory());
        let pid = client.pid();
        if stops {
            daemon.wait_for("a client has come");
        } else {
            client.tell("touch 12");
            assert_eq!(client.answer(), "SIGBUS");
            daemon.wait_for("outcome=Exited(0)");
        }
        let ended = daemon.stop();
        assert_eq!(ended.exit, Some(i32::from(!stops)), "{ended:?}");
        let told = fs::read_to_string(&told).unwrap();
        let (number, reason) = told.trim_end().split_once('\n').unwrap();
        assert_eq!(number, pid.to_string());
        assert!(reason.contains(if stops { "the pager ends" } else { "outside" }), "{reason}");
    }
}

#[test]
fn a_socket_is_taken_once_and_only_a_stale_one_is_replaced() {
    let place = Place::new(1);
    drop(UnixListener::bind(&place.socket).unwrap());
    assert!(is_there(&place.socket), "nobody listens there any more");
    let daemon = place.serve::<&str>([]);
    let second = run(place.command::<&str>([]));
    assert_eq!((second.exit, second.stdout.as_str()), (Some(2), ""));
    assert_eq!(second.stderr.lines().count(), 1, "{}", second.stderr);
    assert!(second.stderr.contains("another process listens there"), "{}", second.stderr);
    let mut client = place.client(Has::pages(1, REMOVE));
    client.asked("check");
    client.end();
    assert_eq!(daemon.stop().exit, Some(0));

    for taken in ["file", "folder"] {
        if taken == "file" {
            fs::write(&place.socket, "precious").unwrap();
        } else {
            fs::create_dir(&place.socket).unwrap();
        }
        let refused = run(place.command::<&str>([]));
        assert_eq!(refused.exit, Some(2));
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
        assert!(refused.stderr.contains("it is no socket"), "{}", refused.stderr);
        if taken == "file" {
            assert_eq!(fs::read_to_string(&place.socket).unwrap(), "precious");
            fs::remove_file(&place.socket).unwrap();
        }
    }
}

#[test]
fn what_is_asked_wrongly_is_one_line_and_exit_code_2() {
    let place = Place::new(1);
    let [socket, file] = [&place.socket, &place.file].map(|path| path.to_str().unwrap());
    let empty = place.path("empty");
    fs::write(&empty, "").unwrap();
    let nowhere = place.path("no/where");
    for (words, says) in [
        (&[][..], "give --socket and --memory, or --vm"),
        (&["--memory", file], "--memory needs --socket"),
        (&["--socket", socket], "--memory"),
        (&["--vm", "socket"], "give SOCKET=FILE"),
        (&["--socket", socket, "--memory", empty.to_str().unwrap()], "the file is empty"),
        (&["--socket", socket, "--memory", nowhere.to_str().unwrap()], "No such file"),
        (&["--socket", nowhere.to_str().unwrap(), "--memory", file], "give a path at which"),
        (&["--socket", socket, "--memory", file, "--on-failure", "exec"], "needs --exec"),
        (&["--socket", socket, "--memory", file, "--granule", "5"], "--granule"),
        (&["--socket", socket, "--memory", file, "--workers", "0"], "--workers"),
    ] {
        let mut command = pervma(["serve"]);
        command.args(words);
        let ended = run(command);
        assert_eq!(ended.exit, Some(2), "{words:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains(says), "{words:?}: {}", ended.stderr);
        assert!(!is_there(&place.socket), "{words:?}");
    }
}

/// As a service manager starts it: it passes the socket, and is told when the daemon is ready.
#[test]
fn a_service_manager_passes_the_socket_and_is_told() {
    let place = Place::new(PAGES);
    let manager = UnixDatagram::bind(place.path("manager")).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let listener = UnixListener::bind(&place.socket).unwrap();
    let mut command = std::process::Command::new("/bin/sh");
    // It says the number of the process that it becomes.
    let script = r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@""#;
    command.args(["-c", script, env!("CARGO_BIN_EXE_pervma"), "serve", "--memory"]);
    command.arg(&place.file).env("NOTIFY_SOCKET", place.path("manager"));
    let passed = listener.as_raw_fd();
    let pass = move || {
        // SAFETY: it takes two numbers.
        match unsafe { libc::dup2(passed, 3) } {
            3 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: it makes one system call.
    unsafe { command.pre_exec(pass) };
    let daemon = Daemon::start(command);
    drop(listener);
    let mut told = [0; 64];
    let len = manager.recv(&mut told).unwrap();
    assert_eq!(std::str::from_utf8(&told[..len]).unwrap().trim_end(), "READY=1");
    let mut client = place.client(Has::pages(PAGES, REMOVE));
    client.asked("check");
    client.end();
    assert_eq!(daemon.stop().exit, Some(0));
    assert!(is_there(&place.socket), "it is the manager's");
}
