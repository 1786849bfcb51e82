//! The serving process dies, or another program takes its place: every byte is what belongs there.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/memory.rs"]
mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client::{Client, Has, all_events};
use common::run;
use daemon::{Daemon, Place, is_there};
use memory::{FORK, PAGE};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, recvmsg, send, socket_with,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Where a client is run, which is a child of a test.
#[test]
fn client_process() {
    client::play();
}

const PAGES: usize = 512;

/// The descriptors of a process, by what they are.
fn descriptors(process: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd")).unwrap() {
        // It is closed by now, perhaps.
        let Ok(link) = fs::read_link(entry.unwrap().path()) else { continue };
        let link = link.display().to_string();
        let kind = link.split('[').next().unwrap().to_owned();
        *kinds.entry(if link.contains("anon_inode") { link } else { kind }).or_default() += 1;
    }
    kinds
}

/// Does what clients do, at part `part` of two.
fn use_memory(client: &mut Client, part: usize, forks: bool) {
    let at = part * PAGES / 2;
    client.asked(&format!("check {at} {}", at + 100));
    client.asked(&format!("discard {} {}", at + 50, at + 150));
    client.asked(&format!("write {}", at + 120));
    client.asked(&format!("write {}", at + 200));
    if forks {
        client.asked("fork");
    }
}

/// The descriptors that the daemon has without clients.
fn without_clients(place: &Place, daemon: &mut Daemon) -> BTreeMap<String, usize> {
    place.client(Has::pages(PAGES, 0)).end();
    daemon.wait_for("a client has gone");
    // The thread that has said so drops its own a moment later.
    std::thread::sleep(Duration::from_millis(100));
    descriptors(daemon.pid())
}

/// Waits until it has as many again.
fn wait_until_it_has(expected: &BTreeMap<String, usize>, daemon: &Daemon) {
    for _ in 0..1000 {
        if descriptors(daemon.pid()) == *expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(descriptors(daemon.pid()), *expected);
}

#[test]
fn the_serving_process_is_killed_and_clients_go_on() {
    let place = Place::new(PAGES);
    let events = all_events();
    for workers in ["1", "3"] {
        let mut daemon = place.serve(["--workers", workers]);
        let before = without_clients(&place, &mut daemon);
        let mut clients: Vec<_> = (0..3).map(|_| place.client(Has::pages(PAGES, events))).collect();
        clients.iter_mut().for_each(|client| use_memory(client, 0, events & FORK != 0));
        daemon.kill_serving();
        // It says so in the log, and goes on; what was removed is zeros still.
        daemon.wait_for("a serving process died");
        clients.iter_mut().for_each(|client| use_memory(client, 1, events & FORK != 0));
        daemon.kill_serving();
        clients.push(place.client(Has::pages(PAGES, events)));
        clients.iter_mut().for_each(|client| client.asked("check"));
        clients.into_iter().for_each(Client::end);
        daemon.kill_serving();
        wait_until_it_has(&before, &daemon);
        let ended = daemon.stop();
        assert_eq!(ended.exit, Some(0), "{ended:?}");
        let last = "VMs 5, refused 0, failed 0, serving processes that died 3";
        assert_eq!(ended.last(), last, "{ended:?}");
        assert!(!is_there(&place.socket));
    }
}

#[test]
fn chaos_is_not_noticed_by_clients() {
    let place = Place::new(PAGES);
    let mut daemon = place.serve(["--chaos", "5"]);
    let events = all_events();
    let begin = Instant::now();
    let mut served = 0;
    while begin.elapsed() < Duration::from_secs(5) {
        let mut client = place.client(Has::pages(PAGES, events));
        use_memory(&mut client, 0, events & FORK != 0);
        use_memory(&mut client, 1, events & FORK != 0);
        client.asked("check");
        client.end();
        served += 1;
    }
    daemon.wait_for("a serving process died");
    let ended = daemon.stop();
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    assert_eq!(ended.with("cannot be served").len(), 0, "{ended:?}");
    // How many that are is a matter of the machine; each is counted once.
    let counted = format!("VMs {served}, refused 0, failed 0");
    assert!(ended.last().starts_with(&counted), "{served}: {ended:?}");
    assert!(ended.with("a serving process died").len() > 20, "{served}: {ended:?}");
}

#[test]
fn a_daemon_that_drains_goes_on_with_that_when_its_serving_process_dies() {
    let place = Place::new(PAGES);
    let mut daemon = place.serve(["--on-stop", "drain"]);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("discard 0 9");
    // As a terminal does: once is not twice.
    daemon.signal(Signal::INT);
    kill_process(daemon.serving().unwrap(), Signal::INT).unwrap();
    daemon.wait_for("clients are served until they have gone");
    client.asked("check 0 9");
    daemon.kill_serving();
    daemon.wait_for("clients are served until they have gone");
    assert!(!is_there(&place.socket), "nobody else comes");
    client.asked("check");
    client.end();
    let ended = daemon.ended();
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    assert!(ended.last().starts_with("VMs 1, refused 0, failed 0"), "{ended:?}");
}

#[test]
fn a_serving_process_that_outlives_its_keeper_serves_on() {
    let place = Place::new(PAGES);
    let mut daemon = place.serve::<&str>([]);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check 0 9");
    let serving = daemon.serving().unwrap();
    daemon.kill_keeper();
    daemon.wait_for("the keeper has gone");
    client.asked("check");
    place.client(Has::pages(PAGES, 0)).end();
    client.end();
    kill_process(serving, Signal::TERM).unwrap();
    daemon.wait_for("VMs 2, refused 0, failed 0");
}

#[test]
fn another_program_takes_over_and_clients_go_on() {
    let place = Place::new(PAGES);
    let socket = place.path("take-over");
    let of = |how: &[&str]| -> Vec<PathBuf> {
        let ways = how.iter().map(|way| [Path::new(way).to_owned(), socket.clone()]);
        ways.flatten().collect()
    };
    let events = all_events();
    let mut daemon = place.serve(of(&["--take-over-socket"]));
    let mut clients: Vec<_> = (0..3).map(|_| place.client(Has::pages(PAGES, events))).collect();
    clients.iter_mut().for_each(|client| use_memory(client, 0, events & FORK != 0));
    for workers in ["4", "1", "2"] {
        let mut how = of(&["--take-over", "--take-over-socket"]);
        how.extend(["--workers".into(), workers.into()]);
        let next = place.serve(how);
        assert_eq!(daemon.ended().exit, Some(0));
        daemon = next;
        clients.iter_mut().for_each(|client| client.asked("check 0 200"));
        daemon.kill_serving();
        clients.push(place.client(Has::pages(PAGES, events)));
    }
    clients.iter_mut().for_each(|client| use_memory(client, 1, events & FORK != 0));
    clients.iter_mut().for_each(|client| client.asked("check"));
    clients.into_iter().for_each(Client::end);
    assert!(is_there(&place.socket) && is_there(&socket));
    let ended = daemon.stop();
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    // Those that were killed: others have ended to give all of it away.
    let last = "VMs 6, refused 0, failed 0, serving processes that died 3";
    assert_eq!(ended.last(), last, "{ended:?}");
    assert!(!is_there(&place.socket) && !is_there(&socket));
}

/// Asks at a take-over socket, as [`pervma_serve::TakenOver`] does.
fn ask(socket: &Path, version: u64) -> OwnedFd {
    let asks = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .unwrap();
    connect(&asks, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    let message = [0x4B53_4156_5245_5001, version].map(u64::to_ne_bytes).concat();
    send(&asks, &message, SendFlags::empty()).unwrap();
    asks
}

#[test]
fn who_cannot_take_over_leaves_the_daemon_as_it_is() {
    let place = Place::new(PAGES);
    let socket = place.path("take-over");
    let at = socket.to_str().unwrap();
    let mut daemon = place.serve(["--take-over-socket", at]);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check 0 100");
    client.asked("discard 0 50");
    // It reads another version of what is noted.
    let asks = ask(&socket, 99);
    let mut answer = [0; 256];
    let (_, len) = recv(&asks, &mut answer[..], RecvFlags::empty()).unwrap();
    assert_eq!(&answer[8..len], b"its state is of version 2");
    daemon.wait_for("refused: its state is of version 2");
    // It dies when it has everything.
    drop(ask(&socket, 2));
    daemon.wait_for("nobody takes over: this program serves on");
    client.asked("check 0 200");
    // It says nothing; or what is not understood.
    let silent =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    connect(&silent, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
    daemon.wait_for("is refused: ");
    let ended = run(place.command(["--take-over", "/nowhere"]));
    assert_eq!((ended.exit, ended.stderr.lines().count()), (Some(2), 1), "{ended:?}");
    // Its bytes are others: what is noted of clients is not for it, but they never read others.
    client.asked("check");
    client.end();
    assert_eq!(daemon.stop().exit, Some(0));
}

#[test]
fn whose_bytes_are_others_does_not_serve_the_clients_of_these() {
    let place = Place::new(PAGES);
    let socket = place.path("take-over");
    let at = socket.to_str().unwrap();
    let daemon = place.serve(["--take-over-socket", at]);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check 0 16");
    client.asked("discard 0 4");
    let other = memory::random_bytes(PAGES * PAGE, 2);
    fs::remove_file(&place.file).unwrap();
    fs::write(&place.file, other).unwrap();
    let next = place.serve(["--take-over", at]);
    assert_eq!(daemon.ended().exit, Some(0));
    assert_eq!(client.ask("touch 0"), "byte 0");
    for page in [200, PAGES - 1] {
        assert_eq!(client.ask(&format!("touch {page}")), "SIGBUS");
    }
    client.end();
    assert_eq!(next.stop().exit, Some(1));
}

/// The numbers of a daemon's descriptors of a kind.
fn numbers(daemon: &Daemon, kind: &str) -> Vec<u32> {
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let of_kind = open
        .map(|entry| entry.unwrap().path())
        .filter(|path| fs::read_link(path).is_ok_and(|to| to.to_str().unwrap().contains(kind)));
    let mut numbers: Vec<u32> =
        of_kind.map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

/// Changes what is noted: of the table, number 0, or of a journal, by the order of descriptors. An
/// inbox, which is made ahead of each peer and soon gone, is of another size.
fn damage(daemon: &Daemon, number: usize, at: u64, bytes: &[u8]) {
    let mut files: Vec<_> = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            fs::read_link(path).is_ok_and(|to| to.to_str().unwrap().contains("pervma-state"))
        })
        .filter(|path| {
            fs::metadata(path).is_ok_and(|about| about.len() == 4096 || about.len() > 16 << 20)
        })
        .collect();
    files.sort_by_key(|path| path.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap());
    let file = fs::File::options().write(true).open(&files[number]).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn a_client_of_which_what_is_noted_is_damaged_fails_and_reads_no_zeros() {
    // The version of a journal; its count of records; a record; the whole of it.
    for (at, bytes) in [(0, &[99; 8][..]), (40, &[255; 8]), (64, &[9]), (0, &[0; 4096])] {
        let place = Place::new(PAGES);
        let mut daemon = place.serve::<&str>([]);
        let [mut client, mut other] =
            [(); 2].map(|()| place.client(Has::pages(PAGES, all_events())));
        for client in [&mut client, &mut other] {
            client.asked("check 0 16");
            // No inbox is there any more.
            daemon.wait_for("a client has come");
        }
        // The table is first, then the journals.
        damage(&daemon, 1, at, bytes);
        daemon.kill_serving();
        daemon.wait_for("a client cannot be served");
        assert_eq!(client.ask("touch 300"), "SIGBUS", "{at}");
        client.asked("check 0 16");
        other.asked("check");
        drop((client, other));
        assert_eq!(daemon.stop().exit, Some(1));
    }
}

#[test]
fn an_entry_that_is_damaged_costs_its_client_and_no_other() {
    const FIRST_ENTRY: u64 = 4096 * 1025;
    // Of the first connection, of its client, of the second connection: the descriptors; the
    // number; the descriptor of the journal, which is not checked, and may be another client's.
    for (at, bytes) in [(16, &[77; 4][..]), (0, &[0; 8]), (80, &[])] {
        let place = Place::new(PAGES);
        let mut daemon = place.serve::<&str>([]);
        let [mut client, mut other] =
            [(); 2].map(|()| place.client(Has::pages(PAGES, all_events())));
        for client in [&mut client, &mut other] {
            client.asked("check 0 16");
            // There is no copy of its descriptor any more, which would be one of nobody's.
            daemon.wait_for("a client has come");
        }
        let userfaultfds = numbers(&daemon, "userfaultfd");
        let others = userfaultfds[1].to_ne_bytes();
        let bytes = if bytes.is_empty() { &others[..] } else { bytes };
        damage(&daemon, 0, FIRST_ENTRY + 512 + at, bytes);
        daemon.kill_serving();
        daemon.wait_for("cannot be used");
        assert_eq!(client.ask("touch 300"), "SIGBUS");
        other.asked("check");
        drop((client, other));
        let _ = daemon.stop();
    }
}

#[test]
fn what_cannot_be_had_at_the_start_is_one_line() {
    let place = Place::new(PAGES);
    let limited = |resource: libc::__rlimit_resource_t, most: u64| {
        let mut command = place.command(["--no-sandbox"]);
        let limit = move || {
            let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
            // SAFETY: it reads a struct. The limit holds for whoever has no privileges.
            match unsafe { libc::setrlimit(resource, &raw const limit) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: it makes one system call.
        unsafe { command.pre_exec(limit) };
        command
    };
    // A file that must not become so long.
    let ended = run(limited(libc::RLIMIT_FSIZE, 1 << 20));
    assert!(ended.exit != Some(0) && ended.stderr.lines().count() <= 2, "{ended:?}");
    if rustix::process::geteuid().is_root() {
        println!("NOT RUN: as root, as much as there is can be locked");
    } else {
        let ended = run(limited(libc::RLIMIT_MEMLOCK, 4096));
        assert_eq!(ended.exit, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("cannot be locked in memory"), "{ended:?}");
    }
}

#[test]
fn without_a_keeper_it_serves_alone() {
    let place = Place::new(PAGES);
    let daemon = place.serve(["--no-keeper"]);
    assert_eq!(daemon.serving(), None);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check");
    client.end();
    assert_eq!(daemon.stop().exit, Some(0));
}

/// What a service manager keeps, by name.
type Kept = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// A service manager, as far as it keeps descriptors: it ends with this process.
fn manager(path: &Path) -> Kept {
    let socket = UnixDatagram::bind(path).unwrap();
    let kept = Kept::default();
    let all = Arc::clone(&kept);
    std::thread::spawn(move || {
        loop {
            let mut text = [0; 256];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut text)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(&socket, &mut parts, &mut control, flags).unwrap();
            let descriptor = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut came) => came.next(),
                _ => None,
            });
            let said = std::str::from_utf8(&text[..received.bytes]).unwrap();
            let name = said.lines().find_map(|line| line.strip_prefix("FDNAME="));
            let mut all = all.lock().unwrap();
            match (said.lines().next().unwrap(), name, descriptor) {
                ("FDSTORE=1", Some(name), Some(it)) => all.push((name.to_owned(), it)),
                ("FDSTOREREMOVE=1", Some(name), None) => all.retain(|(kept, _)| kept != name),
                ("READY=1", None, None) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    kept
}

#[test]
fn a_service_manager_keeps_what_is_needed_when_all_processes_are_killed() {
    let place = Place::new(PAGES);
    let notify = place.path("notify");
    let kept = manager(&notify);
    let start = |kept: &[(String, OwnedFd)]| {
        let daemon = place.command(["--on-stop", "drain"]);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", r#"LISTEN_PID=$$ exec "$0" "$@""#]);
        command.arg(daemon.get_program()).args(daemon.get_args());
        command.env("NOTIFY_SOCKET", &notify).env("FDSTORE", "1000");
        let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDNAMES", names.join(":")).env("LISTEN_FDS", kept.len().to_string());
        // Out of the way of where they are to be.
        let kept: Vec<_> = kept
            .iter()
            .map(|(_, descriptor)| rustix::io::fcntl_dupfd_cloexec(descriptor, 500).unwrap())
            .collect();
        let place_them = move || {
            for (number, descriptor) in (3..).zip(&kept) {
                // SAFETY: it takes two numbers, in a process that is to become another program.
                let placed = unsafe { libc::dup2(descriptor.as_raw_fd(), number) };
                assert_eq!(placed, number);
            }
            Ok(())
        };
        // SAFETY: it makes system calls.
        unsafe { command.pre_exec(place_them) };
        Daemon::start(command)
    };
    let mut daemon = start(&[]);
    let events = all_events();
    let mut clients: Vec<_> = (0..3).map(|_| place.client(Has::pages(PAGES, events))).collect();
    clients.iter_mut().for_each(|client| use_memory(client, 0, events & FORK != 0));
    for _ in 0..2 {
        let serving = daemon.serving().unwrap();
        daemon.signal(Signal::KILL);
        kill_process(serving, Signal::KILL).unwrap();
        drop(daemon);
        // Sent before it died.
        std::thread::sleep(Duration::from_millis(100));
        let all = std::mem::take(&mut *kept.lock().unwrap());
        let names: BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
        assert!(names.len() == all.len() && names.len() > 3 * 3, "{names:?}");
        fs::remove_file(&place.socket).unwrap();
        // The manager keeps them still.
        let copies = all.iter().map(|(name, it)| (name.clone(), it.try_clone().unwrap()));
        kept.lock().unwrap().extend(copies);
        daemon = start(&all);
        clients.iter_mut().for_each(|client| client.asked("check 0 300"));
    }
    clients.iter_mut().for_each(|client| client.asked("check"));
    clients.into_iter().for_each(Client::end);
    let ended = daemon.stop();
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    assert!(ended.last().starts_with("VMs 3, refused 0, failed 0"), "{ended:?}");
    std::thread::sleep(Duration::from_millis(100));
    let kept = kept.lock().unwrap();
    let names: Vec<_> = kept.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["pervma-table"], "the rest is not needed any more");
}

#[test]
fn the_units_are_what_systemd_takes() {
    let folder = tempfile::tempdir().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let service = fs::read_to_string(units.join("pervma-serve.service")).unwrap();
    let service = service.replace("/usr/bin/pervma", env!("CARGO_BIN_EXE_pervma"));
    fs::write(folder.path().join("pervma-serve.service"), service).unwrap();
    let socket = folder.path().join("pervma-serve.socket");
    fs::copy(units.join("pervma-serve.socket"), &socket).unwrap();
    let mut command = std::process::Command::new("systemd-analyze");
    command.arg("verify").arg(folder.path().join("pervma-serve.service")).arg(socket);
    match command.output() {
        Err(error) => println!("NOT RUN: no systemd-analyze: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !said.contains("pervma-serve."), "{said}");
        }
    }
}

#[test]
fn the_next_process_begins_also_where_no_descriptor_is_left() {
    let place = Place::new(PAGES);
    let mut command = place.command(["--workers", "2"]);
    let limit = || {
        let limit = libc::rlimit { rlim_cur: 60, rlim_max: 60 };
        // SAFETY: it reads a struct.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        Ok(())
    };
    // SAFETY: it makes one system call.
    unsafe { command.pre_exec(limit) };
    let mut daemon = Daemon::start(command);
    let mut clients: Vec<_> =
        (0..3).map(|_| place.client(Has::pages(PAGES, all_events()))).collect();
    clients.iter_mut().for_each(|client| client.asked("check 0 100"));
    let _silent: Vec<_> = (0..60).map(|_| UnixStream::connect(&place.socket).unwrap()).collect();
    daemon.wait_for("a peer cannot be");
    for _ in 0..3 {
        daemon.kill_serving();
        clients.iter_mut().for_each(|client| client.asked("check"));
    }
    clients.into_iter().for_each(Client::end);
}

#[test]
fn who_asks_for_all_clients_when_the_keeper_has_gone_gets_none_and_all_are_served() {
    let place = Place::new(PAGES);
    let socket = place.path("take-over");
    let at = socket.to_str().unwrap();
    let mut daemon = place.serve(["--take-over-socket", at]);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check 0 9");
    client.asked("discard 0 4");
    let serving = daemon.serving().unwrap();
    // Dead, not only told to die: up to then who serves is its child.
    daemon.kill_keeper();
    // At once, and when it is known.
    for _ in 0..2 {
        let asks = run(place.command(["--take-over", at]));
        assert_eq!((asks.exit, asks.stderr.lines().count()), (Some(2), 1), "{asks:?}");
        assert!(asks.stderr.contains("its keeper has gone"), "{asks:?}");
        client.asked("check 0 200");
        std::thread::sleep(Duration::from_millis(600));
    }
    client.asked("check");
    client.end();
    kill_process(serving, Signal::TERM).unwrap();
    daemon.wait_for("VMs 1, refused 0, failed 0");
}

#[test]
fn a_keeper_whose_parent_ignores_the_ends_of_children_hears_of_them() {
    let place = Place::new(PAGES);
    let mut command = place.command::<&str>([]);
    let ignore = || {
        // SAFETY: it sets no handler.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: it makes one system call.
    unsafe { command.pre_exec(ignore) };
    let daemon = Daemon::start(command);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    for _ in 0..3 {
        client.asked("check 0 100");
        daemon.kill_serving();
    }
    client.asked("check");
    client.end();
    assert_eq!(daemon.stop().exit, Some(0));
}

#[test]
fn of_two_programs_that_wait_for_each_other_too_long_one_has_all_clients() {
    // Whether who gives is found soon enough is a matter of chance.
    assert!((0..5).any(|_| two_wait_for_each_other()), "it was never found soon enough");
}

/// The process that gives everything to another program, if it is found: the next one after the one
/// that has served up to now.
fn who_gives(daemon: &Daemon, served: Option<Pid>) -> Option<Pid> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        let gives = daemon.serving().filter(|&gives| Some(gives) != served);
        if gives.is_some() {
            return gives;
        }
    }
    None
}

fn two_wait_for_each_other() -> bool {
    let place = Place::new(PAGES);
    let socket = place.path("take-over");
    let at = socket.to_str().unwrap();
    let mut daemon = place.serve(["--take-over-socket", at]);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check 0 100");
    client.asked("discard 0 50");
    let first = daemon.serving();
    let mut next = place.command(["--take-over", at]).stderr(Stdio::null()).spawn().unwrap();
    // Who gives everything stands still before it hears that the other one is ready.
    let gives = who_gives(&daemon, first);
    let stopped = gives.filter(|&gives| kill_process(gives, Signal::STOP).is_ok());
    let begin = Instant::now();
    while next.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_secs(8) {
        std::thread::sleep(Duration::from_millis(10));
    }
    // It may have ended.
    let _ = stopped.map(|gives| kill_process(gives, Signal::CONT));
    let Some(ended) = next.try_wait().unwrap() else {
        // It has taken over.
        client.asked("check");
        client.end();
        kill_process(Pid::from_child(&next), Signal::TERM).unwrap();
        next.wait().unwrap();
        return false;
    };
    assert_eq!(ended.code(), Some(2));
    daemon.wait_for("nobody takes over: this program serves on");
    daemon.kill_serving();
    client.asked("check");
    client.end();
    assert_eq!(daemon.stop().exit, Some(0));
    true
}

#[test]
fn a_keeper_that_stands_still_while_another_program_takes_over_starts_no_process() {
    assert!((0..5).any(|_| a_keeper_stands_still()), "it was never found soon enough");
}

fn a_keeper_stands_still() -> bool {
    let place = Place::new(PAGES);
    let socket = place.path("take-over");
    let at = socket.to_str().unwrap();
    let daemon = place.serve(["--take-over-socket", at]);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check 0 100");
    client.asked("discard 0 50");
    let keeper = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    let first = daemon.serving();
    let mut next = place.command(["--take-over", at]).stderr(Stdio::null()).spawn().unwrap();
    let gives = who_gives(&daemon, first);
    let gives = gives.filter(|&gives| stop_now(gives));
    // So it does not see how who gives everything has ended, until the other one has begun.
    let both_stand = stop_now(keeper) && gives.is_some();
    let _ = gives.map(|gives| kill_process(gives, Signal::CONT));
    // What is missing comes from the other one, which waits for a while.
    client.asked(&format!("check {} {PAGES}", PAGES - 4));
    kill_process(keeper, Signal::CONT).unwrap();
    assert_eq!(daemon.ended().exit, Some(0));
    client.asked("check");
    let mut late = place.client(Has::pages(PAGES, all_events()));
    late.asked("check");
    late.end();
    client.end();
    kill_process(Pid::from_child(&next), Signal::TERM).unwrap();
    assert_eq!(next.wait().unwrap().code(), Some(0));
    both_stand
}

/// Stops a process; whether it has not ended.
fn stop_now(process: Pid) -> bool {
    if kill_process(process, Signal::STOP).is_err() {
        return false;
    }
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_pid())).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    while matches!(state(), Some('R' | 'S' | 'D')) {
        std::thread::sleep(Duration::from_millis(1));
    }
    state() == Some('T')
}

#[test]
fn who_is_not_given_a_socket_at_which_clients_wait_takes_nothing_over() {
    let place = Place::new(PAGES);
    let (socket, other) = (place.path("take-over"), place.path("other"));
    let vm = format!("{}={}", other.display(), place.file.display());
    let at = socket.to_str().unwrap();
    let daemon = place.serve(["--take-over-socket", at, "--vm", &vm]);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check 0 100");
    let refused = run(place.command(["--take-over", at]));
    assert_eq!((refused.exit, refused.stderr.contains("not given here")), (Some(2), true));
    client.asked("check 0 200");
    let next = place.serve(["--vm", &vm, "--take-over", at]);
    assert_eq!(daemon.ended().exit, Some(0));
    client.asked("check");
    client.end();
    Client::connect(&other, &place.file, Has::pages(PAGES, 0)).unwrap().end();
    assert_eq!(next.stop().exit, Some(0));
}

#[test]
fn who_fails_to_take_over_leaves_the_sockets_where_they_are() {
    let place = Place::new(PAGES);
    let socket = place.path("take-over");
    let at = socket.to_str().unwrap();
    let daemon = place.serve(["--take-over-socket", at]);
    let vm = format!("{}=/nowhere", place.path("other").display());
    let refused = run(place.command(["--take-over-socket", at, "--take-over", at, "--vm", &vm]));
    assert_eq!(refused.exit, Some(2), "{refused:?}");
    assert!(is_there(&place.socket) && is_there(&socket));
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check");
    client.end();
    assert_eq!(daemon.stop().exit, Some(0));
    assert!(!is_there(&place.socket) && !is_there(&socket));
}

#[test]
fn who_cannot_lock_enough_leaves_the_daemon_one_that_can() {
    let place = Place::new(PAGES);
    let socket = place.path("take-over");
    let at = socket.to_str().unwrap();
    let limited = |more: &[&str]| {
        let mut command = place.command(["--take-over-socket", at].iter().chain(more));
        let limit = || {
            let limit = libc::rlimit { rlim_cur: 1 << 16, rlim_max: 1 << 16 };
            // SAFETY: it reads a struct.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
            Ok(())
        };
        // SAFETY: it makes one system call.
        unsafe { command.pre_exec(limit) };
        command
    };
    if rustix::process::geteuid().is_root() {
        return println!("NOT RUN: as root, as much as there is can be locked");
    }
    let daemon = Daemon::start(limited(&["--workers", "2"]));
    let mut client = place.client(Has::pages(PAGES, 0));
    let refused = run(limited(&["--take-over", at, "--workers", "64"]));
    assert_eq!(refused.exit, Some(2), "{refused:?}");
    daemon.kill_serving();
    client.asked("check");
    client.end();
    assert_eq!(daemon.stop().exit, Some(0));
}

#[test]
fn one_signal_of_a_terminal_to_both_processes_counts_once() {
    let place = Place::new(PAGES);
    let mut command = place.command(["--on-stop", "drain"]);
    command.process_group(0);
    let mut daemon = Daemon::start(command);
    let mut client = place.client(Has::pages(PAGES, all_events()));
    client.asked("check 0 100");
    let group = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    daemon.wait_for("clients are served until they have gone");
    std::thread::sleep(Duration::from_millis(100));
    client.asked("check");
    client.end();
    assert_eq!(daemon.ended().exit, Some(0));
}

#[test]
fn children_that_have_gone_are_forgotten_also_by_processes_that_die_soon() {
    let events = all_events();
    if events & FORK == 0 {
        return println!("NOT RUN: this user may not have forks told");
    }
    let place = Place::new(PAGES);
    let daemon = place.serve(["--max-clients", "5"]);
    let mut client = place.client(Has::pages(PAGES, events));
    for _ in 0..12 {
        client.asked("fork");
        daemon.kill_serving();
        std::thread::sleep(Duration::from_millis(100));
    }
    client.asked("check");
    client.end();
    assert_eq!(daemon.stop().exit, Some(0));
}
