//! Memory: of a VMA, of an empty space, and after many changes.

use crate::allocator;
use crate::comparison::{Bound, Effort, Goal};
use crate::layout::{self, Build, Layout};
use crate::maps::{Find, Map, Pervma, each_map};
use crate::report::{Figures, Table};
use crate::summary::Summary;

const SIZES: [usize; 2] = [1_000, 65_000];

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
    for size in SIZES {
        let mut figures = Vec::new();
        each_map!(M => {
            let each = (bytes::<M>(size) - bytes::<M>(0)) / size as f64;
            figures.push((M::NAME, Some(Summary::exactly(each))));
        });
        table.case(format!("a VMA, of {size}"), figures);
    }

    let pairs = effort.pairs;
    let layout = Layout { vmas: SIZES[0] };
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
    let goal = Goal::new(
        format!("growth over {pairs} pairs of insert + remove, bytes"),
        Bound::AtMost(0.0),
        growth,
    );
    let about = "Bytes asked of the allocator by VMAs with a payload of 8 bytes, in random order; an empty \
                 map includes the value itself. pervma takes memory in chunks that double, so the figure of \
                 a VMA depends on how full the last is.";
    (about, vec![table, changes], vec![goal])
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
