//! What is read for a frozen region in granules of 2 MiB and more comes in huge pages, which are
//! moved to their places. Wherever the kernel has none, or moves none, it is copied.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "says when a test is over")]

mod common;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use common::{
    Ask, MODES, Mode, PAGE, child_case, file_with, not_run, random_bytes, run_child, watch,
};
use pervma_pager::sys::{Access, At, PageSize, Userfaultfd};
use pervma_pager::{
    FileSource, FrozenRegion, Options, ReadFailed, Region, RegionStats, SignalSafe, Source,
};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const HUGE: usize = 2 << 20;

/// Whether the kernel can move pages, and gives this process huge pages that it asks for; if not,
/// the test has tried the copies only.
fn has_huge_pages() -> bool {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let has_some = enabled.is_ok_and(|enabled| !enabled.contains("[never]"));
    let can_move = Userfaultfd::open_sigbus(PageSize::Small, false).unwrap().can_move();
    if !has_some {
        not_run("moves: the kernel gives out no transparent huge pages");
    } else if !can_move {
        not_run("moves: this kernel cannot move pages");
    }
    has_some && can_move
}

/// The kernel's mappings of some memory: what may be done there, and bytes in huge pages.
fn mappings(memory: &[u8]) -> Vec<(String, usize)> {
    let wanted = memory.as_ptr_range();
    let wanted = wanted.start.addr()..wanted.end.addr();
    let (mut mappings, mut is_wanted) = (Vec::new(), false);
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if let Some((start, end)) = first.split_once('-') {
            let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
            is_wanted = start < wanted.end && end > wanted.start;
            if is_wanted {
                mappings.push((words.next().unwrap().to_owned(), 0));
            }
        } else if is_wanted && first == "AnonHugePages:" {
            mappings.last_mut().unwrap().1 += words.next().unwrap().parse::<usize>().unwrap() << 10;
        }
    }
    mappings
}

/// How many huge pages there are, when none of it may be written: a thread may be about to move one
/// of which another thread has seen the end.
fn huge_pages(memory: &[u8]) -> usize {
    loop {
        let mappings = mappings(memory);
        if mappings.iter().all(|(access, _)| access == "r--p") {
            return mappings.iter().map(|(_, huge)| huge / HUGE).sum();
        }
        thread::yield_now();
    }
}

/// A region that shows a file with these bytes.
fn live(bytes: &[u8], mode: Mode, options: Options) -> Region {
    map(FileSource::new(file_with(bytes)).unwrap(), mode, options)
}

fn map(source: impl SignalSafe + 'static, mode: Mode, options: Options) -> Region {
    match mode {
        Mode::Signal => options.map(source).unwrap(),
        Mode::Thread => options.handler_threads(2).map(source).unwrap(),
    }
}

fn granules() -> Options {
    Options::new().granule(HUGE)
}

/// Touches all of it, and demands that it is as it should be.
fn check(memory: &[u8], expected: &[u8]) {
    assert_eq!(memory.len(), expected.len());
    for (at, (found, expected)) in memory.chunks(PAGE).zip(expected.chunks(PAGE)).enumerate() {
        assert!(found == expected, "page {at}");
    }
}

fn freeze(region: Region) -> FrozenRegion {
    region.freeze().unwrap()
}

#[test]
fn what_is_read_for_a_frozen_region_is_in_huge_pages() {
    watch();
    let bytes = random_bytes(6 * HUGE + 5 * PAGE + 9, 1);
    for mode in MODES {
        for granule in [HUGE, 2 * HUGE, 8 * HUGE] {
            let fill = || {
                let region = freeze(live(&bytes, mode, Options::new().granule(granule)));
                check(&region, &bytes);
                let huge = huge_pages(&region);
                assert!(huge <= 6, "{huge}: the last 2 MiB are no whole ones");
                let RegionStats { pages, .. } = region.thaw().stats();
                assert_eq!(pages, bytes.len().div_ceil(PAGE) as u64);
                huge > 0
            };
            // Now and then the kernel has none, if its memory is in pieces.
            let has_some = (0..20).any(|_| fill());
            assert!(has_some || !has_huge_pages(), "{mode:?}, {granule}");
        }
    }
}

#[test]
fn a_region_that_is_not_frozen_is_filled_with_small_pages() {
    watch();
    let bytes = random_bytes(2 * HUGE, 2);
    for mode in MODES {
        for options in [granules(), granules().writable(), granules().resident(8 * HUGE)] {
            let region = live(&bytes, mode, options);
            let mut found = vec![0; bytes.len()];
            region.read(0, &mut found);
            check(&found, &bytes);
            assert_eq!(huge_pages(&freeze(region)), 0);
        }
    }
}

#[test]
fn where_a_huge_page_has_no_place_small_ones_are_copied() {
    watch();
    for mode in MODES {
        let small = random_bytes(HUGE - 5 * PAGE, 3);
        let region = freeze(live(&small, mode, granules()));
        check(&region, &small);
        assert_eq!(huge_pages(&region), 0, "it is shorter than one");

        let bytes = random_bytes(3 * HUGE, 4);
        let region = freeze(live(&bytes, mode, Options::new().granule(HUGE / 2)));
        check(&region, &bytes);
        assert_eq!(huge_pages(&region), 0, "granules are smaller");

        let at = At::free(0x6100_0000_0000 + PAGE);
        let region = freeze(live(&bytes, mode, granules().at(at)));
        check(&region, &bytes);
        assert_eq!(huge_pages(&region), 0, "granules begin elsewhere");

        let region = freeze(live(&bytes, mode, granules().writable()));
        check(&region, &bytes);
        assert_eq!(huge_pages(&region), 0, "writes were tracked");

        let region = live(&bytes, mode, granules());
        region.protect(0..HUGE, Access::ReadExecute).unwrap();
        let region = freeze(region);
        assert!(region[..HUGE] == bytes[..HUGE]);
        assert_eq!(mappings(&region[..HUGE]), [("r-xp".to_owned(), 0)], "code is not written");
        assert!(region[HUGE..] == bytes[HUGE..]);
    }
}

/// Of what the application has asked of the kernel for the second 2 MiB, or a page of them.
#[test]
fn what_the_kernel_does_not_move_is_copied() {
    watch();
    let bytes = random_bytes(3 * HUGE, 5);
    let seams = [Ask::Advice(libc::MADV_DONTDUMP), Ask::Bind].map(|ask| (ask, 700..701));
    let others = [Ask::Advice(libc::MADV_NOHUGEPAGE), Ask::Lock].map(|ask| (ask, 512..1024));
    for (ask, pages) in seams.into_iter().chain(others) {
        for mode in MODES {
            let region = freeze(live(&bytes, mode, granules()));
            // Locking also fills, as far as faults of system calls are served.
            if !ask.ask_at(region.as_ptr(), &pages) && !matches!(ask, Ask::Lock) {
                not_run(format_args!("{ask:?}: the kernel refuses it"));
                continue;
            }
            check(&region[HUGE..2 * HUGE], &bytes[HUGE..2 * HUGE]);
            assert_eq!(huge_pages(&region), 0, "{mode:?}: {ask:?}");
            assert!(mappings(&region).len() > 1, "{mode:?}: {ask:?} stays as it was asked for");
            check(&region, &bytes);
        }
    }
}

/// The records know what is present, and the kernel has page tables for it.
#[test]
fn what_is_missing_among_pages_that_are_there_is_copied() {
    watch();
    let bytes = random_bytes(3 * HUGE, 6);
    for mode in MODES {
        let region = live(&bytes, mode, granules());
        region.prefetch(0..2 * HUGE).unwrap();
        region.discard(9 * PAGE..400 * PAGE).unwrap();
        region.discard(HUGE..2 * HUGE).unwrap();
        let region = freeze(region);
        check(&region, &bytes);
        let huge = huge_pages(&region);
        assert!(huge <= 2, "{huge}");
    }
}

/// In children of the test, one for each case: no huge page comes when `prepare` was called, before
/// the region was mapped or when it was frozen.
fn in_children(test: &str, cases: &[&str], prepare: impl Fn()) {
    let Some(case) = child_case() else {
        for case in cases {
            let ended = run_child(test, case);
            assert_eq!(ended.exit, Some(0), "{case}: {ended:?}");
        }
        return;
    };
    let mode = if case.starts_with("signal") { Mode::Signal } else { Mode::Thread };
    let is_before = case.ends_with("before");
    let bytes = random_bytes(4 * HUGE, 7);
    if is_before {
        prepare();
    }
    let region = freeze(live(&bytes, mode, granules()));
    if !is_before {
        prepare();
    }
    // Without a message, for which there may be no memory.
    if region[..] != bytes[..] {
        std::process::abort();
    }
    let none = rustix::process::Rlimit { current: None, maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::Data, none).unwrap();
    assert_eq!(huge_pages(&region), 0);
}

const ALL_CASES: [&str; 4] = ["signal, before", "signal, after", "thread, before", "thread, after"];

#[test]
fn without_huge_pages_small_ones_are_copied() {
    in_children("without_huge_pages_small_ones_are_copied", &ALL_CASES, || {
        // SAFETY: a setting of the process.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }, 0);
    });
}

#[test]
fn where_no_more_may_become_writable_it_is_copied() {
    in_children("where_no_more_may_become_writable_it_is_copied", &["signal, after"], || {
        // 0 would be no limit.
        let most = rustix::process::Rlimit { current: Some(PAGE as u64), maximum: None };
        rustix::process::setrlimit(rustix::process::Resource::Data, most).unwrap();
    });
}

#[test]
fn what_is_locked_is_copied() {
    // SAFETY: a setting of the process.
    let lock = |how| unsafe { libc::mlockall(how) } == 0;
    if child_case().is_none() && !lock(libc::MCL_CURRENT | libc::MCL_ONFAULT) {
        return not_run("locked memory: the process may not lock so much");
    }
    // SAFETY: no condition.
    unsafe { libc::munlockall() };
    in_children("what_is_locked_is_copied", &["signal, before", "thread, before"], || {
        assert!(lock(libc::MCL_FUTURE | libc::MCL_ONFAULT));
    });
}

/// Fills nothing of what it is lent, or the last byte of each granule.
struct Sparing {
    granules: u64,
    fills_last: bool,
}

impl Source for Sparing {
    fn size(&self) -> u64 {
        self.granules * HUGE as u64
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        assert!(buf.iter().step_by(PAGE / 2).all(|&byte| byte == 0), "zeros are lent");
        if self.fills_last
            && let Some(last) = buf.last_mut()
        {
            *last = 9;
        }
        Ok(())
    }
}

// SAFETY: the buffer it is given.
unsafe impl SignalSafe for Sparing {}

#[test]
fn what_a_source_does_not_fill_is_zeros_each_time() {
    watch();
    for (mode, fills_last) in MODES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        let region = freeze(map(Sparing { granules: 5, fills_last }, mode, granules()));
        let mut expected = vec![0; HUGE];
        expected[HUGE - 1] = if fills_last { 9 } else { 0 };
        region.chunks(HUGE).for_each(|granule| check(granule, &expected));
    }
}

/// The kernel holds the pages of a buffer while it reads to them past the page cache.
#[test]
fn what_is_read_past_the_page_cache_is_right() {
    watch();
    let bytes = random_bytes(4 * HUGE + 100, 8);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let mut direct = File::options();
    direct.read(true).write(true).custom_flags(libc::O_DIRECT);
    let Ok(direct) = direct.open(file.path()) else {
        return not_run("direct I/O: the file system has none");
    };
    for mode in MODES {
        let source = FileSource::new(direct.try_clone().unwrap()).unwrap();
        check(&freeze(map(source, mode, granules())), &bytes);
    }
}

#[test]
fn a_region_that_is_thawed_is_changed_as_any() {
    watch();
    let bytes = random_bytes(4 * HUGE, 9);
    for mode in MODES {
        let mut region = live(&bytes, mode, granules());
        for _ in 0..5 {
            let frozen = freeze(region);
            check(&frozen[HUGE..], &bytes[HUGE..]);
            region = frozen.thaw();
            region.discard(HUGE + 3 * PAGE..HUGE + 7 * PAGE).unwrap();
            region.protect(2 * HUGE..2 * HUGE + PAGE, Access::None).unwrap();
            region.unmap(3 * HUGE - PAGE..3 * HUGE + PAGE).unwrap();
            region.map(3 * HUGE - PAGE..3 * HUGE + PAGE).unwrap();
            region.protect(2 * HUGE..2 * HUGE + PAGE, Access::Read).unwrap();
            let mut found = vec![0; bytes.len()];
            region.read(0, &mut found);
            check(&found, &bytes);
            region.discard(0..4 * HUGE).unwrap();
        }
        region.relocate(0).unwrap();
        check(&freeze(region), &bytes);
    }
}

/// B32. What has moved could be written, but for its protection afterwards.
#[test]
fn a_region_that_is_thawed_cannot_be_written() {
    if child_case().is_some() {
        let bytes = random_bytes(HUGE, 10);
        let frozen = freeze(live(&bytes, Mode::Signal, granules()));
        check(&frozen, &bytes);
        frozen.thaw().write(5, &[1]);
        return;
    }
    let ended = run_child("a_region_that_is_thawed_cannot_be_written", "");
    assert_eq!(ended.signal, Some(libc::SIGSEGV), "{ended:?}");
}

/// Beside regions of the same file that are discarded, protected, unmapped and moved, and
/// processes that are forked.
#[test]
fn threads_that_touch_the_same_granules_find_the_right_bytes() {
    watch();
    let bytes = random_bytes(16 * HUGE, 11);
    for mode in MODES {
        let source = Arc::new(FileSource::new(file_with(&bytes)).unwrap());
        let is_over = AtomicBool::new(false);
        thread::scope(|threads| {
            threads.spawn(|| change(map(Arc::clone(&source), mode, granules()), &bytes, &is_over));
            threads.spawn(|| fork_until(&is_over));
            // Also when this thread panics.
            let _ends = Ends(&is_over);
            for round in 0..6 {
                let region = freeze(map(Arc::clone(&source), mode, granules()));
                thread::scope(|threads| {
                    for thread in 0..4 {
                        let (region, bytes) = (&region, &bytes);
                        threads.spawn(move || touch(region, bytes, round * 4 + thread));
                    }
                });
                huge_pages(&region);
                let mappings = mappings(&region).len();
                assert!(mappings <= 4, "{mappings} mappings of the kernel's");
            }
        });
    }
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Touches all granules in random order, some pages of each.
fn touch(region: &[u8], bytes: &[u8], seed: u64) {
    let random = &mut StdRng::seed_from_u64(seed);
    let mut granules: Vec<_> = (0..bytes.len() / HUGE).collect();
    granules.shuffle(random);
    for granule in granules {
        for _ in 0..20 {
            let page = granule * HUGE + random.random_range(0..HUGE / PAGE) * PAGE;
            assert!(region[page..page + PAGE] == bytes[page..page + PAGE], "at {page}");
        }
    }
}

/// Changes a region, freezes and thaws it again and again.
fn change(mut region: Region, bytes: &[u8], is_over: &AtomicBool) {
    let random = &mut StdRng::seed_from_u64(12);
    while !is_over.load(Relaxed) {
        let granule = random.random_range(0..bytes.len() / HUGE) * HUGE;
        let within: Range<usize> = granule + 5 * PAGE..granule + HUGE / 2;
        match random.random_range(0..6) {
            0 => region.discard(granule..granule + HUGE).unwrap(),
            1 => region.discard(within).unwrap(),
            2 => {
                region.protect(within.clone(), Access::None).unwrap();
                region.protect(within, Access::Read).unwrap();
            }
            3 => {
                region.unmap(within.clone()).unwrap();
                region.map(within).unwrap();
            }
            4 => region.relocate(0).unwrap(),
            _ => {
                let frozen = freeze(region);
                touch(&frozen[granule..granule + HUGE], &bytes[granule..granule + HUGE], 0);
                region = frozen.thaw();
            }
        }
        let mut page = [0; PAGE];
        let at = granule + random.random_range(0..HUGE / PAGE) * PAGE;
        region.read(at, &mut page);
        assert!(page == bytes[at..at + PAGE], "at {at}");
    }
}

fn fork_until(is_over: &AtomicBool) {
    while !is_over.load(Relaxed) {
        // SAFETY: the child ends at once.
        match unsafe { libc::fork() } {
            // SAFETY: as above.
            0 => unsafe { libc::_exit(0) },
            -1 => {}
            child => {
                // SAFETY: waits for a child.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            }
        }
        thread::sleep(std::time::Duration::from_millis(2));
    }
}
