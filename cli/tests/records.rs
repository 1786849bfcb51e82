//! `serve --record`, `serve --replay` and `working-set`, as they are used together.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/memory.rs"]
mod memory;

use std::fs;
use std::path::Path;

use client::{Has, all_events};
use common::{pervma, run};
use daemon::{Daemon, Place, is_there};
use memory::{FORK, PAGE, REMOVE};
use serde_json::Value;

/// Where a client is run, which is a child of a test.
#[test]
fn client_process() {
    client::play();
}

const PAGES: usize = 512;

/// Has clients touch pages, the next one when the one before has gone.
fn record(place: &Place, file: &Path, clients: &[&[usize]]) {
    let arguments = ["--granule", "4K", "--ahead", "0", "--record"].map(Path::new);
    let mut daemon = place.serve(arguments.into_iter().chain([file]));
    for pages in clients {
        let mut client = place.client(Has::pages(PAGES, REMOVE));
        for page in *pages {
            client.ask(&format!("touch {page}"));
        }
        client.end();
        daemon.wait_for("a client has gone");
    }
    assert_eq!(daemon.stop().exit, Some(0));
}

/// The last JSON line of a daemon that has served a client which touches nothing but checks what it
/// is told to.
fn replay(place: &Place, files: &[&Path], check: &str) -> Value {
    let arguments = ["--granule", "4K", "--ahead", "0", "--json"].map(Path::new);
    let replays = files.iter().flat_map(|file| [Path::new("--replay"), file]);
    let mut daemon = place.serve(arguments.into_iter().chain(replays));
    let mut client = place.client(Has::pages(PAGES, REMOVE));
    // It takes no time, but another thread.
    std::thread::sleep(std::time::Duration::from_millis(500));
    client.asked(check);
    client.end();
    daemon.wait_for("a client has gone");
    let ended = daemon.stop();
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap()
}

#[test]
fn what_one_vm_asked_for_is_there_when_the_next_one_asks() {
    let place = Place::new(PAGES);
    let file = place.path("first");
    record(&place, &file, &[&[7, 9, 8, 7, 100, 101, 102]]);
    let text = fs::read_to_string(&file).unwrap();
    let offsets: Vec<usize> =
        text.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap()).collect();
    assert_eq!(offsets, [7, 9, 8, 100, 101, 102].map(|page| page * PAGE));
    let ended = replay(&place, &[&file], "check 7 10");
    assert_eq!((&ended["faults"], &ended["pages"]), (&0.into(), &6.into()), "{ended}");
}

#[test]
fn each_vm_has_a_record_and_children_have_theirs() {
    if all_events() & FORK == 0 {
        return println!("NOT RUN: forks are told of to the privileged only");
    }
    let place = Place::new(PAGES);
    let file = place.path("record");
    let arguments = ["--granule", "4K", "--ahead", "0", "--record"].map(Path::new);
    let mut daemon = place.serve(arguments.into_iter().chain([&*file]));
    let mut client = place.client(Has::pages(PAGES, REMOVE | FORK));
    client.asked("check 0 3");
    client.asked("fork");
    client.end();
    daemon.wait_for("a client has gone");
    daemon.wait_for("a client has gone");
    assert_eq!(daemon.stop().exit, Some(0));
    let child = place.path("record.2");
    assert!(is_there(&file) && is_there(&child));

    let files = [&file, &child].map(|file| file.as_os_str());
    let said = run(pervma(["working-set".as_ref(), "--json".as_ref(), files[0], files[1]]));
    assert_eq!(said.exit, Some(0), "{said:?}");
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(said["records"][0]["granules"], 3);
    assert_eq!(said["records"][0]["source_bytes"], PAGES * PAGE);
    assert_eq!(said["overlaps"].as_array().unwrap().len(), 1);
    let svg = place.path("picture.svg");
    let arguments = ["working-set".as_ref(), "--svg".as_ref(), svg.as_os_str(), files[0]];
    let said = run(pervma(arguments));
    assert_eq!(said.exit, Some(0), "{said:?}");
    assert!(said.stdout.contains("3 granules of 4 KiB, 12 KiB; "), "{said:?}");
    assert!(fs::read_to_string(&svg).unwrap().starts_with("<svg"));
}

#[test]
fn records_of_other_programs_are_replayed() {
    let place = Place::new(PAGES);
    let [e2b, reap] = ["e2b.json", "reap.csv"].map(|name| place.path(name));
    fs::write(&e2b, r#"{"indices":[1,3],"access_types":["r","w"],"block_size":8192}"#).unwrap();
    fs::write(&reap, "9000,0,1\n0,1,2\n").unwrap();
    let ended = replay(&place, &[&e2b, &reap], "check 0 0");
    assert_eq!((&ended["faults"], &ended["pages"]), (&0.into(), &6.into()), "{ended}");
}

#[test]
fn a_record_that_cannot_be_used_is_one_line_and_nothing_is_served() {
    let place = Place::new(PAGES);
    let other = Place::new(PAGES / 2);
    let file = place.path("record");
    record(&place, &file, &[&[1, 2]]);
    let cut = place.path("cut");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&cut, &text[..text.trim_end().rfind('\n').unwrap() + 1]).unwrap();
    let foreign = place.path("foreign");
    fs::write(&foreign, "hello").unwrap();
    let blocks = place.path("blocks");
    fs::write(&blocks, r#"{"indices":[1],"block_size":4096}"#).unwrap();
    let vm = format!("{}={}", place.path("second").display(), place.file.display());
    let cases = [
        (&other, &file, None, "it was recorded with another memory file or images: 2097152 bytes"),
        (&place, &cut, None, "it has 1 of 2 granules"),
        (&place, &foreign, None, "neither JSON nor CSV"),
        (&place, &place.path("none"), None, "it cannot be read: No such file"),
        (&place, &blocks, Some(&vm), "it does not say of which memory file or images it is"),
    ];
    for (place, file, vm, says) in cases {
        let mut command = place.command(["--replay".as_ref(), file.as_os_str()]);
        if let Some(vm) = vm {
            command.args(["--vm", vm]);
        }
        let ended = run(command);
        assert_eq!(ended.exit, Some(2), "{ended:?}");
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.contains(says), "{says}: {}", ended.stderr);
        assert!(!is_there(&place.socket), "{says}");
    }
    for file in [&cut, &foreign] {
        let said = run(pervma(["working-set".as_ref(), file.as_os_str()]));
        assert_eq!((said.exit, said.stderr.lines().count()), (Some(2), 1), "{said:?}");
    }
}

#[test]
fn a_record_that_cannot_be_written_stops_nothing() {
    let place = Place::new(PAGES);
    let folder = place.path("folder");
    fs::create_dir(&folder).unwrap();
    // It is a folder itself.
    let mut daemon: Daemon = place.serve(["--record".as_ref(), folder.as_os_str()]);
    let mut client = place.client(Has::pages(PAGES, REMOVE));
    client.asked("check");
    client.end();
    daemon.wait_for("it is not recorded");
    let mut client = place.client(Has::pages(PAGES, REMOVE));
    client.asked("check");
    client.end();
    daemon.wait_for("what it asked for is recorded");
    assert_eq!(daemon.stop().exit, Some(0));
    assert!(is_there(&place.path("folder.2")));
    // A folder that is not there is seen at once.
    let ended = run(place.command(["--record".as_ref(), place.path("no/such").as_os_str()]));
    assert_eq!(ended.exit, Some(2), "{ended:?}");
}
