//! What a bound does: which pages stay, how accesses wait for room, and what regions share it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{HashMap, HashSet, VecDeque};

use common::{PAGE, byte, watch};
use pervma_pager::{Bound, Error, MemorySource, Options, Region, stats};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn source(pages: usize) -> MemorySource {
    let bytes = (0..pages).flat_map(|page| [page as u8; PAGE]).collect::<Vec<_>>();
    MemorySource::new(bytes)
}

/// How many of the accesses to pages miss, by policies that know of each access.
fn second_chance(accesses: &[usize], bound: usize) -> usize {
    let (mut order, mut used) = (VecDeque::new(), HashMap::new());
    let mut misses = 0;
    for &page in accesses {
        if let Some(used) = used.get_mut(&page) {
            *used = true;
            continue;
        }
        misses += 1;
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
    for &page in accesses {
        if present.insert(page) {
            misses += 1;
            order.push_back(page);
            if present.len() > bound {
                present.remove(&order.pop_front().unwrap());
            }
        }
    }
    misses
}

/// How many do in a region.
fn in_a_region(accesses: &[usize], bound: usize, pages: usize) -> usize {
    let region = Options::new().resident(bound * PAGE).map(source(pages)).unwrap();
    for &page in accesses {
        assert_eq!(byte(&region, page * PAGE), page as u8);
        while region.resident().unwrap() > (bound - bound / 32) * PAGE {
            // So that it does not depend on when the evictor runs.
            std::thread::yield_now();
        }
    }
    usize::try_from(region.stats().pages).unwrap()
}

#[test]
fn what_is_used_often_stays() {
    watch();
    let (bound, pages, times) = (1024, 20_000, 60_000);
    let random = &mut StdRng::seed_from_u64(1);
    let mut hot = |most: usize| {
        let mut page = |_| {
            if random.random_range(0..10) > 0 {
                random.random_range(0..most)
            } else {
                random.random_range(most..pages)
            }
        };
        (0..times).map(&mut page).collect::<Vec<_>>()
    };
    let [half, most] = [hot(512), hot(768)];
    // Each 10,000 accesses others are used often.
    let moving = half.iter().enumerate();
    let moving = moving.map(|(time, page)| (time / 10_000 * 512 + page) % pages).collect();
    // By so many hundredths of those by second chance. When what is used often changes, each page
    // of it has to miss twice; what is known of all accesses is that once is enough.
    let traces = [("half", half, 110), ("three quarters", most, 115), ("moving", moving, 145)];
    for (name, accesses, most) in &traces {
        let by = [first_in_first_out, second_chance].map(|policy| policy(accesses, bound));
        let misses = in_a_region(accesses, bound, pages);
        println!("{name}: {misses} of {times} miss, {} and {} by others", by[0], by[1]);
        assert!(misses * 100 <= by[1] * most, "{name}: {misses}, {} by second chance", by[1]);
        assert!(misses * 100 <= by[0] * 102, "{name}: {misses}, {} by first-in first-out", by[0]);
    }
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
            assert_eq!(Some(bound.resident()), others.resident());
        }
    }
    assert!(bound.most_resident() <= bound.bytes());
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
