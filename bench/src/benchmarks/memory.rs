//! Memory: of a VMA, of an empty space, and after many changes.

use std::sync::Arc;

use pervma::{AddressSpace, Slab};

use crate::allocator;
use crate::comparison::{Bound, Effort, Goal};
use crate::layout::{self, Build, Layout, PAGE, Vma};
use crate::maps::{Find, Map, Pervma, each_map};
use crate::report::{Figures, Table};
use crate::summary::Summary;

/// VMAs, and what each is to take there, with all that is not used. Of the last one the chunks are
/// less full.
const SIZES: [(usize, Option<f64>); 3] =
    [(1_000, Some(200.0)), (65_000, Some(128.0)), (100_000, None)];

/// Spaces of one VMA that share a slab.
const SHARING: usize = 1_000;

/// What an empty space is to take.
const EMPTY: f64 = 512.0;

/// Memory is not to grow any more after one in so many of the pairs.
const WARM_UP: usize = 10;

pub(crate) fn measure(effort: &Effort) -> Figures {
    let mut table = Table::new("memory by implementation", "bytes");
    let mut empty = Vec::new();
    each_map!(M => {
        // What the first map of a process sets up is not counted.
        bytes::<M>(1);
        empty.push((M::NAME, Some(Summary::exactly(bytes::<M>(0)))));
    });
    table.case("empty", empty);
    let mut goals = vec![Goal::new(
        "an empty space, bytes",
        Bound::AtMost(EMPTY),
        Summary::exactly(bytes::<Pervma>(0)),
    )];
    let mut small = Table::new("a space of one VMA", "bytes");
    small.case("slab of its own", [(<Pervma>::NAME, Some(Summary::exactly(bytes::<Pervma>(1))))]);
    small.case(
        format!("one slab for {SHARING} of them, each"),
        [(<Pervma>::NAME, Some(Summary::exactly(sharing())))],
    );
    for (size, most) in SIZES {
        let mut figures = Vec::new();
        let each = |bytes: f64, empty: f64| Summary::exactly((bytes - empty) / size as f64);
        each_map!(M => {
            figures.push((M::NAME, Some(each(bytes::<M>(size), bytes::<M>(0)))));
        });
        if let Some(most) = most {
            let each = each(bytes::<Pervma>(size), bytes::<Pervma>(0));
            goals.push(Goal::new(format!("a VMA of {size}, bytes"), Bound::AtMost(most), each));
        }
        table.case(format!("a VMA, of {size}"), figures);
    }

    let pairs = effort.pairs;
    let layout = Layout { vmas: SIZES[0].0 };
    let map = <Pervma>::of(&layout.build(Build::Random));
    let mut number = 0;
    let mut change = |pairs: usize| {
        let grown = allocator::growth(|| {
            for _ in 0..pairs {
                // A step that has no divisor in common with the number of VMAs.
                number = (number + 617) % layout.vmas;
                let guest = layout::guest(number);
                map.insert(guest.clone());
                map.remove(guest.range);
            }
        });
        Summary::exactly(grown.1 as f64)
    };
    let first = change(pairs / WARM_UP);
    let growth = change(pairs);
    let mut changes = Table::new(format!("growth of a space of {} VMAs", layout.vmas), "bytes");
    changes.case(format!("first {} pairs", pairs / WARM_UP), [(<Pervma>::NAME, Some(first))]);
    changes.case(format!("next {pairs} pairs"), [(<Pervma>::NAME, Some(growth))]);
    goals.push(Goal::new(
        format!("growth over {pairs} pairs of insert + remove, bytes"),
        Bound::AtMost(0.0),
        growth,
    ));
    let about = "Bytes asked of the allocator by VMAs with a payload of 8 bytes, in random order; an empty \
                 map includes the value itself. pervma takes memory in chunks that double, so the figure of \
                 a VMA depends on how full the last is.";
    (about, vec![table, small, changes], goals)
}

/// What a space of one VMA takes that shares a slab with others, its part of the slab included.
fn sharing() -> f64 {
    let vma = layout::vma(0);
    let (spaces, bytes) = allocator::growth(|| {
        let slab = Arc::new(Slab::new());
        let space = || {
            let space = <Pervma>::around(AddressSpace::new_in(PAGE, Arc::clone(&slab)));
            space.insert(Vma { range: vma.clone(), payload: 0 });
            space
        };
        (0..SHARING).map(|_| space()).collect::<Vec<_>>()
    });
    drop(spaces);
    bytes as f64 / SHARING as f64
}

/// What a map of so many VMAs takes.
fn bytes<M: Map>(vmas: usize) -> f64 {
    let vmas = Layout { vmas }.build(Build::Random);
    let (map, bytes) = allocator::growth(|| M::of(&vmas));
    bytes as f64 + size_of_val(&map) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only test that counts: there is but one count. Others allocate meanwhile, so what is
    /// looked for is larger.
    #[test]
    fn what_is_kept_counts_and_what_is_given_back_does_not() {
        let (kept, bytes) = allocator::growth(|| {
            let mut kept = vec![0_u8; 1 << 20];
            kept.reserve_exact(1 << 28);
            drop(vec![0_u8; 1 << 30]);
            kept
        });
        let kept = kept.capacity().cast_signed();
        assert!((kept / 2..kept * 2).contains(&bytes), "{bytes}");
    }
}
