//! Writing pages to the source, and giving pages back: under an exclusion of just those pages.
#![expect(unsafe_code, reason = "lends written pages to the source")]

use std::ops::Range;
use std::sync::Arc;
use std::thread;

use pervma::ChangeError;

use crate::Error;
use crate::accesses::Accesses;
use crate::copy;
use crate::leaving::{From, Leaving};
use crate::mapping::{Mapping, PAGE, Piece, SPACE};
use crate::records::Records;
use crate::staging::Staging;
use crate::stats::Shard;
use crate::sys::{Access, Errno};
use crate::taken::{Fate, TakenOut};

/// Bytes that are written at a time at most: for so long faults in them wait.
const MOST: usize = Staging::BYTES;

/// What becomes of pages once they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Stay,
    Go,
}

/// What came of writing.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) bytes: usize,
    /// So many pages were given back.
    pub(crate) gone: usize,
    /// Some pages are held for a device: they stay, and stay to be written.
    pub(crate) was_held: bool,
    /// Why not all could be written. What comes behind it was not tried.
    pub(crate) error: Option<Error>,
}

/// Writes what was written in a part; returns the bytes.
pub(crate) fn write_back(mapping: &Arc<Mapping>, part: &Range<usize>) -> Result<usize, Error> {
    let (mut rest, mut bytes) = (part.clone(), 0);
    loop {
        let next = runs(mapping, &rest, Records::is_dirty).next();
        let Some(run) = next else { return Ok(bytes) };
        let write = |mapping: &Mapping, accesses: &Accesses<'_>| {
            write_excluded(mapping, &run, accesses, Then::Stay)
        };
        match isolated(mapping, &run, write)? {
            Some(written) => {
                // Where the bound left no copies.
                Shard::mine().count_evicted(written.gone);
                if let Some(error) = written.error {
                    return Err(error);
                }
                bytes += written.bytes;
                rest.start = run.end;
            }
            // Another thread is unmapping some of it, and its records go as well.
            None => thread::yield_now(),
        }
    }
}

/// Gives back what is clean in some runs, which are in order; how many pages went. It waits for
/// faults, which are short, and for whatever excludes a part from the first run to the last.
pub(crate) fn evict_clean(mapping: &Arc<Mapping>, runs: &[Range<usize>]) -> Result<usize, Error> {
    let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(0) };
    // Nothing slow is done, so whole VMAs may wait for it.
    let evicted = excluded(mapping, &(first.start..last.end), |mapping, accesses| {
        let mut gone = 0;
        for run in runs {
            gone += give_back_clean(mapping, run, accesses)?;
        }
        Ok::<_, Error>(gone)
    })?;
    let gone = evicted.map_or(Ok(0), |(gone, _)| gone)?;
    Shard::mine().count_evicted(gone);
    Ok(gone)
}

/// Writes what was written in a run and gives the run back, but for what cannot be written or is
/// held.
pub(crate) fn evict_dirty(mapping: &Arc<Mapping>, run: &Range<usize>) -> Written {
    let evicted = isolated(mapping, run, |mapping, accesses| {
        let mut written = write_excluded(mapping, run, accesses, Then::Go);
        // What was clean, or could not be taken out to be written.
        match give_back_clean(mapping, run, accesses) {
            Ok(gone) => written.gone += gone,
            Err(error) => written.error = written.error.or(Some(error)),
        }
        written
    });
    let written = match evicted {
        Ok(Some(written)) => written,
        // Another thread is unmapping some of it, and its pages go as well.
        Ok(None) => Written::default(),
        Err(error) => Written { error: Some(error), ..Written::default() },
    };
    // The run was set off from what its tables are for too. Left, they go another time.
    let whole = mapping.offsets(mapping.records.whole_blocks(&mapping.pages(run)));
    let _ = excluded(mapping, &whole, |_, accesses| accesses.give_back_tables(run));
    Shard::mine().count_evicted(written.gone);
    written
}

/// Makes pages of a run missing again that were poisoned because the bound was reached.
pub(crate) fn take_back_poison(mapping: &Arc<Mapping>, run: &Range<usize>) -> Result<(), Error> {
    let taken = excluded(mapping, run, |mapping, accesses| {
        accesses.mapped_of(run).try_for_each(|(part, _)| {
            let mut refused = runs(mapping, &part, Records::was_refused);
            refused.try_for_each(|run| mapping.give_back(&run).map_err(Error::Change))
        })
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

/// Does `work` while the VMAs of a part are excluded. `None` if it is not mapped any more.
fn excluded<V>(
    mapping: &Mapping,
    part: &Range<usize>,
    work: impl FnOnce(&Mapping, &Accesses<'_>) -> V,
) -> Result<Option<(V, pervma::Exclusion<'static, Piece>)>, Error> {
    let Some(exclusion) = if_mapped(mapping, || SPACE.exclude(mapping.addresses(part)))? else {
        return Ok(None);
    };
    exclusion.wait();
    let accesses = Accesses::of(&exclusion, mapping)?;
    let done = work(mapping, &accesses);
    Ok(Some((done, exclusion)))
}

/// What `change` does, when no thread is mapping or unmapping any of its range; `None` if that is
/// not mapped any more.
fn if_mapped<V>(
    mapping: &Mapping,
    mut change: impl FnMut() -> Result<V, ChangeError>,
) -> Result<Option<V>, Error> {
    let base = mapping.memory.range().start;
    loop {
        match change() {
            Ok(done) => return Ok(Some(done)),
            Err(ChangeError::NotMapped { .. }) => return Ok(None),
            Err(ChangeError::Reserved { .. }) => thread::yield_now(),
            Err(error) => return Err(Error::of_change(error, base)),
        }
    }
}

/// Does `work` as [`excluded`] does, with the part set off from its VMA: faults beside it do not
/// wait.
fn isolated<V>(
    mapping: &Mapping,
    part: &Range<usize>,
    work: impl FnOnce(&Mapping, &Accesses<'_>) -> V,
) -> Result<Option<V>, Error> {
    let addresses = mapping.addresses(part);
    let set_off = |_, piece: &Piece| Piece { is_isolated: true, ..piece.clone() };
    if if_mapped(mapping, || SPACE.update(addresses.clone(), set_off))?.is_none() {
        return Ok(None);
    }
    let done = excluded(mapping, part, work);
    let done = done.map(|done| {
        done.map(|(done, exclusion)| {
            let back = |_, piece: &Piece| Piece { is_isolated: false, ..piece.clone() };
            // Without memory it stays apart, which no thread notices.
            let _ = exclusion.update(back);
            done
        })
    });
    mapping.merge_back(&addresses);
    done
}

/// Writes the written pages of a part, which the caller excludes.
fn write_excluded(
    mapping: &Mapping,
    part: &Range<usize>,
    accesses: &Accesses<'_>,
    then: Then,
) -> Written {
    let mut written = Written::default();
    let is_to_write = |records: &Records, page| {
        records.is_dirty(page) && !(then == Then::Go && records.is_held(page))
    };
    for run in runs(mapping, part, is_to_write) {
        for (run, access) in accesses.mapped_of(&run) {
            for (run, is_pinned) in by_pins(mapping, &run) {
                let done = if access == Access::None {
                    Err(Error::NoAccess(run.clone()))
                } else if is_pinned {
                    write_as_it_is(mapping, &run, &mut written)
                } else {
                    write_run(mapping, &run, access, then, &mut written)
                };
                if let Err(error) = done {
                    mapping.records.mark_stuck(mapping.pages(&run));
                    written.error = Some(error);
                    return written;
                }
            }
        }
    }
    written
}

/// The parts of a run that the caller excludes, and whether they are pinned.
fn by_pins(mapping: &Mapping, run: &Range<usize>) -> Vec<(Range<usize>, bool)> {
    let (mut parts, mut rest) = (Vec::new(), mapping.pages(run));
    while let Some(pinned) = mapping.holds.pinned(&rest) {
        parts.push((rest.start..pinned.start, false));
        rest.start = pinned.end;
        parts.push((pinned, true));
    }
    parts.push((rest, false));
    parts.retain(|(pages, _)| !pages.is_empty());
    parts.into_iter().map(|(pages, is_pinned)| (mapping.offsets(pages), is_pinned)).collect()
}

/// Writes a run of written pages, which the caller excludes and which may be accessed alike.
fn write_run(
    mapping: &Mapping,
    run: &Range<usize>,
    access: Access,
    then: Then,
    written: &mut Written,
) -> Result<(), Error> {
    let staging = mapping.backing.staging.as_ref();
    // What is to be moved must be let be written, and code that runs there may not meanwhile.
    let Some(staging) = staging.filter(|_| access != Access::ReadExecute) else {
        return write_in_place(mapping, run, written);
    };
    // Copies of them stay, if the bound lets them be present.
    let copies = Copies::take(mapping, if then == Then::Stay { run.len() } else { 0 });
    let stays = then == Then::Stay && copies.is_some();
    let opened = Opened::new(mapping, run, access).map_err(Error::Change)?;
    let mut out = TakenOut::new(mapping, staging, run.start).map_err(Error::Change)?;
    let fates = out.take(run);
    if stays {
        for (part, _) in fates.iter().filter(|(_, fate)| *fate == Fate::Out) {
            out.put_copies(part).map_err(Error::Change)?;
        }
        // As it was, before anything slow is done.
        drop(opened);
    }
    for (part, fate) in fates {
        let pages = mapping.pages(&part);
        match fate {
            Fate::Out => {
                written.bytes += store(mapping, &part, out.bytes(&part))?;
                if stays {
                    mapping.records.mark_clean(pages);
                } else {
                    let leaving = Leaving::new(mapping, &part, From::Bytes(out.bytes(&part)));
                    mapping.forget(&part);
                    leaving.have_gone();
                    out.settle(&part);
                    written.gone += part.len() / PAGE;
                }
            }
            // And once more when it is not held any more.
            Fate::Held if then == Then::Stay => write_as_it_is(mapping, &part, written)?,
            Fate::Held => {
                mapping.records.mark_stuck(pages);
                written.was_held = true;
            }
            Fate::Missing => mapping.forget(&part),
            Fate::Fixed => write_in_place(mapping, &part, written)?,
        }
    }
    Ok(())
}

/// Writes pages as they are now, and leaves them where they are and to be written: a device may
/// write them, or a system call for which they are pinned.
fn write_as_it_is(
    mapping: &Mapping,
    part: &Range<usize>,
    written: &mut Written,
) -> Result<(), Error> {
    let mut bytes = vec![0; part.len()];
    copy::from_shared(&mapping.memory, part.start, &mut bytes);
    written.bytes += store(mapping, part, &bytes)?;
    written.was_held = true;
    Ok(())
}

/// Writes pages where they are, as the kernel cannot move them: nothing tells then whether a device
/// writes them.
fn write_in_place(
    mapping: &Mapping,
    run: &Range<usize>,
    written: &mut Written,
) -> Result<(), Error> {
    // Threads that write now fault, and wait for the exclusion to end.
    mapping.write_protect(run).map_err(Error::Change)?;
    // SAFETY: dirty pages are present (R2) and may be read, the caller excludes them, and they have
    // just been write-protected.
    let bytes = unsafe { copy::excluded_pages(mapping, run) };
    written.bytes += store(mapping, run, bytes)?;
    mapping.records.mark_clean(mapping.pages(run));
    Ok(())
}

/// Has the source store the bytes of a run, but for what lies behind the region's length; how many
/// bytes that were.
fn store(mapping: &Mapping, run: &Range<usize>, bytes: &[u8]) -> Result<usize, Error> {
    let inside = run.end.min(mapping.backing.len()).saturating_sub(run.start);
    let source = &mapping.backing.source;
    source.write_at(run.start as u64, &bytes[..inside]).map_err(Error::WriteBack)?;
    mapping.backing.counters.mine().written_back.add(run.len() / PAGE);
    Shard::mine().count_written_back(run.len() / PAGE);
    Ok(inside)
}

/// A run that is let be written while its pages are moved.
struct Opened<'m> {
    mapping: &'m Mapping,
    /// What it was before; `None` if it was that.
    before: Option<(Range<usize>, Access)>,
}

impl<'m> Opened<'m> {
    fn new(mapping: &'m Mapping, run: &Range<usize>, access: Access) -> Result<Self, Errno> {
        let mut opened = Self { mapping, before: None };
        if access != Access::ReadWrite {
            // Threads that write meanwhile, though they may not, fault, and wait for the exclusion
            // to end.
            mapping.write_protect(run)?;
            opened.before = Some((run.clone(), access));
            mapping.memory.protect(run.clone(), Access::ReadWrite)?;
        }
        Ok(opened)
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if let Some((run, access)) = self.before.take() {
            // It only undoes, so the kernel needs no more mappings for it than it had.
            let _ = self.mapping.memory.protect(run, access);
        }
    }
}

/// Budget for copies of pages, while both are present.
struct Copies<'m> {
    mapping: &'m Mapping,
    pages: usize,
}

impl<'m> Copies<'m> {
    fn take(mapping: &'m Mapping, bytes: usize) -> Option<Self> {
        let pages = bytes / PAGE;
        let share = mapping.backing.share.as_ref();
        // Only what was taken is given back.
        share.is_none_or(|share| share.take_now(pages)).then(|| Self { mapping, pages })
    }
}

impl Drop for Copies<'_> {
    fn drop(&mut self) {
        if let Some(share) = &self.mapping.backing.share {
            share.give(self.pages);
        }
    }
}

/// Gives back the clean pages of a part, which the caller excludes where it is mapped; how many
/// there were.
fn give_back_clean(
    mapping: &Mapping,
    part: &Range<usize>,
    accesses: &Accesses<'_>,
) -> Result<usize, Error> {
    let mut gone = 0;
    for (part, access) in accesses.mapped_of(part) {
        let from = if access == Access::None { From::Nowhere } else { From::Region };
        for run in runs(mapping, &part, Records::is_evictable) {
            let leaving = Leaving::new(mapping, &run, from);
            mapping.give_back(&run).map_err(Error::Change)?;
            leaving.have_gone();
            gone += run.len() / PAGE;
        }
    }
    accesses.give_back_tables(part);
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemorySource, Options};

    /// Another thread may have unmapped a part of what is to go, and another one may have mapped it
    /// again and be filling it.
    #[test]
    fn what_is_not_excluded_is_left_alone() {
        let source = MemorySource::new(vec![1; 4 * PAGE]);
        let region = Options::new().writable().map(source).unwrap();
        let all = 0..region.len();
        let mapping = SPACE.try_read(region.as_ptr().addr()).map(|vma| Arc::clone(&vma.mapping));
        let mapping = mapping.unwrap();
        region.read(0, &mut vec![0; all.len()]);
        region.unmap(PAGE..2 * PAGE).unwrap();
        mapping.records.fill(1..2, false, None);
        assert_eq!(evict_clean(&mapping, std::slice::from_ref(&all)).unwrap(), 3);
        assert!(mapping.records.is_present(1), "it was filled by then");
        mapping.records.forget(1..2);
        mapping.records.mark_failed(1, true);
        take_back_poison(&mapping, &all).unwrap();
        assert!(mapping.records.was_refused(1), "it was refused by then");
    }
}
