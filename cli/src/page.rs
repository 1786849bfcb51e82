//! `pervma page`: every page of a file, touched by several threads in random order.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use pervma_pager::{FileSource, InSignal, OnFailure, Options, Region, Source, Stats};
use rand::RngExt;

use crate::args::{Mode, PageOptions};
use crate::churn::{Churned, churn};
use crate::error::{BAD_INPUT, Error};
use crate::input::{Input, PAGE, sha256};
use crate::mapped::Mapped;
use crate::memory;
use crate::order::Order;
use crate::progress::Progress;
use crate::report::{Compared, Report};
use crate::touch::{Touched, Touching, join};

/// When pages have not been faulted again for so long, they never will be often enough.
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes that the kernel and the pager keep for each page: an entry of a page table, a record.
const BESIDE_EACH_PAGE: u64 = 16;

/// The granules that must fit into a bound.
const LEAST_GRANULES: usize = 4;

/// Pages the file, and reports how long that took and whether the bytes match.
pub(crate) fn run(options: &PageOptions) -> Result<Report, Error> {
    let input = Input::open(options.file.as_deref())?;
    if options.compare {
        // Else what is measured first would wait for the disk, and what comes later would not.
        let len = usize::try_from(input.size()?).unwrap_or(usize::MAX);
        let progress = Progress::of("reading the file once", len);
        sha256(len, |at, bytes| input.read(at, bytes), |done| progress.done(done as u64))?;
    }
    let mapping = Progress::of_unknown("mapping the file");
    let (region, resident) = map(&input, options)?;
    drop(mapping);
    let (bytes, pages) = (region.len(), region.len().div_ceil(PAGE));
    // Only the churning thread reads the pages at the end.
    let own = if options.churn { bytes / 16 / PAGE * PAGE } else { 0 };
    let touched_bytes = if own == 0 { bytes } else { (bytes - own) / PAGE * PAGE };
    // No more threads than pages: the others would have nothing to touch.
    let threads = options.threads.or(thread::available_parallelism().ok());
    let threads = threads.map_or(1, NonZeroUsize::get).min(touched_bytes.div_ceil(PAGE));
    let order = Order::new(touched_bytes.div_ceil(PAGE), rand::rng().random());
    let touching = Touching { input: &input, len: touched_bytes, threads, order };

    let before = pervma_pager::stats();
    let (touched, churned) = if options.churn {
        churn_beside(&touching, &region, touched_bytes..bytes, before)?
    } else {
        let progress = Progress::of("touching", pages);
        (touching.run(&region, &progress)?, None)
    };
    let first_faults = (pervma_pager::stats() - before).faults;
    let (region_sha256, file_sha256) = hash(&region, &input)?;
    let (serves_system_calls, most_resident) =
        (region.serves_system_calls(), region.most_resident());
    // All of its faults are counted then.
    drop(region);
    let counted = pervma_pager::stats() - before;
    if input.size()? < bytes as u64 {
        return Err(Error::Shortened { file: input.path });
    }
    let compared = if options.compare { compare(&touching, &touched)? } else { Vec::new() };
    Ok(Report {
        sha256: region_sha256,
        file_sha256,
        file: input.path,
        bytes,
        pages,
        threads,
        mode: options.mode,
        granule: options.granule.bytes(),
        serves_system_calls,
        resident,
        chosen: resident.is_some() && options.resident.is_none(),
        most_resident,
        first_faults: if resident.is_none() && !options.churn {
            counted.faults
        } else {
            first_faults
        },
        touched,
        counted,
        churned,
        compared,
    })
}

/// Maps the file, if there is memory for it; returns the bound as well, if there is one.
fn map(input: &Input, options: &PageOptions) -> Result<(Region, Option<usize>), Error> {
    let granule = options.granule.bytes();
    let least = LEAST_GRANULES * granule;
    if let Some(bytes) = options.resident.filter(|bytes| *bytes < least) {
        return Err(Error::Resident { bytes, granule, least });
    }
    let file = input.reopen()?;
    let source = FileSource::new(file)
        .map_err(|reason| Error::Source { file: input.path.clone(), reason })?;
    let bytes = source.size();
    let beside = bytes.div_ceil(PAGE as u64).saturating_mul(BESIDE_EACH_PAGE);
    let available = memory::available();
    let resident = options.resident.or_else(|| {
        // A file that is larger than memory is paged as well. Half of the memory is left to others.
        let half = available.filter(|available| bytes.saturating_add(beside) > *available)? / 2;
        usize::try_from(half / PAGE as u64 * PAGE as u64).ok().map(|half| half.max(least))
    });
    let at_a_time = resident.map_or(bytes, |resident| bytes.min(resident as u64));
    let needed = at_a_time.saturating_add(beside);
    if let Some(available) = available
        && needed > available
    {
        let file = input.path.clone();
        return Err(Error::TooLarge { file, bytes, resident: at_a_time, needed, available });
    }
    // Leaked: the process ends when it is used.
    let gone = Box::leak(
        format!("pervma: {}\n", Error::Shortened { file: input.path.clone() }).into_boxed_str(),
    );
    let how: Options<InSignal> =
        Options::new().granule(granule).on_failure(OnFailure::exit(BAD_INPUT.into(), gone));
    let how = resident.map_or(how.clone(), |bytes| how.resident(bytes));
    let region = match options.mode {
        Mode::Signal => how.map(source)?,
        Mode::Thread => how.handler_threads(1).map(source)?,
    };
    Ok((region, resident))
}

/// Hashes what is in the region and what ordinary reads get, both in order and at the same time.
fn hash(region: &Region, input: &Input) -> Result<(String, String), Error> {
    let len = region.len();
    let progress = Progress::of("hashing", len);
    thread::scope(|scope| {
        let of_region = || {
            let read = |at: usize, bytes: &mut [u8]| {
                region.read(at, bytes);
                Ok(())
            };
            sha256(len, read, |done| progress.done(done as u64))
        };
        let of_region = thread::Builder::new().spawn_scoped(scope, of_region);
        let of_region = of_region.map_err(|reason| Error::Thread { number: 1, reason })?;
        let of_file = sha256(len, |at, bytes| input.read(at, bytes), |_| ());
        Ok((join(of_region.join())?, of_file?))
    })
}

/// Touches the pages while another thread changes the region, and goes on reading them until
/// enough has been faulted again. Only the other thread reads `own`.
fn churn_beside(
    touching: &Touching<'_>,
    region: &Region,
    own: Range<usize>,
    before: Stats,
) -> Result<(Touched, Option<Churned>), Error> {
    let &Touching { input, threads, .. } = touching;
    let pages = region.len().div_ceil(PAGE);
    let done = OnceLock::new();
    thread::scope(|scope| {
        // After an error as well, so that no thread waits for ever.
        let ending = Ending(&done);
        let churning = || churn(region, own, input, &done);
        let churner = thread::Builder::new().spawn_scoped(scope, churning);
        let churner = churner.map_err(|reason| Error::Thread { number: threads + 1, reason })?;
        let progress = Progress::of("touching while mappings change", pages);
        let mut touched = touching.run(region, &progress)?;
        drop(progress);

        let progress = Progress::of("reading again what was discarded", pages.div_ceil(10));
        let readers: Result<Vec<_>, _> = (0..threads)
            .map(|number| {
                let done = &done;
                let read = move || reread(touching, region, number, done);
                let reader = thread::Builder::new().spawn_scoped(scope, read);
                reader.map_err(|reason| Error::Thread { number: number + 1, reason })
            })
            .collect();
        wait_for_churn(before, pages, &progress);
        drop(ending);
        for reader in readers? {
            touched.matches &= join(reader.join())?;
        }
        Ok((touched, Some(join(churner.join())?)))
    })
}

/// Reads a thread's share of the pages again, at least once and then until `done`; returns whether
/// they always had the bytes of the file.
fn reread(
    touching: &Touching<'_>,
    region: &Region,
    number: usize,
    done: &OnceLock<()>,
) -> Result<bool, Error> {
    let count = touching.len.div_ceil(PAGE);
    let (mut page, mut expected, mut matches) = ([0; PAGE], [0; PAGE], true);
    let mut first = true;
    while first || done.get().is_none() {
        for index in (number..count).step_by(touching.threads) {
            if !first && done.get().is_some() {
                break;
            }
            let at = touching.order.at(index) * PAGE;
            let len = PAGE.min(touching.len - at);
            let (page, expected) = (&mut page[..len], &mut expected[..len]);
            region.read(at, page);
            touching.input.read(at, expected)?;
            matches &= page == expected;
        }
        first = false;
    }
    Ok(matches)
}

/// Waits until enough pages were faulted again, or until none has been for a while.
fn wait_for_churn(before: Stats, pages: usize, progress: &Progress) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let counted = pervma_pager::stats() - before;
        if Report::is_churned(&counted, pages) {
            return;
        }
        let again = counted.pages.saturating_sub(pages as u64);
        progress.done(again);
        if again > last {
            (last, since) = (again, Instant::now());
        } else if since.elapsed() > PATIENCE {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Tells the other threads to end.
struct Ending<'a>(&'a OnceLock<()>);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.get_or_init(|| ());
    }
}

/// Touches the same pages in the same order in the kernel's mapping and by ordinary reads.
fn compare(touching: &Touching<'_>, region: &Touched) -> Result<Vec<Compared>, Error> {
    let &Touching { input, len, .. } = touching;
    let pages = len.div_ceil(PAGE);
    let mapped = Mapped::new(input.file(), len)?;
    let by_mmap =
        touching.run(&mapped, &Progress::of("touching in the kernel's mapping", pages))?;
    let by_read = touching.run(input, &Progress::of("reading", pages))?;
    let compared = |name, touched| Compared { name, len, touched };
    Ok(vec![
        compared("pervma", region.clone()),
        compared("mmap", by_mmap),
        compared("read", by_read),
    ])
}
