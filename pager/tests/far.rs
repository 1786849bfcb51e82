//! Random sequences of changes to pages of a region that are far apart, beside a map of what was
//! written: the tables that say what is known of pages come and go, and have several levels. (The
//! pages of `model.rs` are few and lie together.)
//!
//! `PERVMA_MODEL_SEED` plays the one sequence that a failure names (`granule mode seed`);
//! `PERVMA_MODEL_TIMES` multiplies how many are played.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use common::{MODES, Mode, PAGE, watch};
use pervma_pager::sys::Access;
use pervma_pager::{Error, Handlers, Options, ReadFailed, Refusal, Region, SignalSafe, Source};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Pages of a tebibyte, and a few.
const PAGES: usize = (1 << 28) + 77;
const STEPS: usize = 60;

/// Each page begins with a number, its own if no other was stored.
#[derive(Default)]
struct Numbers(Mutex<HashMap<usize, u64>>);

impl Numbers {
    fn of(&self, page: usize) -> u64 {
        self.0.lock().unwrap().get(&page).copied().unwrap_or(page as u64)
    }
}

impl Source for Numbers {
    fn size(&self) -> u64 {
        (PAGES * PAGE) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        for (page, part) in (offset as usize / PAGE..).zip(buf.chunks_mut(PAGE)) {
            part.fill(0);
            part[..8].copy_from_slice(&self.of(page).to_le_bytes());
        }
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut stored = self.0.lock().unwrap();
        for (page, part) in (offset as usize / PAGE..).zip(bytes.chunks(PAGE)) {
            stored.insert(page, u64::from_le_bytes(part[..8].try_into().unwrap()));
        }
        Ok(())
    }
}

// SAFETY: the lock is held for what allocates only by threads that store: they exclude faults from
// what they store, but not from other pages. A fault waits for the lock, and its thread is none of
// those that hold it: the steps of a sequence are one thread's, and it does not store and touch at
// a time.
unsafe impl SignalSafe for Numbers {}

struct Played {
    region: Region,
    source: Arc<Numbers>,
    len: usize,
    is_bounded: bool,
    /// What shows, where that is not known by the source.
    written: BTreeMap<usize, u64>,
    /// What each of those had shown since it was known to be stored.
    versions: BTreeMap<usize, BTreeSet<u64>>,
    /// What is not mapped, in order.
    holes: Vec<Range<usize>>,
}

fn options(granule: usize, bound: Option<usize>) -> Options {
    let options = Options::new().writable().granule(granule * PAGE);
    if let Some(pages) = bound { options.resident(pages * PAGE) } else { options }
}

impl Played {
    fn new(granule: usize, mode: Mode, random: &mut StdRng) -> Self {
        let is_bounded: bool = random.random();
        let bound = 4 * granule + if random.random() { 8 } else { 3 * granule + 60 };
        let source = Arc::new(Numbers::default());
        let options = options(granule, is_bounded.then_some(bound));
        let theirs = Arc::clone(&source);
        let region = match mode {
            Mode::Signal => options.map(theirs),
            Mode::Thread if random.random() => options.handler_threads(1).map(theirs),
            Mode::Thread => options.handlers(&Handlers::new(2).unwrap()).map(theirs),
        };
        let (written, versions) = (BTreeMap::new(), BTreeMap::new());
        let region = region.unwrap();
        Self { region, source, len: PAGES, is_bounded, written, versions, holes: Vec::new() }
    }

    /// One of a few places, or a page near to it.
    fn page(&self, random: &mut StdRng) -> usize {
        const PLACES: [usize; 8] =
            [0, 511, 512, 1 << 18, (1 << 18) + 512, 5 << 18, 1 << 27, PAGES - 1];
        let place = PLACES[random.random_range(0..PLACES.len())] + random.random_range(0..9);
        place.saturating_sub(4).min(self.len - 1)
    }

    /// A few pages, or all between two places.
    fn pages(&self, random: &mut StdRng) -> Range<usize> {
        let [first, second] = [(); 2].map(|()| self.page(random));
        match random.random_range(0..3) {
            0 => first.min(second)..first.max(second) + 1,
            _ => first..(first + random.random_range(1..5)).min(self.len),
        }
    }

    fn is_mapped(&self, page: usize) -> bool {
        !self.holes.iter().any(|hole| hole.contains(&page))
    }

    /// Whether some of the pages are mapped, and whether all are.
    fn mapped(&self, pages: &Range<usize>) -> [bool; 2] {
        let mut missing = 0;
        for hole in &self.holes {
            missing += hole.end.min(pages.end).saturating_sub(hole.start.max(pages.start));
        }
        [missing < pages.len(), missing == 0]
    }

    fn shown(&self, page: usize) -> u64 {
        self.written.get(&page).copied().unwrap_or_else(|| self.source.of(page))
    }

    fn write(&mut self, page: usize, value: u64) {
        let before = self.shown(page);
        let versions = self.versions.entry(page).or_default();
        versions.extend([before, value]);
        self.written.insert(page, value);
    }

    /// What some pages show is what the source has from now on, which is some of what they showed.
    fn lose(&mut self, pages: &Range<usize>) {
        let lost: Vec<_> = self.written.range(pages.clone()).map(|(&page, _)| page).collect();
        for page in lost {
            if self.is_mapped(page) {
                let known = self.versions.remove(&page).unwrap();
                assert!(known.contains(&self.source.of(page)), "page {page} was never that");
                self.written.remove(&page);
            }
        }
    }

    fn read(&self, page: usize) -> u64 {
        let mut bytes = [0; 8];
        self.region.read(page * PAGE, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn step(&mut self, random: &mut StdRng) {
        let (page, pages) = (self.page(random), self.pages(random));
        let range = pages.start * PAGE..pages.end * PAGE;
        let [any, all] = self.mapped(&pages);
        match random.random_range(0..20) {
            0..5 if self.is_mapped(page) => assert_eq!(self.read(page), self.shown(page)),
            5..9 if self.is_mapped(page) => {
                let value = random.random();
                self.write(page, value);
                self.region.write(page * PAGE, &value.to_le_bytes());
            }
            9 | 10 => {
                let discarded = self.region.discard(range);
                assert_eq!(discarded.is_ok(), any, "{discarded:?}");
                self.lose(&pages);
            }
            11 => {
                let unmapped = self.region.unmap(range);
                assert_eq!(unmapped.is_ok(), any, "{unmapped:?}");
                self.lose(&pages);
                if any {
                    self.holes.retain(|hole| hole.start < pages.start || pages.end < hole.end);
                    let mut rest = pages.start;
                    let within = self.holes.clone().into_iter();
                    for hole in within.chain(std::iter::once(self.len..self.len)) {
                        let end = hole.start.min(pages.end);
                        if rest < end {
                            self.holes.push(rest..end);
                        }
                        rest = rest.max(hole.end);
                    }
                    self.holes.sort_by_key(|hole| hole.start);
                }
            }
            12 => {
                let hole = self.holes.pop();
                if let Some(hole) = hole {
                    self.region.map(hole.start * PAGE..hole.end * PAGE).unwrap();
                }
                let mapped = self.region.map(range);
                assert!(mapped.is_err() || !any);
                if mapped.is_ok() {
                    self.holes = cut(&self.holes, &pages);
                }
            }
            13 => {
                self.region.write_back(range).unwrap();
                for (&page, &value) in self.written.range(pages) {
                    assert_eq!(self.source.of(page), value, "page {page} was not stored");
                    self.versions.insert(page, [value].into());
                }
            }
            14 => {
                let written = self.region.written(range).unwrap();
                let is_in = |page: usize| written.iter().any(|run| run.contains(&(page * PAGE)));
                for (&page, &value) in self.written.range(pages) {
                    let is_stored = self.source.of(page) == value;
                    assert!(is_in(page) || is_stored, "page {page}");
                }
            }
            15 if all => {
                self.region.protect(range.clone(), Access::Read).unwrap();
                self.region.protect(range, Access::ReadWrite).unwrap();
            }
            16 => {
                let found = self.region.read_checked(page * PAGE, &mut [0; 8]);
                match found {
                    Ok(()) => assert!(self.is_mapped(page)),
                    Err(error) => {
                        let is_mapped = self.is_mapped(page);
                        assert!(!is_mapped && error.refusal() == Refusal::NotMapped, "{error}");
                    }
                }
            }
            17 if all && pages.len() <= 4 => {
                let pin = self.region.pin(range.clone()).unwrap();
                for page in pages {
                    assert_eq!(self.read(page), self.shown(page));
                }
                assert!(matches!(self.region.discard(range), Err(Error::Pinned(_))));
                drop(pin);
            }
            18 => self.region.relocate(0).unwrap(),
            19 => {
                let len = (page + 1).max(PAGES / 2 + self.page(random) / 2).min(PAGES);
                let before = self.len;
                self.lose(&(len..before.max(len)));
                self.written.retain(|&page, _| page < len || page >= before);
                self.region.resize(len * PAGE).unwrap();
                self.len = len;
                self.holes = cut(&self.holes, &(len..usize::MAX));
            }
            _ => {}
        }
    }

    fn finish(mut self) {
        if let Some(bytes) = self.region.most_resident() {
            assert!(self.is_bounded && bytes > 0);
        }
        for page in self.written.keys().copied().collect::<Vec<_>>() {
            if self.is_mapped(page) {
                assert_eq!(self.read(page), self.shown(page));
            }
        }
        self.region.relocate(0).unwrap();
        self.region.write_back(0..self.len * PAGE).unwrap();
        for (&page, &value) in &self.written {
            assert!(!self.is_mapped(page) || self.source.of(page) == value);
        }
    }
}

/// What is left of ranges without another.
fn cut(ranges: &[Range<usize>], without: &Range<usize>) -> Vec<Range<usize>> {
    let outside = |range: &Range<usize>| {
        [range.start..range.end.min(without.start), range.start.max(without.end)..range.end]
    };
    ranges.iter().flat_map(outside).filter(|range| !range.is_empty()).collect()
}

#[test]
fn pages_that_are_far_apart_are_as_a_map_of_them_is() {
    let only = std::env::var("PERVMA_MODEL_SEED").ok();
    let factor = std::env::var("PERVMA_MODEL_TIMES").map_or(1, |text| text.parse().unwrap());
    for granule in [1, 16, 512] {
        for mode in MODES {
            for seed in 0..factor * if granule == 512 { 40 } else { 150 } {
                let name = format!("{granule} {} {seed}", usize::from(mode == Mode::Thread));
                if only.as_ref().is_some_and(|only| *only != name) {
                    continue;
                }
                watch();
                let played = std::panic::catch_unwind(|| {
                    let random = &mut StdRng::seed_from_u64(seed);
                    let mut played = Played::new(granule, mode, random);
                    (0..STEPS).for_each(|_| played.step(random));
                    played.finish();
                });
                if let Err(panic) = played {
                    eprintln!("PERVMA_MODEL_SEED='{name}'");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}
