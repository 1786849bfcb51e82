//! Writing pages to the source, and giving pages back: under an exclusion of just those pages.
#![expect(unsafe_code, reason = "lends written pages to the source")]

use std::ops::Range;
use std::sync::Arc;
use std::thread;

use pervma::ChangeError;

use crate::Error;
use crate::copy;
use crate::mapping::{Mapping, PAGE, Piece, SPACE};
use crate::records::Records;
use crate::stats::Shard;
use crate::sys::Access;

/// Bytes that are written at a time at most: for so long faults in them wait.
const MOST: usize = 1 << 20;

/// Writes what was written in a part; returns the bytes.
pub(crate) fn write_back(mapping: &Arc<Mapping>, part: &Range<usize>) -> Result<usize, Error> {
    let (mut rest, mut bytes) = (part.clone(), 0);
    loop {
        let next = runs(mapping, &rest, Records::is_dirty).next();
        let Some(run) = next else { return Ok(bytes) };
        let write = |mapping: &Mapping, accesses: &Accesses| write_alone(mapping, &run, accesses);
        match isolated(mapping, &run, write)? {
            Some(written) => {
                bytes += written?;
                rest.start = run.end;
            }
            // Another thread is unmapping some of it, and its records go as well.
            None => thread::yield_now(),
        }
    }
}

/// Gives back what is clean in a run; how many pages went. It waits for faults, which are short, and
/// not for the source.
pub(crate) fn evict_clean(mapping: &Arc<Mapping>, run: &Range<usize>) -> Result<usize, Error> {
    // Nothing slow is done, so the whole VMA may wait for it.
    let evicted = excluded(mapping, run, |mapping, _| give_back_clean(mapping, run))?;
    let gone = evicted.map_or(Ok(0), |(gone, _)| gone)?;
    Shard::mine().count_evicted(gone);
    Ok(gone)
}

/// Writes what was written in a run and gives the run back, but for what cannot be written; how many
/// pages went, and why not all.
pub(crate) fn evict_dirty(mapping: &Arc<Mapping>, run: &Range<usize>) -> (usize, Option<Error>) {
    let evicted = isolated(mapping, run, |mapping, accesses| {
        let written = write_alone(mapping, run, accesses);
        (give_back_clean(mapping, run), written)
    });
    match evicted {
        Ok(Some((gone, written))) => {
            let pages = gone.as_ref().map_or(0, |&pages| pages);
            Shard::mine().count_evicted(pages);
            (pages, written.err().or(gone.err()))
        }
        // Another thread is unmapping some of it, and its pages go as well.
        Ok(None) => (0, None),
        Err(error) => (0, Some(error)),
    }
}

/// Makes pages of a run missing again that were poisoned for want of room.
pub(crate) fn take_back_poison(mapping: &Arc<Mapping>, run: &Range<usize>) -> Result<(), Error> {
    let taken = excluded(mapping, run, |mapping, _| {
        let mut refused = runs(mapping, run, Records::was_refused);
        refused.try_for_each(|run| mapping.give_back(&run).map_err(Error::Change))
    })?;
    taken.map_or(Ok(()), |(taken, _)| taken)
}

/// The runs of whole pages with a property, none longer than [`MOST`].
pub(crate) fn runs(
    mapping: &Mapping,
    part: &Range<usize>,
    property: impl Fn(&Records, usize) -> bool,
) -> impl Iterator<Item = Range<usize>> {
    let most = mapping.page_of(MOST).max(1);
    let runs = mapping.records.runs(mapping.pages(part), property);
    runs.flat_map(move |run| {
        let starts = run.clone().step_by(most);
        starts.map(move |start| mapping.offsets(start..(start + most).min(run.end)))
    })
}

/// What may be accessed where, of what is excluded.
type Accesses = [(Range<usize>, Access)];

/// Does `work` while nobody is inside of the VMAs of a part. `None` if it is not mapped any more.
fn excluded<V>(
    mapping: &Mapping,
    part: &Range<usize>,
    work: impl FnOnce(&Mapping, &Accesses) -> V,
) -> Result<Option<(V, pervma::Exclusion<'static, Piece>)>, Error> {
    let Some(alone) = if_mapped(|| SPACE.exclude(mapping.addresses(part)))? else {
        return Ok(None);
    };
    alone.wait();
    let accesses: Vec<_> = alone.iter().map(|(vma, piece)| (vma, piece.access)).collect();
    let done = work(mapping, &accesses);
    Ok(Some((done, alone)))
}

/// What `change` does, when nobody is mapping or unmapping any of its range; `None` if that is not
/// mapped any more.
fn if_mapped<V>(mut change: impl FnMut() -> Result<V, ChangeError>) -> Result<Option<V>, Error> {
    loop {
        match change() {
            Ok(done) => return Ok(Some(done)),
            Err(ChangeError::NotMapped { .. }) => return Ok(None),
            Err(ChangeError::Reserved { .. }) => thread::yield_now(),
            Err(error) => return Err(Error::Space(error.into())),
        }
    }
}

/// Does `work` as [`excluded`] does, with the part set off from its VMA: faults beside it do not
/// wait.
fn isolated<V>(
    mapping: &Mapping,
    part: &Range<usize>,
    work: impl FnOnce(&Mapping, &Accesses) -> V,
) -> Result<Option<V>, Error> {
    let addresses = mapping.addresses(part);
    let set_off = |_, piece: &Piece| Piece { is_isolated: true, ..piece.clone() };
    if if_mapped(|| SPACE.update(addresses.clone(), set_off))?.is_none() {
        return Ok(None);
    }
    let done = excluded(mapping, part, work);
    let done = done.map(|done| {
        done.map(|(done, alone)| {
            let back = |_, piece: &Piece| Piece { is_isolated: false, ..piece.clone() };
            // Without memory it stays apart, which nobody notices.
            let _ = alone.update(back);
            done
        })
    });
    mapping.join(&addresses);
    done
}

/// Writes the written pages of a part, which the caller has alone; returns the bytes. What comes
/// behind a failure is not tried.
fn write_alone(
    mapping: &Mapping,
    part: &Range<usize>,
    accesses: &Accesses,
) -> Result<usize, Error> {
    // Those who write now fault, and wait for the exclusion to end.
    mapping.write_protect(part).map_err(Error::Change)?;
    let mut bytes = 0;
    for run in runs(mapping, part, Records::is_dirty) {
        match write_run(mapping, &run, accesses) {
            Ok(written) => bytes += written,
            Err(error) => {
                mapping.records.mark_write_failed(mapping.pages(&run));
                return Err(error);
            }
        }
        mapping.records.mark_clean(mapping.pages(&run));
        Shard::mine().count_written_back(run.len() / PAGE);
    }
    Ok(bytes)
}

/// Writes a run of written pages, which the caller has alone and which are write-protected.
fn write_run(mapping: &Mapping, run: &Range<usize>, accesses: &Accesses) -> Result<usize, Error> {
    let addresses = mapping.addresses(run);
    let is_closed = |(vma, access): &(Range<usize>, Access)| {
        *access == Access::None && vma.start < addresses.end && addresses.start < vma.end
    };
    if accesses.iter().any(is_closed) {
        return Err(Error::NoAccess(run.clone()));
    }
    let inside = run.start..run.end.min(mapping.backing.len());
    // SAFETY: dirty pages are there (R2) and may be read, the caller has them alone, and they
    // are write-protected (contract).
    let written = unsafe { copy::alone(mapping, &inside) };
    let source = &mapping.backing.source;
    source.write_at(inside.start as u64, written).map_err(Error::WriteBack)?;
    Ok(inside.len())
}

/// Gives back the clean pages of a part, which the caller has alone; how many there were.
fn give_back_clean(mapping: &Mapping, part: &Range<usize>) -> Result<usize, Error> {
    let mut gone = 0;
    let is_clean = |records: &Records, page| records.is_present(page) && !records.is_dirty(page);
    for run in runs(mapping, part, is_clean) {
        mapping.give_back(&run).map_err(Error::Change)?;
        gone += run.len() / PAGE;
    }
    Ok(gone)
}
