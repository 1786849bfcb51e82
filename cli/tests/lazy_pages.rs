//! The daemon `pervma lazy-pages`, with tasks that are processes of their own, restored from images
//! that the tests write: every byte is what belongs there, also when the daemon has gone.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "common/criu.rs"]
mod criu;
#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/images.rs"]
mod images;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/page_server.rs"]
mod page_server;

use std::io::Read;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use client::{Client, all_events, send};
use common::{pervma, run};
use criu::Checkpoint;
use daemon::Daemon;
use images::{Entry, LAZY, PRESENT, START};
use memory::{FORK, PAGE, random_bytes};
use page_server::{Answers, TestServer};
use rustix::process::Signal;

/// Where a task is run, which is a child of a test.
#[test]
fn client_process() {
    client::play();
}

const PAGES: usize = 2048;

/// Memory of which the images have no page that is a multiple of 64, nor the second quarter.
fn bytes_and_entries(seed: u64) -> (Vec<u8>, Vec<Entry>) {
    let mut bytes = random_bytes(PAGES * PAGE, seed);
    let is_there =
        |page: &usize| !page.is_multiple_of(64) && !(PAGES / 4..PAGES / 2).contains(page);
    let mut entries: Vec<Entry> = Vec::new();
    for page in 0..PAGES {
        if !is_there(&page) {
            bytes[page * PAGE..][..PAGE].fill(0);
            continue;
        }
        match entries.last_mut() {
            Some((last, _)) if last.end == page => last.end += 1,
            _ => entries.push((page..page + 1, LAZY | PRESENT)),
        }
    }
    (bytes, entries)
}

#[test]
fn a_task_has_every_byte_before_and_after_its_restore_and_then_the_daemon_ends() {
    let (bytes, entries) = bytes_and_entries(1);
    for how in [&[][..], &["--granule", "4K", "--workers", "1"], &["--workers", "4"]] {
        let place = Checkpoint::new(&[(31, &bytes, &entries)]);
        let mut daemon = place.daemon(how);
        let (mut restore, mut tasks) = place.restore_all(all_events());
        tasks[0].asked("check 0 100");
        restore.finish();
        tasks[0].asked(&format!("check 900 {PAGES}"));
        daemon.wait_for("a restore has ended");
        let ended = daemon.ended();
        assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
        assert!(!daemon::is_there(&place.socket()));
        tasks[0].asked("check");
        tasks.into_iter().for_each(Client::end);
    }
}

#[test]
fn what_is_never_touched_is_there_as_well() {
    let (bytes, entries) = bytes_and_entries(2);
    let place = Checkpoint::new(&[(5, &bytes, &entries), (77, &[0; 9 * PAGE], &[])]);
    let daemon = place.daemon(&[]);
    let (mut restore, mut tasks) = place.restore_all(all_events());
    restore.finish();
    assert_eq!(daemon.ended().exit, Some(0));
    // Nobody serves them any more.
    tasks.iter_mut().for_each(|task| task.asked("check"));
    tasks.into_iter().for_each(Client::end);
}

#[test]
fn a_tree_of_tasks_discards_and_forks_while_it_is_filled() {
    let (bytes, entries) = bytes_and_entries(3);
    let all: Vec<(u64, &[u8], &[Entry])> =
        (1..=4).map(|pid| (pid, &bytes[..], &entries[..])).collect();
    let place = Checkpoint::new(&all);
    let mut daemon = place.daemon(&["--workers", "2"]);
    let features = all_events();
    let (mut restore, mut tasks) = place.restore_all(features);
    // A zombie.
    send(restore.connection(), &(-9_i32).to_ne_bytes(), &[]);
    tasks[1].asked("discard 10 200");
    tasks[2].asked("write 700");
    restore.finish();
    for (task, at) in tasks.iter_mut().zip([300, 400, 500, 600]) {
        if features & FORK != 0 {
            task.tell("fork");
        }
        task.tell(&format!("discard {at} {}", at + 300));
        task.tell(&format!("write {}", at + 100));
        task.tell("check");
    }
    for task in &mut tasks {
        (0..if features & FORK != 0 { 4 } else { 3 })
            .for_each(|_| assert_eq!(task.answer(), "done"));
    }
    daemon.wait_for("a restore has ended");
    let ended = daemon.ended();
    assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
    tasks.iter_mut().for_each(|task| task.asked("check"));
    tasks.into_iter().for_each(Client::end);
}

#[test]
fn many_restores_are_served_from_the_same_images_at_once_and_one_after_the_other() {
    let (bytes, entries) = bytes_and_entries(4);
    let place = Checkpoint::new(&[(1, &bytes, &entries), (2, &bytes, &entries)]);
    let mut daemon = place.daemon(&["--serve"]);
    for count in [3, 1, 5] {
        let mut restores: Vec<_> = (0..count).map(|_| place.restore_all(all_events())).collect();
        for (restore, tasks) in &mut restores {
            tasks[1].asked("check 900 1000");
            restore.finish();
            tasks[1].asked("write 30");
        }
        for (_, mut tasks) in restores {
            tasks.iter_mut().for_each(|task| task.asked("check"));
            daemon.wait_for("a restore has ended");
            tasks.iter_mut().for_each(|task| task.asked("check"));
            tasks.into_iter().for_each(Client::end);
        }
    }
    let ended = daemon.stop();
    assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
    assert!(!daemon::is_there(&place.socket()));
}

#[test]
fn who_is_no_restorer_is_refused_with_a_line_and_does_no_harm() {
    let (bytes, entries) = bytes_and_entries(5);
    let place = Checkpoint::new(&[(1, &bytes, &entries)]);
    let mut daemon = place.daemon(&[]);
    for (said, why) in [
        (&b"GET / HTTP/1.1\r\n"[..], "it is no CRIU"),
        (&[0; 4], "it is no CRIU"),
        (&[1, 0], "closed the connection"),
        (&[1, 0, 0, 0, 0], "no userfaultfd for task 1"),
        (&[], "closed the connection"),
    ] {
        let peer = place.restore();
        send(peer.connection(), said, &[]);
        drop(peer);
        daemon.wait_for(why);
    }
    let peer = place.restore();
    send(peer.connection(), &[1], &[std::io::stdin().as_fd()]);
    daemon.wait_for("a descriptor where a number");
    let (mut restore, mut tasks) = place.restore_all(all_events());
    restore.finish();
    tasks[0].asked("check");
    daemon.wait_for("a restore has ended");
    let ended = daemon.ended();
    assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
    tasks.into_iter().for_each(Client::end);
}

#[test]
fn who_says_nothing_keeps_no_restore_out() {
    let (bytes, entries) = bytes_and_entries(5);
    let place = Checkpoint::new(&[(1, &bytes, &entries)]);
    let mut daemon = place.daemon(&[]);
    let silent = [place.restore(), place.restore()];
    let (mut restore, mut tasks) = place.restore_all(all_events());
    for _ in &silent {
        daemon.wait_for("a peer is refused: another restore is served");
    }
    restore.finish();
    tasks[0].asked("check");
    let ended = daemon.ended();
    assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
    tasks.into_iter().for_each(Client::end);

    let mut daemon = place.daemon(&["--serve"]);
    let silent = place.restore();
    daemon.signal(Signal::TERM);
    daemon.wait_for("no restore is accepted");
    assert_eq!(daemon.ended().exit, Some(0));
    drop(silent);
}

#[test]
fn a_restore_that_fails_is_told_in_one_line_and_its_tasks_never_read_zeros() {
    let (bytes, entries) = bytes_and_entries(6);
    let place = Checkpoint::new(&[(1, &bytes, &entries), (2, &bytes, &entries)]);
    let touched = |task: &mut Client| task.ask("touch 100");
    // The restorer dies.
    let mut daemon = place.daemon(&[]);
    let (restore, mut tasks) = place.restore_all(all_events());
    drop(restore);
    daemon.wait_for("a restore has failed: it has closed the connection before");
    tasks.iter_mut().for_each(|task| assert_eq!(touched(task), "SIGBUS"));
    let ended = daemon.ended();
    assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(1), 1), "{ended:?}");
    drop(tasks);
    // It restores what the images do not have, the same twice, or sends something else.
    for (pid, why) in [(3, "have no memory of task 3"), (1, "task 1 has come already")] {
        let mut daemon = place.daemon(&[]);
        let restore = place.restore();
        let mut task = restore.task(&place, 1, all_events());
        let (mut other, userfaultfd) = criu::task(&place, 1, all_events());
        send(restore.connection(), &i32::to_ne_bytes(pid), &[]);
        send(restore.connection(), &[0], &[userfaultfd.as_fd()]);
        drop(userfaultfd);
        daemon.wait_for(why);
        for task in [&mut task, &mut other] {
            assert_eq!(touched(task), "SIGBUS");
        }
        drop((task, other));
        let ended = daemon.ended();
        assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(1), 1), "{ended:?}");
    }
    let mut daemon = place.daemon(&[]);
    let restore = place.restore();
    let task = restore.task(&place, 1, all_events());
    send(restore.connection(), &2_i32.to_ne_bytes(), &[]);
    send(restore.connection(), &[0], &[std::io::stdin().as_fd()]);
    daemon.wait_for("task 2 is not served: the descriptor is no userfaultfd");
    drop(task);
    assert_eq!(daemon.ended().exit, Some(1));
}

#[test]
fn a_task_that_dies_half_way_is_forgotten_and_the_others_are_served() {
    let (bytes, entries) = bytes_and_entries(7);
    let place = Checkpoint::new(&[(1, &bytes, &entries), (2, &bytes, &entries)]);
    let daemon = place.daemon(&[]);
    let (mut restore, mut tasks) = place.restore_all(all_events());
    tasks[0].tell("check");
    tasks[0].kill();
    restore.finish();
    tasks[1].asked("check");
    let ended = daemon.ended();
    assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
    tasks[1].asked("check");
}

#[test]
fn pages_that_cannot_be_read_any_more_fail_and_are_never_zeros() {
    let (bytes, entries) = bytes_and_entries(8);
    let place = Checkpoint::new(&[(1, &bytes, &entries)]);
    let mut daemon = place.daemon(&[]);
    let (mut restore, mut tasks) = place.restore_all(all_events());
    tasks[0].asked("check 0 20");
    let pages = std::fs::File::options().write(true).open(place.folder.path().join("pages-1.img"));
    pages.unwrap().set_len(40 * PAGE as u64).unwrap();
    restore.finish();
    daemon.wait_for("cannot be read");
    let ended = daemon.ended();
    assert_eq!(ended.exit, Some(1), "{ended:?}");
    assert_eq!(tasks[0].ask("touch 1500"), "SIGBUS");
    tasks[0].asked("check 0 20");
}

#[test]
fn told_to_stop_it_serves_what_is_there_to_its_end() {
    let (bytes, entries) = bytes_and_entries(9);
    let place = Checkpoint::new(&[(1, &bytes, &entries)]);
    let mut daemon = place.daemon(&["--serve"]);
    let (mut restore, mut tasks) = place.restore_all(all_events());
    daemon.wait_for("a task has come");
    daemon.signal(Signal::TERM);
    daemon.wait_for("no restore is accepted");
    tasks[0].asked("check 0 100");
    restore.finish();
    assert_eq!(daemon.ended().exit, Some(0));
    tasks[0].asked("check");

    let mut daemon = place.daemon(&["--serve"]);
    let (restore, mut tasks) = place.restore_all(all_events());
    daemon.wait_for("a task has come");
    daemon.signal(Signal::TERM);
    daemon.wait_for("no restore is accepted");
    daemon.signal(Signal::TERM);
    daemon.wait_for("a restore has failed: the pager ends");
    assert_eq!(daemon.ended().exit, Some(1));
    assert_eq!(tasks[0].ask("touch 100"), "SIGBUS");
    drop(restore);
}

#[test]
fn in_the_background_it_has_a_pidfile_and_a_log_and_tells_when_it_is_ready() {
    let (bytes, entries) = bytes_and_entries(10);
    let place = Checkpoint::new(&[(1, &bytes, &entries)]);
    let work = tempfile::tempdir().unwrap();
    let (mut read, write) = std::io::pipe().unwrap();
    // The descriptor stays open in the program that is run.
    rustix::io::fcntl_setfd(&write, rustix::io::FdFlags::empty()).unwrap();
    let number = write.as_raw_fd().to_string();
    let mut command =
        place.command(&["-d", "--no-default-config", "--pidfile", "pid", "-o", "log", "-W"]);
    command.arg(work.path()).args(["--status-fd", &number]);
    let run = run(command);
    drop(write);
    assert_eq!((run.exit, run.stdout.as_str(), run.stderr.as_str()), (Some(0), "", ""));
    let mut ready = Vec::new();
    read.read_to_end(&mut ready).unwrap();
    assert_eq!(ready, [0]);
    let pid = std::fs::read_to_string(work.path().join("pid")).unwrap();
    let about = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = about.rsplit(' ').nth(46).unwrap();
    assert_eq!(session, pid, "a session of its own: {about}");

    let socket = work.path().join("lazy-pages.socket");
    let mut restore = criu::Restore { connection: Some(UnixStream::connect(socket).unwrap()) };
    let mut task = restore.task(&place, 1, all_events());
    restore.finish();
    task.asked("check");
    // Nobody waits for it, perhaps.
    let is_running = |about: String| !about.contains(") Z ");
    while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(is_running) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let log = std::fs::read_to_string(work.path().join("log")).unwrap();
    assert!(log.contains("a restore has ended"), "{log}");
    task.asked("check");
    task.end();
}

#[test]
fn what_the_command_line_cannot_mean_is_one_line() {
    let place = Checkpoint::new(&[(1, &[0; PAGE], &[])]);
    std::fs::write(place.folder.path().join("there"), "").unwrap();
    let other = tempfile::tempdir().unwrap();
    let other = other.path().to_str().unwrap();
    for (more, why) in [
        (&["--tls"][..], "'--tls'"),
        (&["--auto-dedup"], "'--auto-dedup'"),
        (&["-vx"], "'x'"),
        (&["-W", "/no/such"], "/no/such"),
        (&["-o", "/no/such/log"], "/no/such/log"),
        (&["--pidfile", "there"], "there: File exists"),
        (&["--status-fd", "77"], "--status-fd 77: Bad file descriptor"),
        (&["--status-fd", "2"], "--status-fd 2: it is one of the standard ones"),
        (&["-D", other], "inventory.img"),
        (&["-d", "--pidfile", "/no/such/pid"], "/no/such/pid"),
        (&["-d", "-W", "/no/such"], "/no/such"),
    ] {
        let mut command = pervma(["lazy-pages"]);
        if !more.contains(&"-D") {
            command.arg("-D").arg(place.folder.path());
        }
        command.args(more);
        let run = run(command);
        let lines = if more.contains(&"-W") && more.contains(&"-d") { 2 } else { 1 };
        assert_eq!((run.exit, run.stderr.lines().count()), (Some(2), lines), "{more:?}: {run:?}");
        assert!(run.stderr.contains(why), "{more:?}: {run:?}");
        assert!(!daemon::is_there(&place.socket()), "{more:?}");
    }
}

/// Has a task restored with pages from a page server.
fn restore_remote(answers: Answers) -> (TestServer, Checkpoint, Daemon, Vec<Client>) {
    let (bytes, mut entries) = bytes_and_entries(11);
    // A page that does not come late.
    entries[0].0.start += 1;
    entries.insert(0, (1..2, PRESENT));
    let server = TestServer::start(answers, START, bytes.clone());
    let place = Checkpoint::new(&[(1, &bytes, &entries)]);
    std::fs::remove_file(place.folder.path().join("pages-1.img")).unwrap();
    let port = server.address.port().to_string();
    let daemon = place.daemon(&["--page-server", "--address", "127.0.0.1", "--port", &port]);
    let (mut restore, tasks) = place.restore_all(all_events());
    restore.finish();
    (server, place, daemon, tasks)
}

#[test]
fn pages_come_from_a_page_server_with_many_requests_under_way() {
    for answers in [Answers::All(Duration::from_millis(2)), Answers::OnePage] {
        let (server, _place, daemon, mut tasks) = restore_remote(answers);
        // What was restored at once is not here.
        tasks[0].asked(&format!("check 2 {PAGES}"));
        let ended = daemon.ended();
        assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
        let (requests, was_closed) = server.ended();
        assert!(was_closed);
        // All once: neighbours of what was touched may have been asked for twice.
        let pages = PAGES * 3 / 4;
        let (least, most) = match answers {
            Answers::OnePage => (pages * 9 / 10, 3 * pages),
            _ => (pages / 64, pages / 4),
        };
        assert!((least..most).contains(&requests.len()), "{requests:?}");
        tasks[0].asked(&format!("check 2 {PAGES}"));
    }
}

#[test]
fn a_page_server_that_does_not_answer_as_it_should_fails_the_restore_with_a_line() {
    for (answers, why) in [
        (Answers::EndsWithin(1), "it has closed the connection"),
        (Answers::EndsWithin(7), "it has closed the connection"),
        (Answers::OtherPages, "it answers with "),
        (Answers::OtherTask, "of task 2"),
        (Answers::NoPages, "it answers with 0 pages"),
        (Answers::MorePages, "it answers with "),
        (Answers::OtherCommand, "command 0x7"),
        (Answers::NoneAfter(5), "it does not answer within 10s"),
    ] {
        let (server, _place, mut daemon, mut tasks) = restore_remote(answers);
        let line = daemon.wait_for("the page server cannot be used any more");
        assert!(line.contains(why), "{line}");
        let ended = daemon.ended();
        assert_eq!(ended.exit, Some(1), "{ended:?}");
        assert_eq!(ended.with("page server").len(), 1, "{ended:?}");
        // What has come is right, and the rest is no zeros.
        assert_eq!(tasks[0].ask("touch 1900"), "SIGBUS");
        drop(tasks);
        server.ended();
    }
    let place = Checkpoint::new(&[(1, &[0; PAGE], &[])]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let run = run(place.command(&["--page-server", "--address", "127.0.0.1", "--port", &port]));
    assert_eq!((run.exit, run.stderr.lines().count()), (Some(2), 1), "{run:?}");
    assert!(run.stderr.contains("Connection refused"), "{run:?}");
}

/// The offsets of a record, in pages.
fn recorded_pages(file: &Path) -> Vec<usize> {
    let text = std::fs::read_to_string(file).unwrap();
    let offset = |line: &str| line.split(',').next().unwrap().parse::<usize>().unwrap();
    text.lines().skip(1).map(|line| offset(line) / PAGE).collect()
}

/// Has two tasks touch these pages of theirs before they are filled, and records that.
fn record(place: &Checkpoint, file: &Path, pages: [&[usize]; 2]) {
    let mut daemon = place.daemon(&["--granule", "4K", "--record", file.to_str().unwrap()]);
    let (mut restore, mut tasks) = place.restore_all(all_events());
    for (task, pages) in tasks.iter_mut().zip(pages) {
        for page in pages {
            task.asked(&format!("check {page} {}", page + 1));
        }
    }
    restore.finish();
    daemon.wait_for("a restore has ended");
    let ended = daemon.ended();
    assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
    tasks.into_iter().for_each(Client::end);
}

#[test]
fn what_tasks_asked_for_is_recorded_by_its_place_in_the_images() {
    let (bytes, entries) = bytes_and_entries(12);
    let place = Checkpoint::new(&[(1, &bytes, &entries), (2, &bytes, &entries)]);
    let file = place.folder.path().join("record");
    // The images have no page 64, nor the second quarter.
    record(&place, &file, [&[9, 8, 64, 700, 9, 1100], &[5]]);
    let second = place.folder.path().join("record.2");
    let before = |(range, _): &Entry, page: usize| page.clamp(range.start, range.end) - range.start;
    let at = |page: usize| entries.iter().map(|entry| before(entry, page)).sum::<usize>();
    let pages = recorded_pages(&file);
    assert_eq!(pages, [9, 8, 1100].map(at));
    // The pages of the second task are behind those of the first one.
    let [other] = recorded_pages(&second).try_into().unwrap();
    assert!(other > pages[2] && other % 512 == at(5), "{other}");
    let said = run(pervma(["working-set".as_ref(), file.as_os_str(), second.as_os_str()]));
    assert_eq!(said.exit, Some(0), "{said:?}");
    assert!(said.stdout.contains("3 granules of 4 KiB, 12 KiB; "), "{said:?}");

    let files = [&file, &second].map(|file| file.to_str().unwrap());
    let daemon = place.daemon(&["--replay", files[0], "--replay", files[1]]);
    let (mut restore, mut tasks) = place.restore_all(all_events());
    restore.finish();
    assert_eq!(daemon.ended().exit, Some(0));
    tasks.iter_mut().for_each(|task| task.asked("check"));
    tasks.into_iter().for_each(Client::end);
}

#[test]
fn a_record_that_is_not_of_these_images_is_one_line_and_nothing_is_served() {
    let (bytes, entries) = bytes_and_entries(13);
    let place = Checkpoint::new(&[(1, &bytes, &entries), (2, &bytes, &entries)]);
    let file = place.folder.path().join("record");
    record(&place, &file, [&[1, 2], &[]]);
    // One that differs in one page of those that are looked at, and one that has other pages.
    let mut changed = bytes.clone();
    changed[PAGE + 5] ^= 1;
    let changed = Checkpoint::new(&[(1, &changed, &entries), (2, &bytes, &entries)]);
    let shorter = Checkpoint::new(&[(1, &bytes, &entries[1..]), (2, &bytes, &entries)]);
    let write = |name: &str, text: &str| {
        let file = place.folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let text = std::fs::read_to_string(&file).unwrap();
    let cut = write("cut", &text[..text.trim_end().rfind('\n').unwrap() + 1]);
    let blocks = write("blocks", r#"{"indices":[1],"block_size":4096}"#);
    for (place, file, says) in [
        (&changed, &file, "it was recorded with another memory file or images"),
        (&shorter, &file, "it was recorded with another memory file or images"),
        (&place, &cut, "it has 1 of 2 granules"),
        (&place, &blocks, "it does not say of which memory file or images it is"),
        (&place, &place.folder.path().join("none"), "No such file"),
    ] {
        let run = run(place.command(&["--replay", file.to_str().unwrap()]));
        assert_eq!((run.exit, run.stderr.lines().count()), (Some(2), 1), "{run:?}");
        assert!(run.stderr.contains(says), "{says}: {run:?}");
        assert!(!daemon::is_there(&place.socket()), "{says}");
    }
}

/// The order in which a page server is asked says what goes first.
#[test]
fn what_is_replayed_goes_before_what_was_not_touched() {
    let (bytes, entries) = bytes_and_entries(14);
    let mut pages: Vec<usize> = (0..24).map(|turn| PAGES / 2 + 1 + (turn * 7 % 24) * 40).collect();
    pages.retain(|page| !page.is_multiple_of(64));
    let place = Checkpoint::new(&[(1, &bytes, &entries), (2, &[0; PAGE], &[])]);
    let file = place.folder.path().join("record");
    let restore_with = |more: &[&str], pages: &[usize]| {
        let server = TestServer::start(Answers::All(Duration::ZERO), START, bytes.clone());
        let port = server.address.port().to_string();
        let mut arguments = vec!["--page-server", "--address", "127.0.0.1", "--port", &port];
        arguments.extend(more);
        let daemon = place.daemon(&arguments);
        let (mut restore, mut tasks) = place.restore_all(all_events());
        for page in pages {
            tasks[0].asked(&format!("check {page} {}", page + 1));
        }
        restore.finish();
        let ended = daemon.ended();
        assert_eq!((ended.exit, ended.with("ERROR").len()), (Some(0), 0), "{ended:?}");
        tasks.iter_mut().for_each(|task| task.asked("check"));
        tasks.into_iter().for_each(Client::end);
        server.ended().0
    };
    let file = file.to_str().unwrap();
    restore_with(&["--granule", "4K", "--record", file], &pages);
    let mut asked = restore_with(&["--replay", file], &[]);
    assert!(asked.len() > pages.len(), "{asked:?}");
    // By several threads.
    asked.truncate(pages.len());
    asked.sort_unstable();
    pages.sort_unstable();
    assert_eq!(asked, pages);
}
