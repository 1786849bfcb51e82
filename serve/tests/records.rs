//! What clients ask for is recorded, and filled ahead of others.
#![expect(clippy::disallowed_types, reason = "flags of tests")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{
    Kind, Memory, PAGE, REMAP, REMOVE, UNMAP, alone, memory_file, random_bytes, userfaultfd,
};
use pervma_pager::{ReadFailed, Source};
use pervma_serve::working_set::{Touch, WorkingSet};
use pervma_serve::{ClientId, Notice, Options, Pager};

const PAGES: usize = 512;

fn start(options: Options) -> (Pager, Receiver<Notice>) {
    let (send, receive) = channel();
    // The receiver may have gone.
    (options.start(move |notice| drop(send.send(notice))).unwrap(), receive)
}

/// Maps memory whose halves are swapped in the source.
fn client(pager: &Pager, features: u64, source: Arc<dyn Source>) -> (ClientId, Memory) {
    let fd = userfaultfd(features).unwrap();
    let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap().register(&fd);
    let half = PAGES / 2;
    let extents =
        [memory.pages(0..half).extent((half * PAGE) as u64), memory.pages(half..PAGES).extent(0)];
    (pager.add(fd, &extents, source).unwrap(), memory)
}

fn offset_of(page: usize) -> u64 {
    ((page + PAGES / 2) % PAGES * PAGE) as u64
}

/// The record of the next client that ends.
fn recorded(notices: &Receiver<Notice>) -> WorkingSet {
    loop {
        match notices.recv_timeout(Duration::from_secs(20)).unwrap() {
            Notice::Recorded { set, .. } => return set,
            _ => continue,
        }
    }
}

fn offsets(set: &WorkingSet) -> Vec<u64> {
    set.touches.iter().map(|touch| touch.offset).collect()
}

/// A record of pages of a client.
fn set(granule: usize, pages: impl IntoIterator<Item = usize>) -> WorkingSet {
    let touch = |page| Touch { offset: offset_of(page), after: Duration::ZERO };
    let touches = pages.into_iter().map(touch).collect();
    WorkingSet { granule: granule as u64, source: None, touches }
}

/// Waits until so many pages were filled.
fn wait_for_pages(pager: &Pager, client: ClientId, count: usize) {
    while pager.stats(client).unwrap().pages < count as u64 {
        std::thread::yield_now();
    }
}

#[test]
fn what_is_asked_for_is_recorded_once_in_order_and_by_its_place_in_the_source() {
    let _alone = alone();
    let bytes = random_bytes(PAGES * PAGE, 1);
    let (pager, notices) = start(Options::new().granule(PAGE).record());
    let (id, memory) = client(&pager, REMOVE, memory_file(&bytes));
    for page in [7, 300, 6, 7] {
        memory.byte(page * PAGE + 9);
    }
    // Zeros are not of the source.
    memory.page(7).discard();
    memory.page(100).discard();
    memory.byte(7 * PAGE);
    memory.byte(100 * PAGE);
    assert!(pager.complete(id));
    let set = recorded(&notices);
    assert_eq!(offsets(&set), [7, 300, 6].map(offset_of));
    assert_eq!(set.granule, PAGE as u64);
    assert!(set.touches.is_sorted_by_key(|touch| touch.after));
    memory.unmap();
}

#[test]
fn of_a_granule_one_touch_is_recorded() {
    let _alone = alone();
    let (pager, notices) = start(Options::new().granule(16 * PAGE).record());
    let (id, memory) = client(&pager, REMOVE, memory_file(&random_bytes(PAGES * PAGE, 1)));
    memory.byte(19 * PAGE);
    memory.byte(20 * PAGE);
    assert!(pager.fail(id));
    let set = recorded(&notices);
    assert_eq!((set.granule, offsets(&set)), (16 * PAGE as u64, vec![offset_of(16)]));
    memory.unmap();
}

#[test]
fn nothing_is_recorded_unasked() {
    let _alone = alone();
    let (pager, notices) = start(Options::new().granule(PAGE));
    let (id, memory) = client(&pager, REMOVE, memory_file(&random_bytes(PAGES * PAGE, 1)));
    memory.byte(0);
    assert!(!pager.replay(id, &set(PAGE, [1])), "there are no threads for it");
    assert!(pager.complete(id));
    drop(pager);
    assert!(!notices.iter().any(|notice| matches!(notice, Notice::Recorded { .. })));
    memory.unmap();
}

#[test]
fn what_is_replayed_is_filled_and_nothing_else() {
    let _alone = alone();
    let bytes = random_bytes(PAGES * PAGE, 1);
    for granule in [PAGE, 16 * PAGE, 2 << 20] {
        for replayers in [1, 2, 4] {
            let options = Options::new().granule(granule).replayers(replayers).record();
            let (pager, notices) = start(options);
            let (id, memory) = client(&pager, REMOVE, memory_file(&bytes));
            // Some of both halves, and what is beyond the source.
            let mut wanted = set(PAGE, [3, 4, 5, 255, 256, 300, 511, 0]);
            wanted.touches.push(Touch { offset: 1 << 40, after: Duration::ZERO });
            assert!(pager.replay(id, &wanted));
            wait_for_pages(&pager, id, 8);
            for page in [0, 3, 255, 256, 511] {
                assert_eq!(memory.byte(page * PAGE + 5), at(&bytes, page * PAGE + 5));
            }
            let stats = pager.stats(id).unwrap();
            assert_eq!((stats.faults, stats.pages), (0, 8), "{granule} {replayers}");
            assert!(pager.complete(id));
            assert!(!pager.replay(id, &wanted), "it has gone");
            assert_eq!(offsets(&recorded(&notices)), [0; 0], "nothing was asked for");
            memory.unmap();
        }
    }
}

/// A byte of a client.
fn at(bytes: &[u8], at: usize) -> u8 {
    bytes[offset_of(at / PAGE) as usize + at % PAGE]
}

/// Beside accesses, discards and moves of all kinds, every byte is right; faults are never lost.
#[test]
fn a_replay_beside_changes_is_right() {
    let _alone = alone();
    let bytes = random_bytes(PAGES * PAGE, 2);
    for turn in 0..20 {
        let (pager, _notices) = start(Options::new().granule(PAGE).replayers(2));
        let (id, memory) = client(&pager, REMAP | REMOVE | UNMAP, memory_file(&bytes));
        assert!(pager.replay(id, &set(PAGE, (0..PAGES).map(|page| (page * 7 + turn) % PAGES))));
        memory.pages(32..64).discard();
        let moved = memory.pages(400..416).relocate(16 * PAGE, 0);
        for page in 0..400 {
            let expected = if (32..64).contains(&page) { 0 } else { at(&bytes, page * PAGE + 1) };
            assert_eq!(memory.byte(page * PAGE + 1), expected, "{page}");
        }
        for page in 0..16 {
            assert_eq!(moved.byte(page * PAGE + 1), at(&bytes, (400 + page) * PAGE + 1));
        }
        moved.unmap();
        memory.pages(0..400).unmap();
        memory.pages(416..PAGES).unmap();
    }
}

/// Has nothing in memory, and fails once for a page, or always.
struct Cold {
    bytes: Vec<u8>,
    reads: AtomicUsize,
    failing: Mutex<Option<u64>>,
    always_fails: bool,
}

impl Source for Cold {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        self.reads.fetch_add(1, Relaxed);
        if self.always_fails {
            return Err(ReadFailed);
        }
        let mut failing = self.failing.lock().unwrap();
        if failing.is_some_and(|at| (offset..offset + buf.len() as u64).contains(&at)) {
            *failing = None;
            return Err(ReadFailed);
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
}

#[test]
fn what_is_replayed_is_read_where_it_is_not_in_memory() {
    let _alone = alone();
    let bytes = random_bytes(PAGES * PAGE, 3);
    let (pager, _notices) = start(Options::new().granule(16 * PAGE).replayers(2));
    let failing = Mutex::new(Some(offset_of(40)));
    let (reads, always_fails) = (AtomicUsize::new(0), false);
    let source = Arc::new(Cold { bytes: bytes.clone(), reads, failing, always_fails });
    let (id, memory) = client(&pager, REMOVE, source.clone());
    assert!(pager.replay(id, &set(16 * PAGE, (0..128).step_by(16))));
    // What cannot be read is read again.
    wait_for_pages(&pager, id, 128);
    assert_eq!(source.reads.load(Relaxed), 9);
    for page in 0..128 {
        assert_eq!(memory.byte(page * PAGE + 3), at(&bytes, page * PAGE + 3));
    }
    assert_eq!((pager.stats(id).unwrap().faults, source.reads.load(Relaxed)), (0, 9));
    memory.unmap();
}

#[test]
fn what_is_replayed_goes_first_and_what_cannot_be_read_is_not_tried_again_and_again() {
    let _alone = alone();
    let (pager, _notices) = start(Options::new().granule(PAGE).replayers(2));
    let (reads, failing) = (AtomicUsize::new(0), Mutex::default());
    let source =
        Arc::new(Cold { bytes: vec![1; PAGES * PAGE], reads, failing, always_fails: true });
    let (id, memory) = client(&pager, REMOVE, source.clone());
    assert!(pager.replay(id, &set(PAGE, [])));
    assert!(pager.replay(id, &set(PAGE, (0..PAGES).step_by(2))));
    assert!(!pager.complete(id));
    // Two threads have tried four times each, and then who completes it.
    assert!(source.reads.load(Relaxed) <= 3 * 4, "{:?}", source.reads);
    assert!(pager.fail(id));
    memory.unmap();
}
