//! Regions that are much larger than memory: what they cost goes by what was touched, and with a
//! bound by that, page tables and records included.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use common::{PAGE, child_case, run_child, watch_for};
use pervma_pager::{Error, Options, ReadFailed, Region, SignalSafe, Source};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const MIB: usize = 1 << 20;
const TIB: usize = 1 << 40;

/// So many bytes, of which each page begins with its number; and what was written to it.
struct Numbers {
    bytes: usize,
    written: Mutex<HashMap<usize, u64>>,
}

impl Numbers {
    fn of(bytes: usize) -> Arc<Self> {
        Arc::new(Self { bytes, written: Mutex::default() })
    }
}

impl Source for Numbers {
    fn size(&self) -> u64 {
        self.bytes as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let written = self.written.lock().unwrap();
        for (page, part) in (offset as usize / PAGE..).zip(buf.chunks_mut(PAGE)) {
            part.fill(0);
            let first = written.get(&page).copied().unwrap_or(page as u64);
            part[..8].copy_from_slice(&first.to_le_bytes());
        }
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut written = self.written.lock().unwrap();
        for (page, part) in (offset as usize / PAGE..).zip(bytes.chunks(PAGE)) {
            written.insert(page, u64::from_le_bytes(part[..8].try_into().unwrap()));
        }
        Ok(())
    }
}

/// As above, for the signal handler: nothing is written.
struct Original(usize);

impl Source for Original {
    fn size(&self) -> u64 {
        self.0 as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        for (page, part) in (offset as usize / PAGE..).zip(buf.chunks_mut(PAGE)) {
            part.fill(0);
            part[..8].copy_from_slice(&(page as u64).to_le_bytes());
        }
        Ok(())
    }
}

// SAFETY: writes to the buffer that it is given.
unsafe impl SignalSafe for Original {}

/// What the process has of memory, in bytes: its pages, those of records among them, and the
/// kernel's page tables.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    };
    line("VmRSS:") + line("VmPTE:")
}

/// Whether the kernel gives back page tables that it finds empty.
fn gives_back_page_tables() -> bool {
    let region = Options::new().map(Original(512 * MIB)).unwrap();
    let start = memory();
    (0..256).for_each(|at| assert_eq!(number(&region, at * 2 * MIB), (at * 512) as u64));
    region.discard(0..region.len()).unwrap();
    let gives_back = memory() < start + 128 * PAGE;
    if !gives_back {
        common::not_run("this kernel keeps page tables that are empty");
    }
    gives_back
}

fn number(region: &Region, offset: usize) -> u64 {
    let mut bytes = [0; 8];
    region.read(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Runs the test of this name in a child, by itself, and demands that it succeeds.
fn by_itself(name: &str, cases: &[&str], play: impl Fn(&str)) {
    if let Some(case) = child_case() {
        watch_for(100);
        return play(&case);
    }
    for case in cases {
        let ended = run_child(name, case);
        assert_eq!(ended.exit, Some(0), "{case}: {ended:?}");
    }
}

#[test]
fn what_is_touched_at_random_costs_the_bound_and_little_more() {
    let name = "what_is_touched_at_random_costs_the_bound_and_little_more";
    by_itself(name, &["signal", "thread", "written"], |case| {
        if !gives_back_page_tables() {
            return;
        }
        let bound = 64 * MIB;
        let options = Options::new().resident(bound);
        let source = Numbers::of(TIB);
        let region = match case {
            "signal" => options.map(Original(TIB)).unwrap(),
            "thread" => options.handler_threads(1).map(Original(TIB)).unwrap(),
            _ => options.writable().handler_threads(1).map(Arc::clone(&source)).unwrap(),
        };
        let random = &mut StdRng::seed_from_u64(1);
        let mut most = 0;
        let mut written = HashMap::new();
        for time in 0..20_000 {
            let page = random.random_range(0..TIB / PAGE);
            if case == "written" && time % 4 == 0 {
                region.write(page * PAGE, &[0xFF; 8]);
                written.insert(page, u64::MAX);
            }
            let expected = written.get(&page).copied().unwrap_or(page as u64);
            assert_eq!(number(&region, page * PAGE), expected);
            if time % 1000 == 0 {
                // Beside what the test itself and its source keep of what was written.
                let kept = 4 * written.capacity() * size_of::<(usize, u64)>();
                most = most.max(memory() - kept);
            }
        }
        assert!(most <= bound + 32 * MIB, "{} MiB", most / MIB);
        assert!(most >= bound, "{} MiB: the bound is made use of", most / MIB);
        for (page, expected) in written {
            assert_eq!(number(&region, page * PAGE), expected);
        }
    });
}

#[test]
fn eight_tebibytes_cost_what_was_touched() {
    by_itself("eight_tebibytes_cost_what_was_touched", &[""], |_| {
        let region = Options::new().map(Original(8 * TIB)).unwrap();
        let before = memory();
        for at in 0..1000 {
            let offset = at * (8 * TIB / 1000) / PAGE * PAGE;
            assert_eq!(number(&region, offset), (offset / PAGE) as u64);
        }
        // The page, its record, and two tables of the kernel's for each of both.
        let used = memory() - before;
        assert!(used <= 1000 * 7 * PAGE, "{used} bytes");
        region.discard(0..region.len()).unwrap();
        assert!(!gives_back_page_tables() || memory() - before <= 1000 * 5 * PAGE);
    });
}

#[test]
fn a_tebibyte_that_was_not_touched_is_discarded_for_nothing() {
    by_itself("a_tebibyte_that_was_not_touched_is_discarded_for_nothing", &[""], |_| {
        let region = Options::new().writable().handler_threads(1).map(Numbers::of(TIB)).unwrap();
        let before = memory();
        for _ in 0..100 {
            region.discard(0..TIB).unwrap();
            region.discard(PAGE..TIB - PAGE).unwrap();
            assert!(region.written(0..TIB).unwrap().is_empty());
            assert_eq!(region.write_back(0..TIB).unwrap(), 0);
        }
        let used = memory() - before;
        assert!(used <= MIB, "{used} bytes");
    });
}

#[test]
fn what_is_emptied_page_by_page_is_given_back_whole() {
    by_itself("what_is_emptied_page_by_page_is_given_back_whole", &["read", "written"], |case| {
        if !gives_back_page_tables() {
            return;
        }
        let ranges = 200;
        let region = Options::new().writable().handler_threads(1).map(Numbers::of(TIB)).unwrap();
        let pages =
            || (0..ranges).flat_map(|range| [3, 100, 511].map(|page| range * 2_000 * 512 + page));
        // What a thread of its own needs, and tables that stay.
        let round = || {
            for page in pages() {
                assert_eq!(number(&region, page * PAGE), page as u64);
                if case == "written" {
                    region.write(page * PAGE, &[1]);
                }
            }
        };
        let discard = || {
            pages().for_each(|page| {
                region.discard(page * PAGE..(page + 1) * PAGE).unwrap();
            })
        };
        round();
        region.discard(0..TIB).unwrap();
        let before = memory();
        round();
        assert!(memory() > before + 4 * ranges * PAGE);
        discard();
        assert!(memory() < before + ranges * PAGE, "{}", memory() - before);
    });
}

#[test]
fn a_region_that_moves_has_as_much_of_its_bound_as_before() {
    by_itself("a_region_that_moves_has_as_much_of_its_bound_as_before", &[""], |_| {
        let (bound, far) = (32 * MIB, 200);
        let options = Options::new().writable().resident(bound).handler_threads(1);
        let mut region = options.map(Numbers::of(TIB)).unwrap();
        for _ in 0..40 {
            (0..far).for_each(|at| region.write(at * (TIB / far) / PAGE * PAGE, &[7; 8]));
            region.relocate(0).unwrap();
        }
        // Tables of 2 MiB each of which two thirds are beside the bound, and no more than there
        // are.
        let pages = (bound - 8 * MIB) / PAGE;
        (0..pages).for_each(|page| _ = number(&region, page * PAGE));
        let resident = region.resident().unwrap();
        assert!(resident >= pages * PAGE / 2, "{} KiB of {bound}", resident >> 10);
        assert_eq!(number(&region, (far - 1) * (TIB / far) / PAGE * PAGE), 0x0707_0707_0707_0707);
    });
}

#[test]
fn what_does_not_fit_is_said_to_be_too_large() {
    for size in [13 * TIB, 30 * TIB] {
        let region = Options::new().writable().map(Original(size)).unwrap();
        assert_eq!(number(&region, size - PAGE), (size / PAGE - 1) as u64);
    }
    for size in [127 * TIB, 1 << 60, usize::MAX - 5] {
        let refused = Options::new().map(Original(size)).unwrap_err();
        assert!(matches!(refused, Error::TooLarge { bytes } if bytes == size as u64), "{refused}");
    }
}
