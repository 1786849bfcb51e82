//! What a bound does: which pages stay, how accesses wait for room, and what regions share it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{HashMap, HashSet, VecDeque};

use common::{PAGE, byte, watch, watch_for};
use pervma_pager::{
    Bound, Error, MemorySource, Options, ReadFailed, Region, SignalSafe, Source, stats,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn source(pages: usize) -> MemorySource {
    let bytes = (0..pages).flat_map(|page| [page as u8; PAGE]).collect::<Vec<_>>();
    MemorySource::new(bytes)
}

/// How many of the accesses to pages miss, after the first so many, by policies that know of each
/// access.
fn second_chance(accesses: &[usize], bound: usize) -> usize {
    let (mut order, mut used) = (VecDeque::new(), HashMap::new());
    let mut misses = 0;
    for (time, &page) in accesses.iter().enumerate() {
        if let Some(used) = used.get_mut(&page) {
            *used = true;
            continue;
        }
        misses += usize::from(time >= WARM);
        while used.len() >= bound {
            let oldest = order.pop_front().unwrap();
            if std::mem::take(used.get_mut(&oldest).unwrap()) {
                order.push_back(oldest);
            } else {
                used.remove(&oldest);
            }
        }
        order.push_back(page);
        used.insert(page, false);
    }
    misses
}

fn first_in_first_out(accesses: &[usize], bound: usize) -> usize {
    let (mut order, mut present) = (VecDeque::new(), HashSet::new());
    let mut misses = 0;
    for (time, &page) in accesses.iter().enumerate() {
        if present.insert(page) {
            misses += usize::from(time >= WARM);
            order.push_back(page);
            if present.len() > bound {
                present.remove(&order.pop_front().unwrap());
            }
        }
    }
    misses
}

/// So many pages, which each have their number; they are read.
struct Numbers(usize);

impl Source for Numbers {
    fn size(&self) -> u64 {
        (self.0 * PAGE) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        for (page, part) in (offset as usize / PAGE..).zip(buf.chunks_mut(PAGE)) {
            part.fill(page as u8);
        }
        Ok(())
    }
}

// SAFETY: writes to the buffer that it is given.
unsafe impl SignalSafe for Numbers {}

/// How many pages a region has its source read, or copies from it, and how many come back that were
/// kept.
fn in_a_region(region: &Region, accesses: &[usize], bound: &Bound) -> [usize; 2] {
    let counted = || {
        let stats = region.stats();
        [stats.pages, stats.returned].map(|count| usize::try_from(count).unwrap())
    };
    let mut before = [0; 2];
    for (time, &page) in accesses.iter().enumerate() {
        if time == WARM {
            before = counted();
        }
        assert_eq!(byte(region, page * PAGE), page as u8);
        while bound.resident() > bound.bytes() - bound.bytes() / 64 {
            // So that it does not depend on when the evictor runs.
            std::thread::yield_now();
        }
    }
    let after = counted();
    [after[0] - before[0], after[1] - before[1]]
}

/// Accesses to pages, with a name, and how many may miss at most, in hundredths of those by second
/// chance: where the source is read, and where it is in memory.
struct Trace {
    name: &'static str,
    accesses: Vec<usize>,
    most: [usize; 2],
}

const TRACED: usize = 20_000;
/// So many accesses come before what is compared.
const WARM: usize = 40_000;

fn traces() -> Vec<Trace> {
    let times = 120_000;
    let random = &mut StdRng::seed_from_u64(1);
    let mut hot = |most: usize| {
        let mut page = |_| {
            if random.random_range(0..10) > 0 {
                random.random_range(0..most)
            } else {
                random.random_range(most..TRACED)
            }
        };
        (0..times).map(&mut page).collect::<Vec<_>>()
    };
    let [half, most] = [hot(512), hot(768)];
    // Each 20,000 accesses others are used often, or one other at each eighth access.
    let jumps = half.iter().enumerate().map(|(time, page)| (time / 20_000 * 512 + page) % TRACED);
    let slides = half.iter().enumerate().map(|(time, page)| (time / 8 + page) % TRACED);
    let [jumps, slides] = [jumps.collect(), slides.collect()];
    // Half of all accesses are to what is touched once.
    let scan = |hot: &[usize]| {
        let once = |time: usize| 1024 + time / 2 % (TRACED - 1024);
        let access = |(time, &page): (usize, &usize)| {
            if time % 2 == 0 { page % 768 } else { once(time) }
        };
        hot.iter().enumerate().map(access).collect::<Vec<_>>()
    };
    let scan = scan(&most);
    // The page of rank n is touched as often as one in n.
    let weights = (1..=TRACED).scan(0.0, |sum, rank| {
        *sum += 1.0 / rank as f64;
        Some(*sum)
    });
    let weights: Vec<f64> = weights.collect();
    let mut ranked = |_| {
        let at = random.random_range(0.0..weights[TRACED - 1]);
        weights.partition_point(|&weight| weight < at)
    };
    let zipf = (0..times).map(&mut ranked).collect();
    let trace = |name, accesses, most| Trace { name, accesses, most };
    vec![
        trace("half is used often", half, [103, 109]),
        trace("three quarters are used often", most, [103, 104]),
        trace("what is used often changes", jumps, [109, 132]),
        trace("what is used often moves on", slides, [106, 115]),
        trace("beside a scan", scan, [75, 75]),
        trace("by rank", zipf, [96, 96]),
    ]
}

#[test]
fn what_is_used_often_stays() {
    watch_for(240);
    let bound = 1024;
    let mut wrong = Vec::new();
    for (at, Trace { name, accesses, most }) in traces().into_iter().enumerate() {
        let [fifo, second] = [first_in_first_out, second_chance].map(|by| by(&accesses, bound));
        let shared = || Bound::new(bound * PAGE).unwrap();
        let mut check = |what: &str, (bound, region): (Bound, Region), most: usize| {
            let [misses, returned] = in_a_region(&region, &accesses, &bound);
            let text = format!(
                "{name}, {what}: {misses} miss and {returned} return; {second} by second chance, \
                 {fifo} by first-in first-out"
            );
            println!("{text}");
            if misses * 100 > second * most {
                wrong.push(text);
            }
            // No more than two for each that is read.
            drop(region);
            assert_eq!(bound.resident(), 0, "{what}");
            assert!(returned <= 2 * misses, "{returned} come back for {misses} that are read");
        };
        let mapped = |map: &dyn Fn(Options) -> Region| {
            let bound = shared();
            let region = map(Options::new().bound(&bound));
            (bound, region)
        };
        if at == 0 {
            // A handler thread decides nothing else than a signal handler.
            let read = mapped(&|options| options.map(Numbers(TRACED)).unwrap());
            check("read in signal mode", read, most[0]);
        }
        let read = mapped(&|options| options.handler_threads(1).map(Numbers(TRACED)).unwrap());
        check("read in thread mode", read, most[0]);
        let in_memory = mapped(&|options| options.map(source(TRACED)).unwrap());
        check("in memory", in_memory, most[1]);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn threads_that_wait_for_room_do_not_poll() {
    watch();
    let (pages, threads, times) = (8192, 100, 600);
    let region = &Options::new().resident(512 * PAGE).map(source(pages)).unwrap();
    let before = stats();
    let longest = std::sync::Mutex::new(std::time::Duration::ZERO);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let longest = &longest;
            scope.spawn(move || {
                let random = &mut StdRng::seed_from_u64(thread);
                let mut most = std::time::Duration::ZERO;
                for _ in 0..times {
                    let page = random.random_range(0..pages);
                    let begin = std::time::Instant::now();
                    assert_eq!(byte(region, page * PAGE), page as u8);
                    most = most.max(begin.elapsed());
                }
                let mut longest = longest.lock().unwrap();
                *longest = most.max(*longest);
            });
        }
    });
    let counted = stats() - before;
    println!("{counted:?}, {:?}", longest.lock().unwrap());
    let lookups = counted.lookups_first_try + counted.lookups_retried;
    assert!(lookups <= 4 * counted.faults, "{lookups} for {} faults", counted.faults);
    assert!(2 * counted.lookups_slow <= 3 * counted.faults, "{}", counted.lookups_slow);
}

fn shared(bound: &Bound, pages: usize) -> Region {
    Options::new().bound(bound).map(source(pages)).unwrap()
}

fn touch(region: &Region, pages: usize) {
    for page in 0..pages {
        assert_eq!(byte(region, page * PAGE), page as u8);
    }
}

#[test]
fn regions_share_a_bound_as_they_use_it() {
    watch();
    let bound = Bound::new(256 * PAGE).unwrap();
    let [first, second] = [(); 2].map(|()| shared(&bound, 1000));
    touch(&first, 1000);
    assert!(first.resident().unwrap() >= 200 * PAGE, "{first:?} has what the other does not use");
    for _ in 0..3 {
        touch(&second, 1000);
    }
    assert!(second.resident().unwrap() >= 200 * PAGE, "{:?}", second.resident());
    assert!(bound.most_resident() <= bound.bytes() && bound.bytes() == 256 * PAGE);
    let of_both = first.resident().unwrap() + second.resident().unwrap();
    assert!(of_both <= bound.bytes() && of_both >= 200 * PAGE, "{of_both}");
}

#[test]
fn what_a_region_had_of_a_bound_others_have_when_it_is_dropped_or_frozen() {
    watch();
    let bound = Bound::new(64 * PAGE).unwrap();
    let others = shared(&bound, 100);
    for is_frozen in [false, true] {
        let region = shared(&bound, 100);
        let pin = region.pin(0..40 * PAGE).unwrap();
        assert!(matches!(others.pin(0..20 * PAGE), Err(Error::PinBeyondBound { .. })));
        // Leaked, it is held as long as the region is.
        std::mem::forget(pin);
        let frozen = is_frozen.then(|| {
            let frozen = region.freeze().unwrap();
            assert!((0..100).all(|page| frozen[page * PAGE] == page as u8), "all of it stays");
            frozen
        });
        drop(others.pin(0..48 * PAGE).unwrap());
        touch(&others, 100);
        assert_eq!(Some(bound.resident()), others.resident());
        if let Some(frozen) = frozen {
            let region = frozen.thaw();
            region.discard(40 * PAGE..region.len()).unwrap();
            assert_eq!(region.resident(), Some(40 * PAGE));
            // What was pinned is not any more.
            region.discard(0..41 * PAGE).unwrap();
            assert_eq!(region.resident(), Some(0));
            assert_eq!(Some(bound.resident()), others.resident());
        }
    }
    assert!(bound.most_resident() <= bound.bytes());
}

/// What goes round in the few granules that a bound has is not what an instruction touches at once
/// without an end: neither that nor what comes afterwards is refused.
#[test]
fn what_goes_round_in_a_small_bound_is_not_refused() {
    watch();
    let bound = Bound::with_watermarks(8 * PAGE, 2 * PAGE, 3 * PAGE).unwrap();
    let region = &Options::new().bound(&bound).map(Numbers(64)).unwrap();
    // More than are taken to go in vain (`evict.rs`).
    while region.stats().given_back < 12_000 {
        for page in 0..4 {
            assert_eq!(byte(region, page * PAGE), page as u8);
        }
    }
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for page in (0..64).cycle().skip(16 * thread).take(2000) {
                    let mut found = [0];
                    region.read_checked(page * PAGE, &mut found).unwrap();
                    assert_eq!(found, [page as u8]);
                }
            });
        }
    });
}

/// As above, where pins leave less than an instruction may touch, though not less than one does.
#[test]
fn what_goes_round_beside_pins_is_not_refused() {
    watch();
    for is_threaded in [false, true] {
        let options = Options::new().resident(8 * PAGE);
        let region = if is_threaded {
            options.handler_threads(1).map(Numbers(64)).unwrap()
        } else {
            options.map(Numbers(64)).unwrap()
        };
        let _pin = region.pin(0..6 * PAGE).unwrap();
        while region.stats().given_back < 12_000 {
            for page in 10..13 {
                assert_eq!(byte(&region, page * PAGE), page as u8);
            }
        }
    }
}

#[test]
fn nothing_of_a_bound_is_left_when_its_regions_are_dropped() {
    watch();
    /// Takes what is written, and forgets it.
    struct Taking(Numbers);
    impl Source for Taking {
        fn size(&self) -> u64 {
            self.0.size()
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
            self.0.read_at(offset, buf)
        }

        fn is_writable(&self) -> bool {
            true
        }

        fn write_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
            Ok(())
        }
    }
    // SAFETY: as the source that it has.
    unsafe impl SignalSafe for Taking {}
    let bound = Bound::new(256 * PAGE).unwrap();
    for time in 0..60 {
        let region = Options::new().bound(&bound).writable().map(Taking(Numbers(2048))).unwrap();
        for page in (0..600).map(|number| number * 977 % 2048) {
            region.write(page * PAGE, &[page as u8]);
        }
        drop(region);
        assert_eq!(bound.resident(), 0, "time {time}");
    }
}

#[test]
fn pages_go_between_the_watermarks() {
    watch();
    let bound = Bound::with_watermarks(256 * PAGE, 64 * PAGE, 128 * PAGE).unwrap();
    let region = shared(&bound, 1000);
    touch(&region, 128);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(region.resident(), Some(128 * PAGE), "no more than the high one");
    byte(&region, 128 * PAGE);
    while region.resident() > Some(64 * PAGE) {
        std::thread::yield_now();
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(region.resident(), Some(64 * PAGE), "no less than the low one");
    assert_eq!(region.stats().given_back, 65);
}

#[test]
fn bounds_that_cannot_be_kept_are_errors() {
    let refused = Bound::new(3 * PAGE).unwrap_err();
    assert!(matches!(refused, Error::Resident { bytes, .. } if bytes == 3 * PAGE), "{refused}");
    for (low, high) in [(4, 4), (5, 4), (4, 9), (1, 4)] {
        let refused = Bound::with_watermarks(8 * PAGE, low * PAGE, high * PAGE).unwrap_err();
        assert!(matches!(refused, Error::Watermarks { .. }), "{refused}");
    }
    let bound = Bound::with_watermarks(16 * PAGE, 7 * PAGE, 9 * PAGE).unwrap();
    let refused = Options::new().bound(&bound).granule(4 * PAGE).map(source(9)).unwrap_err();
    assert!(matches!(refused, Error::Watermarks { low, .. } if low == 7 * PAGE), "{refused}");
    let bound = Bound::new(8 * PAGE).unwrap();
    let refused = Options::new().bound(&bound).granule(4 * PAGE).map(source(9)).unwrap_err();
    assert!(matches!(refused, Error::Resident { least, .. } if least == 16 * PAGE), "{refused}");
}
