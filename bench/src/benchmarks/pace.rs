//! Operations for a span of time.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::maps::Reader;

/// Looks the addresses up again and again for a span of time, as [`pace_of`] does; ns a lookup.
pub(super) fn pace(
    reader: &mut impl Reader,
    addresses: &[usize],
    stretch: usize,
    span: Duration,
) -> f64 {
    pace_of(addresses, stretch, span, |&addr| {
        black_box(reader.read(addr));
    })
}

/// Goes through the inputs again and again for a span of time, with a look at the clock after each
/// `stretch` of them; ns an operation.
pub(super) fn pace_of<T>(
    inputs: &[T],
    stretch: usize,
    span: Duration,
    mut operation: impl FnMut(&T),
) -> f64 {
    let (mut done, start) = (0, Instant::now());
    loop {
        for stretch in inputs.chunks(stretch) {
            stretch.iter().for_each(&mut operation);
            done += stretch.len();
            let elapsed = start.elapsed();
            if elapsed >= span {
                return elapsed.as_nanos() as f64 / done as f64;
            }
        }
    }
}

/// What a thread does at the places that it is given: for a span of time, ns an operation.
pub(super) type Paced<'a> = Box<dyn FnMut(&[usize], Duration) -> f64 + Send + 'a>;

/// What is timed, in spans, after one that is not: both threads are running then, and the scheduler
/// has found a processor for each.
const SPANS: u32 = 3;

/// Operations per µs of the first thread, and of both.
pub(super) fn throughput(
    mut threads: [Paced<'_>; 2],
    span: Duration,
) -> impl FnMut(&[Vec<usize>; 2]) -> Vec<f64> {
    move |places| [1, 2].map(|count| rate(&mut threads[..count], places, span)).to_vec()
}

fn rate(paced: &mut [Paced<'_>], places: &[Vec<usize>; 2], span: Duration) -> f64 {
    let start = &Barrier::new(paced.len());
    thread::scope(|threads| {
        let run = |(paced, places): (&mut Paced<'_>, &[usize])| {
            start.wait();
            paced(places, span);
            1e3 / paced(places, SPANS * span)
        };
        let workers: Vec<_> = paced
            .iter_mut()
            .zip(places)
            .map(|(paced, places)| threads.spawn(move || run((paced, places))))
            .collect();
        // A thread that has panicked has said so.
        workers.into_iter().map(|worker| worker.join().unwrap_or(f64::NAN)).sum()
    })
}
