//! A bound with pages whose write-back fails, or does not end: what is clean is given back all the
//! same, the failure is told of and kept, and nothing that was written is lost.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "a source of the test is told what to do")]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, mpsc};

use common::{PAGE, byte, child_case, run_child};
use pervma_pager::sys::Access;
use pervma_pager::{
    Error, OnFailure, Options, ReadFailed, Region, SignalSafe, Source, WriteBackFailure,
};

const PAGES: usize = 1024;

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Takes {
    All,
    Nothing,
    /// All but what has this page.
    AllBut(usize),
    /// All, but only when it is told otherwise.
    Later,
}

/// The first byte of each page of a source, and what it does with writes.
struct Shelf {
    takes: Mutex<Takes>,
    told: Condvar,
    pages: Vec<AtomicU8>,
}

fn original(page: usize) -> u8 {
    page as u8 | 1
}

impl Shelf {
    fn new() -> Arc<Self> {
        Self::of(PAGES)
    }

    fn of(pages: usize) -> Arc<Self> {
        let pages = (0..pages).map(|page| original(page).into()).collect();
        Arc::new(Self { takes: Mutex::new(Takes::All), told: Condvar::new(), pages })
    }

    fn tell(&self, takes: Takes) {
        *self.takes.lock().unwrap() = takes;
        self.told.notify_all();
    }

    fn stored(&self, page: usize) -> u8 {
        self.pages[page].load(Relaxed)
    }
}

impl Source for Shelf {
    fn size(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        for (page, part) in (offset as usize / PAGE..).zip(buf.chunks_mut(PAGE)) {
            part.fill(0);
            part[0] = self.stored(page);
        }
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let later = |takes: &mut Takes| *takes == Takes::Later;
        let takes = *self.told.wait_while(self.takes.lock().unwrap(), later).unwrap();
        let first = offset as usize / PAGE;
        let pages = first..first + bytes.len() / PAGE;
        if takes == Takes::Nothing || matches!(takes, Takes::AllBut(page) if pages.contains(&page))
        {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        for (page, part) in pages.zip(bytes.chunks(PAGE)) {
            self.pages[page].store(part[0], Relaxed);
        }
        Ok(())
    }
}

// SAFETY: atomics, and the buffer it is given.
unsafe impl SignalSafe for Shelf {}

/// A region of the shelf, of which so many pages may be there, in a mode and with a granule;
/// accesses that fail end the process with 42.
fn map(mode: &str, shelf: &Arc<Shelf>, bound: usize, granule: usize) -> Region {
    with_hook(mode, shelf, bound, granule, |_| {})
}

fn with_hook(
    mode: &str,
    shelf: &Arc<Shelf>,
    bound: usize,
    granule: usize,
    hook: impl Fn(&WriteBackFailure) + Send + Sync + 'static,
) -> Region {
    let options = Options::new().writable().resident(bound * PAGE).granule(granule * PAGE);
    let options = options.on_failure(OnFailure::exit(42, "over the bound\n"));
    let options = options.on_write_back_failure(hook);
    let source = Arc::clone(shelf);
    match mode {
        "signal" => options.map(source).unwrap(),
        "thread" => options.handler_threads(1).map(source).unwrap(),
        _ => unreachable!(),
    }
}

/// Writes the first byte of so many pages, each beside one that is not written.
fn write(region: &Region, pages: usize) {
    for page in 0..pages {
        region.write(2 * page * PAGE, &[0]);
    }
}

/// Runs the test of this name in children, of which each plays a case in a mode, and demands that
/// each ends with this code.
fn in_both_modes(name: &str, cases: &[&str], exit: i32, play: impl Fn(&str, &str)) {
    if let Some(case) = child_case() {
        let (mode, case) = case.split_once(' ').unwrap();
        return play(mode, case);
    }
    for mode in ["signal", "thread"] {
        for case in cases {
            let ended = run_child(name, &format!("{mode} {case}"));
            assert_eq!(ended.exit, Some(exit), "{mode} {case}: {ended:?}");
        }
    }
}

/// How many pages are written, of how many that may be there, in which granules.
fn numbers(case: &str) -> [usize; 3] {
    let mut numbers = case.split(' ').map(|number| number.parse().unwrap());
    [(); 3].map(|()| numbers.next().unwrap())
}

#[test]
fn what_is_clean_goes_while_write_back_fails() {
    let name = "what_is_clean_goes_while_write_back_fails";
    let cases =
        ["2 8 1", "7 8 1", "3 4 1", "128 512 1", "511 512 1", "20 64 16", "63 64 16", "9 2048 512"];
    in_both_modes(name, &cases, 0, |mode, case| {
        let [written, bound, granule] = numbers(case);
        let pages = PAGES.max(2 * bound);
        let shelf = Shelf::of(pages);
        shelf.tell(Takes::Nothing);
        // Page by page, so that no more is there than what is written.
        let region = map(mode, &shelf, bound, granule);
        for page in 0..written {
            region.write(page * PAGE, &[0]);
        }
        for page in (written..pages).rev() {
            assert_eq!(byte(&region, page * PAGE), original(page));
        }
        assert!((0..written).all(|page| byte(&region, page * PAGE) == 0));
        assert!(region.most_resident().unwrap() <= bound * PAGE);
        shelf.tell(Takes::All);
        region.write_back(0..region.len()).unwrap();
        assert!((0..written).all(|page| shelf.stored(page) == 0));
    });
}

#[test]
fn what_is_clean_goes_while_write_back_does_not_end() {
    let name = "what_is_clean_goes_while_write_back_does_not_end";
    in_both_modes(name, &["2 8 1", "200 512 1", "20 64 16"], 0, |mode, case| {
        let [written, bound, granule] = numbers(case);
        let shelf = Shelf::new();
        shelf.tell(Takes::Later);
        let region = map(mode, &shelf, bound, granule);
        write(&region, written);
        for page in (2 * written..PAGES).rev() {
            assert_eq!(byte(&region, page * PAGE), original(page));
        }
        shelf.tell(Takes::All);
        assert!((0..written).all(|page| byte(&region, 2 * page * PAGE) == 0));
        region.write_back(0..region.len()).unwrap();
        assert!((0..written).all(|page| shelf.stored(2 * page) == 0));
    });
}

#[test]
fn one_page_that_cannot_be_written_keeps_no_other() {
    let name = "one_page_that_cannot_be_written_keeps_no_other";
    in_both_modes(name, &["60 64 1", "64 64 1", "64 64 16"], 0, |mode, case| {
        let [written, bound, granule] = numbers(case);
        let shelf = Shelf::new();
        shelf.tell(Takes::AllBut(9));
        let region = map(mode, &shelf, bound, granule);
        // All beside each other, so that they would be written in one piece.
        for page in 0..written {
            region.write(page * PAGE, &[0]);
        }
        for page in (written..PAGES).rev() {
            assert_eq!(byte(&region, page * PAGE), original(page));
        }
        for page in written..PAGES {
            region.write(page * PAGE, &[0]);
        }
        assert!((0..PAGES).all(|page| byte(&region, page * PAGE) == 0));
        assert_eq!(shelf.stored(9), original(9));
    });
}

#[test]
fn pages_that_may_not_be_read_stay_and_keep_no_other() {
    let name = "pages_that_may_not_be_read_stay_and_keep_no_other";
    in_both_modes(name, &["4 8 1", "20 64 16"], 0, |mode, case| {
        let [written, bound, granule] = numbers(case);
        let region = map(mode, &Shelf::new(), bound, granule);
        write(&region, written);
        let part = 0..2 * written * PAGE;
        region.protect(part.clone(), Access::None).unwrap();
        for page in (2 * written..PAGES).rev() {
            assert_eq!(byte(&region, page * PAGE), original(page));
        }
        region.protect(part, Access::Read).unwrap();
        assert!((0..written).all(|page| byte(&region, 2 * page * PAGE) == 0));
    });
}

#[test]
fn an_access_is_refused_only_when_nothing_can_go() {
    let name = "an_access_is_refused_only_when_nothing_can_go";
    in_both_modes(name, &["8 8 1", "512 512 1", "64 64 16"], 42, |mode, case| {
        let [written, bound, granule] = numbers(case);
        let shelf = Shelf::new();
        shelf.tell(Takes::Nothing);
        let region = map(mode, &shelf, bound, granule);
        for page in 0..written {
            region.write(page * PAGE, &[0]);
        }
        byte(&region, written * PAGE);
        unreachable!("more is there than may be");
    });
}

/// An instruction that touches two pages never ends if only one can be given back: it fails.
#[test]
fn an_access_that_needs_more_than_is_left_does_not_go_on_for_ever() {
    let name = "an_access_that_needs_more_than_is_left_does_not_go_on_for_ever";
    in_both_modes(name, &["7 8 1"], 42, |mode, case| {
        let [written, bound, granule] = numbers(case);
        let shelf = Shelf::new();
        shelf.tell(Takes::Nothing);
        let region = map(mode, &shelf, bound, granule);
        for page in 0..written {
            region.write(page * PAGE, &[0]);
        }
        // One after the other they can be had, as often as it may be.
        while region.stats().given_back < 11_000 {
            assert!(
                [200, 201].into_iter().all(|page| byte(&region, page * PAGE) == original(page))
            );
        }
        let across = region.as_ptr().wrapping_add(100 * PAGE - 4).cast::<u64>();
        // SAFETY: within the region.
        std::hint::black_box(unsafe { across.read_unaligned() });
        unreachable!("more is there than may be");
    });
}

#[test]
fn a_failure_is_told_and_kept_until_it_is_over() {
    let name = "a_failure_is_told_and_kept_until_it_is_over";
    in_both_modes(name, &["2 8 1"], 0, |mode, case| {
        let [written, bound, granule] = numbers(case);
        let shelf = Shelf::new();
        shelf.tell(Takes::Nothing);
        let (hook, told) = mpsc::channel();
        let region = with_hook(mode, &shelf, bound, granule, move |failure| {
            hook.send(failure.clone()).unwrap();
        });
        assert!(region.write_back_failure().is_none());
        write(&region, written);
        let is_full = |failure: &WriteBackFailure| {
            assert!(failure.to_string().contains("no storage space"), "{failure}");
            matches!(failure.error(), Error::WriteBack(error)
                if error.kind() == std::io::ErrorKind::StorageFull)
        };
        let mut failed = BTreeSet::new();
        for page in (bound..PAGES).cycle() {
            byte(&region, page * PAGE);
            for failure in told.try_iter() {
                assert!(is_full(&failure));
                failed.extend([failure.range().start, failure.range().len()]);
            }
            if failed.len() == 3 {
                break;
            }
        }
        assert_eq!(failed, [0, PAGE, 2 * PAGE].into(), "each page, by itself");
        assert!(is_full(&region.write_back_failure().unwrap()));
        // An explicit write-back says why itself, and changes nothing.
        assert!(matches!(region.write_back(0..region.len()), Err(Error::WriteBack(_))));
        assert!(is_full(&region.write_back_failure().unwrap()));
        // The region tries again by itself.
        shelf.tell(Takes::All);
        for page in (bound..PAGES).cycle() {
            byte(&region, page * PAGE);
            if shelf.stored(0) == 0 && shelf.stored(2) == 0 {
                break;
            }
        }
        assert!(region.written(0..region.len()).unwrap().is_empty());
        assert!(region.write_back_failure().is_none());
    });
}

#[test]
fn a_failure_is_over_when_what_it_was_about_is() {
    let name = "a_failure_is_over_when_what_it_was_about_is";
    in_both_modes(name, &["written_back", "discarded", "unmapped", "shorter"], 0, |mode, case| {
        let shelf = Shelf::new();
        shelf.tell(Takes::AllBut(PAGES - 1));
        let mut region = map(mode, &shelf, 8, 1);
        let last = (PAGES - 1) * PAGE..PAGES * PAGE;
        region.write(last.start, &[0]);
        for page in (0..PAGES - 1).cycle() {
            byte(&region, page * PAGE);
            if region.write_back_failure().is_some() {
                break;
            }
        }
        shelf.tell(Takes::All);
        match case {
            "written_back" => drop(region.write_back(last).unwrap()),
            "discarded" => region.discard(last).unwrap(),
            "unmapped" => region.unmap(last).unwrap(),
            _ => region.resize(PAGE).unwrap(),
        }
        assert!(region.write_back_failure().is_none());
    });
}

/// Dropping, freezing and moving a region end, whatever its source refuses.
#[test]
fn a_region_that_cannot_be_written_back_can_be_dropped_frozen_and_moved() {
    let name = "a_region_that_cannot_be_written_back_can_be_dropped_frozen_and_moved";
    in_both_modes(name, &["dropped", "frozen", "moved"], 0, |mode, case| {
        let shelf = Shelf::new();
        shelf.tell(Takes::Nothing);
        let mut region = map(mode, &shelf, 16, 1);
        write(&region, 15);
        for page in (30..PAGES).cycle() {
            byte(&region, page * PAGE);
            if region.write_back_failure().is_some() {
                break;
            }
        }
        match case {
            "dropped" => drop(region),
            "frozen" => assert_eq!(region.freeze().unwrap()[28 * PAGE], 0),
            _ => {
                region.relocate(0).unwrap();
                assert_eq!(byte(&region, 28 * PAGE), 0);
                assert_eq!(byte(&region, 100 * PAGE), original(100));
            }
        }
    });
}
