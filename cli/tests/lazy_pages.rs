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
#[path = "common/memory.rs"]
mod memory;

use client::{Client, all_events};
use criu::{Checkpoint, LAZY, PRESENT};
use memory::{PAGE, random_bytes};

/// Where a task is run, which is a child of a test.
#[test]
fn client_process() {
    client::play();
}

const PAGES: usize = 2048;

/// Memory of which the images have no page that is a multiple of 64, nor the second quarter.
fn bytes_and_entries(seed: u64) -> (Vec<u8>, Vec<criu::Entry>) {
    let mut bytes = random_bytes(PAGES * PAGE, seed);
    let is_there =
        |page: &usize| !page.is_multiple_of(64) && !(PAGES / 4..PAGES / 2).contains(page);
    let mut entries: Vec<criu::Entry> = Vec::new();
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
