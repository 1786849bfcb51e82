//! Every implementation finds the same things at the same addresses.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::layout::{self, BASE, Build, Layout, PAGE, STRIDE};

const LAYOUT: Layout = Layout { vmas: 40 };

/// The payload of each mapped page.
type Pages = BTreeMap<usize, u64>;

fn map(pages: &mut Pages, range: Range<usize>, payload: u64) {
    pages.extend(range.step_by(PAGE).map(|page| (page, payload)));
}

fn agrees(find: &impl Find, pages: &Pages) {
    find.with_reader(|reader| {
        for page in (BASE - STRIDE..LAYOUT.end() + STRIDE).step_by(PAGE) {
            for addr in [page, page + PAGE - 1] {
                assert_eq!(reader.read(addr), pages.get(&page).copied(), "at {addr:#x}");
                assert_ne!(reader.hindered(addr), Some(true));
            }
        }
    });
}

fn finds<F: Find>() {
    for build in [Build::Ascending, Build::Random] {
        let vmas = LAYOUT.build(build);
        let mut pages = Pages::new();
        vmas.iter().for_each(|vma| map(&mut pages, vma.range.clone(), vma.payload));
        agrees(&F::of(&vmas), &pages);
    }
}

fn changes<M: Map>() {
    finds::<M>();
    let vmas = LAYOUT.build(Build::Random);
    let mut pages = Pages::new();
    vmas.iter().for_each(|vma| map(&mut pages, vma.range.clone(), vma.payload));
    let changed = M::of(&vmas);
    let random = &mut StdRng::seed_from_u64(3);
    for _ in 0..200 {
        let number = random.random_range(0..LAYOUT.vmas);
        // Whatever stands at the guest's and the middle page is changed to something else.
        let guest = layout::guest(number);
        if pages.contains_key(&guest.range.start) {
            changed.remove(guest.range.clone());
            pages.remove(&guest.range.start);
        } else {
            changed.insert(guest.clone());
            map(&mut pages, guest.range, guest.payload);
        }
        let middle = layout::middle(random.random_range(0..LAYOUT.vmas));
        let before = pages[&middle.start];
        let own = pages[&(middle.start - PAGE)];
        let payload = if before == own { u64::MAX } else { own };
        changed.update(middle.clone(), payload);
        map(&mut pages, middle, payload);
        agrees(&changed, &pages);
    }
    // Changes of whole entries, between neighbours that touch.
    for (range, payload) in [
        (layout::vma(3), 7),
        (layout::middle(3), 8),
        (layout::vma(3).start..layout::middle(3).start, 8),
        (layout::middle(3).end..layout::vma(3).end, 8),
    ] {
        let middle = layout::middle(3);
        if range == layout::vma(3) && pages[&middle.start] != pages[&range.start] {
            changed.update(middle.clone(), pages[&range.start]);
        }
        changed.update(range.clone(), payload);
        map(&mut pages, range, payload);
        agrees(&changed, &pages);
    }
    // All of it is one entry again, so that it can be removed as one.
    changed.remove(layout::vma(3));
    layout::vma(3).step_by(PAGE).for_each(|page| {
        pages.remove(&page);
    });
    agrees(&changed, &pages);
}

#[test]
fn maps() {
    each_map!(M => changes::<M>());
    changes::<PervmaOutside>();
    changes::<PervmaCursor>();
    each_registered!(M => changes::<M>());
}

#[test]
fn an_array_finds_the_same() {
    finds::<Array>();
}

#[test]
fn what_is_visited_is_kept() {
    fn keeps<M: Map>() {
        let map = M::of(&LAYOUT.build(Build::Ascending));
        thread::scope(|threads| {
            let stay = |payload| {
                let removal = threads.spawn(|| map.remove(layout::vma(5)));
                if M::NAME.contains("memory only") {
                    while !removal.is_finished() {
                        thread::yield_now();
                    }
                } else {
                    thread::sleep(Duration::from_millis(10));
                    assert!(!removal.is_finished(), "{} does not keep it", M::NAME);
                }
                assert_eq!(payload, Some(5));
            };
            map.with_reader(|reader| reader.visit(layout::vma(5).start, stay));
        });
        map.with_reader(|reader| assert_eq!(reader.read(layout::vma(5).start), None));
    }
    each_map!(M => keeps::<M>());
    keeps::<PervmaOutside>();
    each_registered!(M => keeps::<M>());
}

fn moves<M: Relocate>() {
    let vmas = LAYOUT.build(Build::Random);
    let mut pages = Pages::new();
    vmas.iter().for_each(|vma| map(&mut pages, vma.range.clone(), vma.payload));
    let moved = M::of(&vmas);
    // The second moves to where the first was, and is merged with what is beside it there.
    moved.update(layout::vma(2), 9);
    map(&mut pages, layout::vma(2), 9);
    moved.update(layout::vma(4), 9);
    map(&mut pages, layout::vma(4), 9);
    for (from, to) in [(3, layout::vma(LAYOUT.vmas)), (4, layout::hole(2))] {
        let from = layout::vma(from);
        let payload = pages[&from.start];
        moved.relocate(from.clone(), to.start);
        from.step_by(PAGE).for_each(|page| assert!(pages.remove(&page).is_some()));
        map(&mut pages, to, payload);
        agrees(&moved, &pages);
    }
    let merged = layout::vma(2).start..layout::hole(2).end;
    moved.relocate(merged.clone(), layout::vma(LAYOUT.vmas + 9).start);
    merged.step_by(PAGE).for_each(|page| assert!(pages.remove(&page).is_some()));
    agrees(&moved, &pages);
}

#[test]
fn ranges_that_move_are_found_where_they_are() {
    moves::<Pervma>();
    moves::<PervmaOutside>();
    moves::<ParkingLot>();
    moves::<StdLock>();
}
