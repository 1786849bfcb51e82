//! Lookups for a span of time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::maps::Reader;

/// Looks the addresses up again and again for a span of time, with a look at the clock after each
/// `stretch` of them; ns a lookup.
pub(super) fn pace(
    reader: &mut impl Reader,
    addresses: &[usize],
    stretch: usize,
    span: Duration,
) -> f64 {
    let (mut done, start) = (0, Instant::now());
    loop {
        for stretch in addresses.chunks(stretch) {
            for &addr in stretch {
                black_box(reader.read(addr));
            }
            done += stretch.len();
            let elapsed = start.elapsed();
            if elapsed >= span {
                return elapsed.as_nanos() as f64 / done as f64;
            }
        }
    }
}
