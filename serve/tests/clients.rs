//! Clients that are threads of this process: every byte is what belongs there.
#![expect(clippy::disallowed_types, reason = "flags of tests")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{
    ALL_EVENTS, FORK, Kind, Memory, PAGE, REMAP, REMOVE, UNMAP, alone, free_huge_pages,
    memory_file, random_bytes, userfaultfd,
};
use pervma_pager::{ReadFailed, Source};
use pervma_serve::{Failure, Notice, Options, Pager};

fn start(options: Options) -> (Pager, Receiver<Notice>) {
    let (send, receive) = channel();
    // The receiver may have gone.
    (options.start(move |notice| drop(send.send(notice))).unwrap(), receive)
}

/// Maps memory, and has it served.
fn client(pager: &Pager, bytes: &[u8], features: u64, kind: Kind) -> Option<Memory> {
    let is_huge = matches!(kind, Kind::Huge | Kind::HugeUnreserved);
    let page_size = if is_huge { 2 << 20 } else { PAGE as u32 };
    let fd = userfaultfd(features)?;
    let memory = Memory::map(bytes.len(), kind)?.register(&fd);
    pager.add(fd, &[memory.extent_of(0, page_size)], memory_file(bytes)).unwrap();
    Some(memory)
}

#[test]
fn every_page_comes_at_every_granule_and_with_any_number_of_workers() {
    let _alone = alone();
    const LEN: usize = 4 << 20;
    for granule in [PAGE, 64 << 10, 2 << 20] {
        for workers in [1, 2, 4] {
            for ahead in [0, 4] {
                let options = Options::new().granule(granule).workers(workers).ahead(ahead);
                let (pager, _notices) = start(options);
                let bytes = random_bytes(LEN, 1);
                let memory = client(&pager, &bytes, REMOVE, Kind::Anonymous).unwrap();
                std::thread::scope(|scope| {
                    for thread in 0..4 {
                        let bytes = &bytes;
                        scope.spawn(move || {
                            for turn in 0..LEN / PAGE {
                                let page = if thread % 2 == 0 { turn } else { turn * 331 + thread };
                                let at = page % (LEN / PAGE) * PAGE + turn % PAGE;
                                assert_eq!(memory.byte(at), bytes[at]);
                            }
                        });
                    }
                });
                assert!(memory.copy() == bytes, "{granule} {workers}");
                // It is counted a little later. Each page comes once.
                let pages = || pager.stats(pager.clients()[0]).unwrap().pages;
                while pages() < (LEN / PAGE) as u64 {
                    std::thread::yield_now();
                }
                assert_eq!(pages(), (LEN / PAGE) as u64);
                memory.unmap();
            }
        }
    }
}

#[test]
fn a_client_that_faults_without_end_does_not_keep_the_worker() {
    const FEW: usize = 64;
    const THREADS: usize = 16;
    let _alone = alone();
    let (pager, _notices) = start(Options::new().granule(PAGE).workers(1));
    let bytes = random_bytes(FEW * PAGE, 3);
    let [busy, other] = [(); 2].map(|()| client(&pager, &bytes, REMOVE, Kind::Anonymous).unwrap());
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                while !is_over.load(Relaxed) {
                    let page = busy.page(thread);
                    page.byte(0);
                    page.discard();
                }
            });
        }
        for round in 0..20 {
            let page = other.page(round);
            assert_eq!(page.byte(0), bytes[round * PAGE]);
        }
        is_over.store(true, Relaxed);
    });
}

#[test]
fn a_worker_that_looks_for_the_next_fault_looks_for_that_of_any_client() {
    let _alone = alone();
    let hour = Duration::from_secs(3600);
    let (pager, _notices) = start(Options::new().granule(PAGE).workers(1).spin(hour));
    let bytes = random_bytes(4 * PAGE, 3);
    let clients = [(); 3].map(|()| client(&pager, &bytes, REMOVE, Kind::Anonymous).unwrap());
    for page in 0..4 {
        assert!(clients.iter().all(|memory| memory.byte(page * PAGE) == bytes[page * PAGE]));
    }
}

#[test]
fn huge_pages_come_as_such() {
    let _alone = alone();
    const HUGE: usize = 2 << 20;
    let (pager, _notices) = start(Options::new());
    let bytes = random_bytes(2 * HUGE, 2);
    let Some(memory) = client(&pager, &bytes, REMOVE | 1 << 4, Kind::Huge) else {
        return println!("NOT RUN: no huge pages");
    };
    assert!(memory.copy() == bytes);
    memory.pages(0..HUGE / PAGE).discard();
    assert_eq!(memory.byte(77), 0);
    assert!(memory.copy()[HUGE..] == bytes[HUGE..]);
    memory.unmap();
}

#[test]
fn of_shared_memory_what_is_there_stays_and_what_was_never_filled_is_zeros() {
    let _alone = alone();
    const MISSING_SHMEM: u64 = 1 << 5;
    let (pager, _notices) = start(Options::new().granule(PAGE));
    let bytes = random_bytes(8 * PAGE, 12);
    let memory = client(&pager, &bytes, REMOVE | MISSING_SHMEM, Kind::Shared).unwrap();
    assert!(memory.pages(0..2).copy() == bytes[..2 * PAGE]);
    memory.set(PAGE, 99);
    memory.pages(0..4).discard();
    assert_eq!([0, 1, 2, 3].map(|page| memory.byte(page * PAGE)), [bytes[0], 99, 0, 0]);
    // Here the pages go from the file.
    memory.pages(0..2).advise(libc::MADV_REMOVE);
    assert_eq!([0, 1].map(|page| memory.byte(page * PAGE)), [0, 0]);
    assert!(memory.pages(4..8).copy() == bytes[4 * PAGE..]);
    memory.unmap();
}

#[test]
fn a_child_shares_memory_with_its_parent() {
    let _alone = alone();
    const MISSING_SHMEM: u64 = 1 << 5;
    let (pager, _notices) = start(Options::new().granule(4 * PAGE).ahead(4));
    let bytes = random_bytes(64 * PAGE, 14);
    let features = FORK | REMOVE | MISSING_SHMEM;
    let Some(memory) = client(&pager, &bytes, features, Kind::Shared) else { return };
    assert_eq!(memory.byte(3 * PAGE), bytes[3 * PAGE]);
    memory.pages(2..5).advise(libc::MADV_REMOVE);
    let wrong = common::in_child(|| {
        memory.set(6 * PAGE, 99);
        let expected = |page: usize| match page {
            2..=4 => 0,
            6 => 99,
            _ => bytes[page * PAGE],
        };
        let wrong = (0..32).find(|&page| memory.byte(page * PAGE) != expected(page));
        wrong.map_or(100, |page| page as i32)
    });
    assert_eq!(wrong, 100, "otherwise the page that was wrong");
    assert_eq!([2, 6].map(|page| memory.byte(page * PAGE)), [0, 99]);
    assert!(memory.pages(7..64).copy() == bytes[7 * PAGE..]);
    memory.unmap();
}

#[test]
fn what_may_be_freed_is_what_it_was_or_zeros() {
    let _alone = alone();
    let (pager, _notices) = start(Options::new().granule(PAGE));
    let bytes = random_bytes(8 * PAGE, 13);
    let memory = client(&pager, &bytes, REMOVE, Kind::Anonymous).unwrap();
    assert!(memory.pages(0..4).copy() == bytes[..4 * PAGE]);
    memory.pages(0..6).advise(libc::MADV_FREE);
    for page in 0..4 {
        let found = memory.page(page).copy();
        let is_old = found == bytes[page * PAGE..][..PAGE];
        assert!(is_old || found.iter().all(|&byte| byte == 0), "page {page}");
    }
    assert!(memory.pages(4..6).copy().iter().all(|&byte| byte == 0));
    assert!(memory.pages(6..8).copy() == bytes[6 * PAGE..]);
    memory.unmap();
}

/// Each thread discards pages of its own, which others touch all the time, so that fills are under
/// way whenever a page goes.
#[test]
fn what_was_removed_reads_as_zeros_whatever_was_under_way() {
    let _alone = alone();
    const PAGES: usize = 64;
    for (granule, workers) in [(PAGE, 2), (64 << 10, 3)] {
        let (pager, _notices) = start(Options::new().granule(granule).workers(workers));
        let bytes = random_bytes(PAGES * PAGE, 3);
        for round in 0..150 {
            let memory = client(&pager, &bytes, REMOVE, Kind::Anonymous).unwrap();
            let is_over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for thread in 0..2 {
                    let is_over = &is_over;
                    scope.spawn(move || {
                        let mut page = thread;
                        while !is_over.load(Relaxed) {
                            page = (page * 5 + 7 + round) % PAGES;
                            let byte = memory.byte(page * PAGE);
                            assert!(byte == 0 || byte == bytes_at(page), "a wrong byte");
                        }
                    });
                }
                let wrong = (0..PAGES).find(|turn| {
                    let page = (turn * 29 + round) % PAGES;
                    memory.page(page).discard();
                    memory.byte(page * PAGE) != 0
                });
                is_over.store(true, Relaxed);
                assert_eq!(wrong, None, "in round {round} of {workers}");
            });
            memory.unmap();
        }
        assert!(bytes.len() > 1);
    }

    fn bytes_at(page: usize) -> u8 {
        static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        BYTES.get_or_init(|| random_bytes(PAGES * PAGE, 3))[page * PAGE]
    }
}

/// The kernel says `EEXIST` then, as for a page that is there.
#[test]
fn a_huge_page_that_there_is_none_of_is_poisoned() {
    let _alone = alone();
    const HUGE: usize = 2 << 20;
    const MORE: usize = 2;
    let (pager, notices) = start(Options::new());
    let free = free_huge_pages();
    let bytes = vec![7; (free + MORE) * HUGE];
    let features = FORK | REMOVE | 1 << 4;
    let Some(memory) = client(&pager, &bytes, features, Kind::HugeUnreserved) else {
        return println!("NOT RUN: no huge pages, or no forks that are told of");
    };
    let id = pager.clients()[0];
    let codes = || {
        (0..free + MORE).map(|page| common::in_child(|| i32::from(memory.byte(page * HUGE) != 7)))
    };
    for (page, code) in codes().enumerate() {
        assert!(code == 0 || page >= free && code == -libc::SIGBUS, "{page}: {code}");
    }
    assert!(!pager.complete(id), "some of it can never be there");
    assert!(pager.fail(id));
    let is_closed =
        |notice: &Notice| matches!(notice, Notice::Closed { client, .. } if *client == id);
    while !is_closed(&notices.recv_timeout(Duration::from_secs(20)).unwrap()) {}
    for (page, code) in codes().enumerate() {
        assert_eq!(code, if page < free { 0 } else { -libc::SIGBUS }, "{page}");
    }
    memory.unmap();
}

#[test]
fn memory_is_right_where_it_has_moved() {
    let _alone = alone();
    const PAGES: usize = 32;
    let (pager, _notices) = start(Options::new().granule(4 * PAGE));
    let bytes = random_bytes(PAGES * PAGE, 4);
    let events = REMOVE | REMAP | UNMAP;
    let memory = client(&pager, &bytes, events, Kind::Anonymous).unwrap();
    let place = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap();
    assert_eq!(memory.byte(9 * PAGE), bytes[9 * PAGE]);
    memory.pages(10..12).discard();
    let moved = memory.pages(8..16).relocate(place.start, 0);
    for page in 0..8 {
        let expected = if (2..4).contains(&page) { 0 } else { bytes[(8 + page) * PAGE + 5] };
        assert_eq!(moved.byte(page * PAGE + 5), expected, "{page}");
    }
    // The old place stays mapped, and is zeros.
    let other = Memory { start: place.start + 16 * PAGE, len: 0 };
    let moved = memory.pages(16..20).relocate(other.start, libc::MREMAP_DONTUNMAP);
    assert!(moved.copy() == bytes[16 * PAGE..20 * PAGE]);
    assert!(memory.pages(16..20).copy().iter().all(|&byte| byte == 0));
    assert!(memory.pages(20..32).copy() == bytes[20 * PAGE..]);
    memory.pages(0..8).unmap();
    // It is told when it is read, and known a little later.
    let expected = (PAGES - (8 + 8) + 12) * PAGE;
    let known = || {
        let extents = pager.extents(pager.clients()[0]).unwrap();
        extents.iter().map(|extent| extent.len as usize).sum::<usize>()
    };
    while known() != expected {
        std::thread::yield_now();
    }
}

#[test]
fn a_forked_child_is_served_with_what_its_parent_had_then() {
    let _alone = alone();
    const PAGES: usize = 64;
    let (pager, notices) = start(Options::new().granule(PAGE));
    let bytes = random_bytes(PAGES * PAGE, 5);
    let Some(memory) = client(&pager, &bytes, ALL_EVENTS, Kind::Anonymous) else { return };
    memory.pages(3..5).discard();
    memory.set(7 * PAGE, 99);
    for round in 0..20 {
        let code = common::in_child(|| {
            for page in (0..PAGES).rev() {
                let expected = match page {
                    3 | 4 => 0,
                    7 => 99,
                    _ => bytes[page * PAGE],
                };
                if memory.byte(page * PAGE) != expected {
                    return page as i32;
                }
            }
            memory.page(20).discard();
            if memory.byte(20 * PAGE) == 0 { 100 } else { 101 }
        });
        assert_eq!(code, 100, "round {round}: otherwise the page that was wrong");
        assert_eq!(memory.byte(20 * PAGE), bytes[20 * PAGE], "the parent's stays");
    }
    let mut gone = 0;
    while gone < 20 {
        match notices.recv_timeout(Duration::from_secs(20)).unwrap() {
            Notice::Gone { stats, .. } => {
                gone += 1;
                assert_eq!(stats.removes, 1);
            }
            Notice::Forked { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pager.clients().len(), 1);
    memory.unmap();
}

/// A page each is slow, the others are not.
struct Slow {
    bytes: Vec<u8>,
    is_slow: Box<dyn Fn(usize) -> Duration + Send + Sync>,
    at_once: AtomicUsize,
    most: AtomicUsize,
}

impl Slow {
    fn new(bytes: &[u8], is_slow: impl Fn(usize) -> Duration + Send + Sync + 'static) -> Arc<Self> {
        let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { bytes: bytes.to_vec(), is_slow: Box::new(is_slow), at_once, most })
    }
}

impl Source for Slow {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let offset = offset as usize;
        let now = self.at_once.fetch_add(1, Relaxed) + 1;
        self.most.fetch_max(now, Relaxed);
        std::thread::sleep((self.is_slow)(offset / PAGE));
        self.at_once.fetch_sub(1, Relaxed);
        buf.copy_from_slice(&self.bytes[offset..][..buf.len()]);
        Ok(())
    }

    fn resident(&self, range: Range<u64>) -> Option<*const [u8]> {
        let (start, end) = (range.start as usize, range.end as usize);
        let is_fast = (start / PAGE..end / PAGE).all(|page| (self.is_slow)(page).is_zero());
        is_fast.then(|| &raw const self.bytes[start..end])
    }
}

#[test]
fn a_slow_source_delays_only_what_waits_for_it() {
    let _alone = alone();
    const PAGES: usize = 256;
    const SLOW: usize = 64;
    let (pager, _notices) = start(Options::new().granule(PAGE).workers(2));
    let bytes = random_bytes(PAGES * PAGE, 6);
    let source =
        Slow::new(&bytes, |page| if page < SLOW { Duration::from_secs(2) } else { Duration::ZERO });
    let fd = userfaultfd(REMOVE).unwrap();
    let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap().register(&fd);
    pager.add(fd, &[memory.extent(0)], source.clone()).unwrap();
    std::thread::scope(|scope| {
        let slow: Vec<_> = (0..SLOW)
            .map(|page| scope.spawn(move || (memory.byte(page * PAGE), Instant::now())))
            .collect();
        while source.at_once.load(Relaxed) < SLOW {
            std::thread::yield_now();
        }
        for page in SLOW..PAGES {
            assert_eq!(memory.byte(page * PAGE), bytes[page * PAGE]);
        }
        let fast_done = Instant::now();
        for (page, slow) in slow.into_iter().enumerate() {
            let (byte, done) = slow.join().unwrap();
            assert_eq!(byte, bytes[page * PAGE]);
            assert!(done > fast_done, "page {page} was slow, and what is fast did not wait for it");
        }
    });
    assert_eq!(source.most.load(Relaxed), SLOW);
    memory.unmap();
}

/// Says of its first pages whether they are in memory when it is allowed to.
struct HeldUp {
    bytes: Vec<u8>,
    pages: usize,
    asked: AtomicUsize,
    answer: Mutex<Receiver<()>>,
}

impl Source for HeldUp {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadFailed> {
        Err(ReadFailed)
    }

    fn resident(&self, range: Range<u64>) -> Option<*const [u8]> {
        if range.start < (self.pages * PAGE) as u64 {
            self.asked.fetch_add(1, Relaxed);
            self.answer.lock().unwrap().recv().unwrap();
        }
        Some(&raw const self.bytes[range.start as usize..range.end as usize])
    }
}

#[test]
fn a_worker_that_is_held_up_is_replaced() {
    let _alone = alone();
    for workers in 2..=4 {
        let (pager, _notices) = start(Options::new().granule(PAGE).workers(workers));
        let bytes = random_bytes(128 * PAGE, 7);
        let other = client(&pager, &bytes, REMOVE, Kind::Anonymous).unwrap();
        // One after the other, each holds up a worker.
        let (answer, answers) = channel();
        let source = Arc::new(HeldUp {
            bytes: bytes.clone(),
            pages: 1,
            asked: AtomicUsize::new(0),
            answer: Mutex::new(answers),
        });
        let held: Vec<_> = (1..workers)
            .map(|_| {
                let fd = userfaultfd(REMOVE).unwrap();
                let memory = Memory::map(2 * PAGE, Kind::Anonymous).unwrap().register(&fd);
                pager.add(fd, &[memory.extent(0)], source.clone()).unwrap();
                memory
            })
            .collect();
        std::thread::scope(|scope| {
            for (number, memory) in held.iter().enumerate() {
                let byte = bytes[0];
                scope.spawn(move || assert_eq!(memory.byte(0), byte));
                while source.asked.load(Relaxed) <= number {
                    std::thread::yield_now();
                }
            }
            let reads = |memory: &Memory, page: usize| {
                assert_eq!(memory.byte(page * PAGE), bytes[page * PAGE]);
            };
            (0..64).for_each(|page| reads(&other, page));
            // Their messages cannot be read meanwhile, and others are not kept by that.
            for memory in &held {
                scope.spawn(move || reads(memory, 1));
            }
            (64..128).for_each(|page| reads(&other, page));
            held.iter().for_each(|_| answer.send(()).unwrap());
        });
    }
}

/// A client all of whose faults are held up, as by a lock of the kernel's.
#[test]
fn one_client_does_not_hold_up_all_workers() {
    const MANY: usize = 16;
    let _alone = alone();
    for workers in 2..=4 {
        let (pager, _notices) = start(Options::new().granule(PAGE).workers(workers));
        let bytes = random_bytes(64 * PAGE, 8);
        let other = client(&pager, &bytes, REMOVE, Kind::Anonymous).unwrap();
        let (answer, answers) = channel();
        let source = Arc::new(HeldUp {
            bytes: bytes.clone(),
            pages: MANY,
            asked: AtomicUsize::new(0),
            answer: Mutex::new(answers),
        });
        let fd = userfaultfd(REMOVE).unwrap();
        let memory = Memory::map(MANY * PAGE, Kind::Anonymous).unwrap().register(&fd);
        pager.add(fd, &[memory.extent(0)], source.clone()).unwrap();
        std::thread::scope(|scope| {
            for page in 0..MANY {
                let byte = bytes[page * PAGE];
                scope.spawn(move || assert_eq!(memory.byte(page * PAGE), byte));
            }
            while source.asked.load(Relaxed) == 0 {
                std::thread::yield_now();
            }
            for page in 0..64 {
                assert_eq!(other.byte(page * PAGE), bytes[page * PAGE]);
            }
            assert!(source.asked.load(Relaxed) < workers);
            (0..MANY).for_each(|_| answer.send(()).unwrap());
        });
        memory.unmap();
    }
}

#[test]
fn a_page_is_read_once_for_many_threads() {
    let _alone = alone();
    let (pager, _notices) = start(Options::new().granule(4 * PAGE));
    let bytes = random_bytes(4 * PAGE, 7);
    let source = Slow::new(&bytes, |_| Duration::from_millis(50));
    let fd = userfaultfd(REMOVE).unwrap();
    let memory = Memory::map(4 * PAGE, Kind::Anonymous).unwrap().register(&fd);
    let id = pager.add(fd, &[memory.extent(0)], source).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let bytes = &bytes;
            scope.spawn(move || assert_eq!(memory.byte(thread * 2048), bytes[thread * 2048]));
        }
    });
    assert_eq!(pager.stats(id).unwrap().reads, 1);
    memory.unmap();
}

#[test]
fn what_is_removed_while_it_is_read_is_zeros() {
    let _alone = alone();
    let (pager, _notices) = start(Options::new().granule(4 * PAGE));
    let bytes = random_bytes(4 * PAGE, 8);
    let source = Slow::new(&bytes, |_| Duration::from_millis(50));
    let fd = userfaultfd(REMOVE).unwrap();
    let memory = Memory::map(4 * PAGE, Kind::Anonymous).unwrap().register(&fd);
    pager.add(fd, &[memory.extent(0)], source.clone()).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || memory.byte(0));
        while source.at_once.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        memory.page(0).discard();
        assert_eq!(memory.byte(0), 0);
        assert_eq!(reader.join().unwrap(), 0);
        assert_eq!(memory.byte(PAGE), bytes[PAGE]);
    });
    memory.unmap();
}

/// Fails so often for a page, by a panic or an error.
struct Failing {
    failures: AtomicUsize,
    panics: bool,
}

impl Source for Failing {
    fn size(&self) -> u64 {
        16 * PAGE as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let is_bad = (offset..offset + buf.len() as u64).contains(&(3 * PAGE as u64));
        let fails = |left: usize| left.checked_sub(1);
        if is_bad && self.failures.fetch_update(Relaxed, Relaxed, fails).is_ok() {
            assert!(!self.panics, "a source may");
            return Err(ReadFailed);
        }
        buf.fill(7);
        Ok(())
    }
}

#[test]
fn a_read_that_fails_is_tried_again_and_then_its_page_is_poisoned() {
    let _alone = alone();
    for (failures, panics, expected) in [(3, false, 0), (3, true, 0), (1000, false, -libc::SIGBUS)]
    {
        let (pager, notices) = start(Options::new().granule(8 * PAGE));
        let Some(fd) = userfaultfd(ALL_EVENTS) else { return };
        let memory = Memory::map(16 * PAGE, Kind::Anonymous).unwrap().register(&fd);
        let source = Arc::new(Failing { failures: AtomicUsize::new(failures), panics });
        pager.add(fd, &[memory.extent(0)], source).unwrap();
        let code = common::in_child(|| i32::from(memory.byte(3 * PAGE) != 7));
        assert_eq!(code, expected);
        // Others of the granule are not its business.
        assert_eq!(memory.byte(2 * PAGE), 7);
        assert_eq!(memory.byte(15 * PAGE), 7);
        let stats = loop {
            match notices.recv_timeout(Duration::from_secs(20)).unwrap() {
                Notice::Gone { stats, .. } => break stats,
                other => assert!(matches!(other, Notice::Forked { .. }), "{other:?}"),
            }
        };
        assert_eq!(stats.poisoned, u64::from(expected != 0));
        assert!(stats.retries >= 3);
        if expected != 0 {
            // Discarded, it is a page like others.
            memory.page(3).discard();
            assert_eq!(memory.byte(3 * PAGE), 0);
        }
        memory.unmap();
    }
}

#[test]
fn a_client_whose_pager_ends_is_poisoned_and_reads_no_zeros() {
    let _alone = alone();
    const PAGES: usize = 64;
    let (pager, notices) = start(Options::new().granule(PAGE));
    let bytes = random_bytes(PAGES * PAGE, 9);
    let memory = client(&pager, &bytes, REMOVE, Kind::Anonymous).unwrap();
    for page in (0..PAGES).step_by(3) {
        assert_eq!(memory.byte(page * PAGE), bytes[page * PAGE]);
    }
    let id = pager.clients()[0];
    drop(pager);
    let failed = Notice::Failed { client: id, failure: Failure::Stopped };
    assert_eq!(notices.recv().unwrap(), failed);
    assert!(matches!(notices.recv().unwrap(), Notice::Closed { client, .. } if client == id));
    for page in 0..PAGES {
        let code = common::in_child(|| i32::from(memory.byte(page * PAGE) == bytes[page * PAGE]));
        assert_eq!(code, if page % 3 == 0 { 1 } else { -libc::SIGBUS }, "{page}");
    }
    memory.unmap();
}

#[test]
fn a_client_that_is_completed_needs_no_pager() {
    let _alone = alone();
    const PAGES: usize = 64;
    let (pager, notices) = start(Options::new().granule(PAGE));
    let bytes = random_bytes(PAGES * PAGE, 10);
    let source = Slow::new(&bytes, |page| Duration::from_millis(u64::from(page == 5)));
    let fd = userfaultfd(REMOVE).unwrap();
    let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap().register(&fd);
    let id = pager.add(fd, &[memory.extent(0)], source).unwrap();
    memory.page(9).discard();
    assert!(pager.complete(id));
    assert!(matches!(notices.recv().unwrap(), Notice::Completed { client, .. } if client == id));
    drop(pager);
    let mut expected = bytes;
    expected[9 * PAGE..10 * PAGE].fill(0);
    assert!(memory.copy() == expected);
    memory.unmap();
}

#[test]
fn a_fault_outside_of_what_a_client_told_of_fails_it_alone() {
    let _alone = alone();
    let (pager, notices) = start(Options::new().granule(PAGE));
    let bytes = random_bytes(8 * PAGE, 11);
    let other = client(&pager, &bytes, REMOVE, Kind::Anonymous).unwrap();
    let Some(fd) = userfaultfd(ALL_EVENTS) else { return };
    let memory = Memory::map(8 * PAGE, Kind::Anonymous).unwrap().register(&fd);
    let id = pager.add(fd, &[memory.pages(0..4).extent(0)], memory_file(&bytes)).unwrap();
    assert_eq!(common::in_child(|| i32::from(memory.byte(6 * PAGE))), -libc::SIGBUS);
    let is_of_child = |notice: &Notice| {
        let outside = Failure::Outside(memory.start + 6 * PAGE);
        matches!(notice, Notice::Failed { client, failure } if *client != id && *failure == outside)
    };
    while !is_of_child(&notices.recv_timeout(Duration::from_secs(20)).unwrap()) {}
    assert_eq!(memory.byte(PAGE), bytes[PAGE], "its parent is served on");
    assert_eq!(other.byte(PAGE), bytes[PAGE]);
    memory.unmap();
    other.unmap();
}

/// Closed when all that it has told of is poisoned, its descriptor would let the rest be zeros.
#[test]
fn what_a_client_has_not_told_of_is_poisoned_whenever_it_is_touched() {
    const PAGES: usize = 64;
    const TOLD: usize = 4;
    let _alone = alone();
    let (pager, notices) = start(Options::new().granule(PAGE));
    let bytes = random_bytes(TOLD * PAGE, 13);
    let Some(fd) = userfaultfd(ALL_EVENTS) else { return };
    let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap().register(&fd);
    pager.add(fd, &[memory.pages(0..TOLD).extent(0)], memory_file(&bytes)).unwrap();
    let zeros = common::in_child(|| {
        let is_read = |page: usize| {
            std::thread::sleep(Duration::from_millis(5));
            memory.can_be_read(page * PAGE)
        };
        (TOLD..PAGES).rev().filter(|page| is_read(*page)).count() as i32
    });
    assert_eq!(zeros, 0, "pages");
    while !matches!(notices.recv_timeout(Duration::from_secs(20)).unwrap(), Notice::Poisoned { .. })
    {
    }
    // Its descriptor is closed when its process has gone.
    while !matches!(notices.recv_timeout(Duration::from_secs(20)).unwrap(), Notice::Gone { .. }) {}
    memory.unmap();
}

/// What moves to where the pager has been already must be filled all the same.
#[test]
fn what_moves_while_a_client_is_completed_is_there() {
    let _alone = alone();
    const PAGES: usize = 4096;
    const PART: usize = 64;
    const STAYS: usize = PAGES - PART;
    let bytes = random_bytes(PAGES * PAGE, 12);
    for round in 0..3 {
        let (pager, notices) = start(Options::new().granule(PAGE));
        let fd = userfaultfd(REMOVE | REMAP | UNMAP).unwrap();
        // Below it there is place, which the client has not told of.
        let place = Memory::map((PART + PAGES) * PAGE, Kind::Anonymous).unwrap();
        let memory = place.pages(PART..PART + PAGES).register(&fd);
        let id = pager.add(fd, &[memory.extent(0)], memory_file(&bytes)).unwrap();
        let is_half_way = || pager.stats(id).is_none_or(|stats| stats.pages >= PAGES as u64 / 2);
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| {
                while !is_half_way() {
                    std::thread::yield_now();
                }
                memory.pages(STAYS..PAGES).relocate(place.start, libc::MREMAP_DONTUNMAP)
            });
            assert!(pager.complete(id));
            let moved = mover.join().unwrap();
            assert!(moved.copy() == bytes[STAYS * PAGE..], "round {round}");
        });
        let completed = |notice| matches!(notice, Notice::Completed { client, .. } if client == id);
        assert!(completed(notices.recv().unwrap()));
        drop(pager);
        assert!(memory.pages(0..STAYS).copy() == bytes[..STAYS * PAGE], "round {round}");
        place.unmap();
    }
}

/// Of each page, the kernel may say that nothing is there while it moves.
#[test]
fn what_moves_again_and_again_while_a_client_is_completed_is_there() {
    let _alone = alone();
    const PAGES: usize = 1024;
    let bytes = random_bytes(PAGES * PAGE, 13);
    for round in 0..10 {
        let (pager, _notices) = start(Options::new().granule(PAGE));
        let fd = userfaultfd(REMOVE | REMAP | UNMAP).unwrap();
        let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap().register(&fd);
        let id = pager.add(fd, &[memory.extent(0)], memory_file(&bytes)).unwrap();
        memory.page(0).discard();
        let moved = std::thread::scope(|scope| {
            let mover = scope.spawn(move || {
                (0..200).fold(memory, |moved, _| {
                    // Where it was, something else may come.
                    let place = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap();
                    moved.relocate(place.start, 0)
                })
            });
            assert!(pager.complete(id));
            mover.join().unwrap()
        });
        let moved_bytes = moved.copy();
        assert!(moved_bytes[..PAGE].iter().all(|byte| *byte == 0));
        assert!(moved_bytes[PAGE..] == bytes[PAGE..], "round {round}");
        moved.unmap();
    }
}

/// Closed, its descriptor would let the memory be zeros.
#[test]
fn a_client_that_is_refused_is_poisoned() {
    let _alone = alone();
    let (pager, notices) = start(Options::new());
    for is_told in [false, true] {
        let Some(fd) = userfaultfd(FORK | REMOVE) else { return };
        let memory = Memory::map(64 * PAGE, Kind::Anonymous).unwrap().register(&fd);
        let extents = if is_told { vec![memory.extent(0)] } else { Vec::new() };
        let id = pager.refuse(fd, &extents, "no".to_owned()).unwrap();
        let failed = Notice::Failed { client: id, failure: Failure::Refused("no".to_owned()) };
        while notices.recv().unwrap() != failed {}
        assert_eq!(pager.clients(), [], "it is not served");
        let is_closed = |notice| matches!(notice, Notice::Closed { client, .. } if client == id);
        while is_told && !is_closed(notices.recv_timeout(Duration::from_secs(20)).unwrap()) {}
        let touch = || common::in_child(|| i32::from(memory.byte(9 * PAGE)));
        assert_eq!(touch(), -libc::SIGBUS);
        if !is_told {
            while !matches!(notices.recv().unwrap(), Notice::Gone { .. }) {}
            // Its descriptor is kept: other pages are poisoned as they are touched.
            assert_eq!(common::in_child(|| i32::from(memory.byte(60 * PAGE))), -libc::SIGBUS);
        }
        memory.unmap();
    }
}

#[test]
fn a_client_that_moves_without_end_can_be_failed() {
    const PAGES: usize = 8000;
    let _alone = alone();
    let (pager, notices) = start(Options::new().granule(PAGE));
    let bytes = random_bytes(PAGES * PAGE, 12);
    let memory = client(&pager, &bytes, REMAP | UNMAP, Kind::Anonymous).unwrap();
    let id = pager.clients()[0];
    let is_over = &AtomicBool::new(false);
    let moved = std::thread::scope(|scope| {
        let mover = scope.spawn(move || {
            let mut memory = memory;
            while !is_over.load(Relaxed) {
                let place = Memory::map(memory.len, Kind::Anonymous).unwrap();
                memory = memory.relocate(place.start, 0);
            }
            memory
        });
        assert!(pager.fail(id));
        let failed = notices.recv().unwrap();
        assert!(matches!(failed, Notice::Failed { .. }), "{failed:?}");
        let closed = notices.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(closed, Notice::Closed { client, .. } if client == id), "{closed:?}");
        is_over.store(true, Relaxed);
        mover.join().unwrap()
    });
    for page in (0..PAGES).step_by(97) {
        assert_eq!(common::in_child(|| i32::from(moved.byte(page * PAGE))), -libc::SIGBUS);
    }
    moved.unmap();
}

/// Nobody would take the write protection away.
#[test]
fn a_client_that_waits_for_other_than_missing_pages_fails() {
    const WRITE_PROTECT: u64 = 1;
    let _alone = alone();
    let (pager, notices) = start(Options::new().granule(PAGE));
    let bytes = random_bytes(8 * PAGE, 13);
    let fd = userfaultfd(REMOVE | WRITE_PROTECT).unwrap();
    let memory = Memory::map(8 * PAGE, Kind::Anonymous).unwrap().register_for(&fd, 3);
    let protector = fd.try_clone().unwrap();
    let id = pager.add(fd, &[memory.extent(0)], memory_file(&bytes)).unwrap();
    assert_eq!(memory.byte(PAGE), bytes[PAGE]);
    memory.page(1).write_protect(&protector);
    memory.set(PAGE, 77);
    assert_eq!(memory.byte(PAGE), 77, "it is not protected any more");
    let failed = Notice::Failed { client: id, failure: Failure::Present(memory.start + PAGE) };
    assert_eq!(notices.recv().unwrap(), failed);
    memory.unmap();
}

#[test]
fn a_child_has_what_another_thread_moves_while_it_is_forked() {
    let _alone = alone();
    const LEN: usize = 512 * PAGE;
    let (pager, _notices) = start(Options::new().granule(PAGE).workers(2));
    let bytes = random_bytes(LEN, 5);
    let Some(fd) = userfaultfd(ALL_EVENTS) else { return };
    // Where nothing else is put.
    let memory = Memory::map_at(1 << 44, LEN).register(&fd);
    let other = Memory { start: 1 << 45, len: LEN };
    pager.add_sparse(fd, &[memory.extent(0)], memory_file(&bytes)).unwrap();
    let is_over = &AtomicBool::new(false);
    let until = Instant::now() + Duration::from_secs(1);
    let (mut forks, mut wrong) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut place = memory;
            while !is_over.load(Relaxed) {
                let to = if place.start == memory.start { other.start } else { memory.start };
                place = place.relocate(to, 0);
            }
        });
        while Instant::now() < until {
            let page = forks % (LEN / PAGE);
            let code = common::in_child(|| {
                let here = [memory, other].into_iter().find(|place| place.page(page).is_mapped());
                here.map_or(2, |here| i32::from(here.byte(page * PAGE) != bytes[page * PAGE]))
            });
            forks += 1;
            wrong += usize::from(code != 0);
        }
        is_over.store(true, Relaxed);
    });
    assert_eq!(wrong, 0, "of {forks}");
}
