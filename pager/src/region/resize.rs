//! Making a region shorter or longer, and moving it.

use std::ops::Range;
use std::sync::Arc;

use pervma::Exclusion;

use super::Region;
use crate::accesses::Accesses;
use crate::mapping::{Mapping, Outcome, Piece};
use crate::records::Records;
use crate::signal::SignalsBlocked;
use crate::sys::{Access, Errno};
use crate::{Error, copy};

impl Region {
    /// Makes the region shorter or longer. When it becomes longer than its
    /// [capacity](Self::capacity) it moves; otherwise it stays where it is.
    ///
    /// What it loses is unmapped. What it gains is mapped as after the region was made; the source
    /// must have that many bytes by now. What it gains in the page in which it ended is the
    /// source's as well, also if that page was written: no code may run in it meanwhile.
    ///
    /// # Errors
    ///
    /// When the source is too short or fails, or the length is 0; when a [`Pin`](crate::Pin) of
    /// what would go or move was leaked; when the kernel or memory run out.
    #[doc(alias = "mremap")]
    pub fn resize(&mut self, len: usize) -> Result<(), Error> {
        let bytes = self.mapping.backing.source.size();
        let before = self.len();
        if len == 0 {
            return Err(Error::Empty);
        }
        if len > before && len as u64 > bytes {
            return Err(Error::BeyondSource { bytes });
        }
        if len > self.capacity() {
            self.relocate(len)?;
        }
        let page = self.page_size();
        let (mapped, wanted) = (before.next_multiple_of(page), len.next_multiple_of(page));
        if len < before {
            if wanted < mapped {
                match self.unmap(wanted..before) {
                    Ok(()) | Err(Error::NotMapped(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            self.mapping.backing.set_len(len);
            return Ok(());
        }
        let last = mapped - page..mapped;
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        match self.exclude(&last) {
            Ok(exclusion) => {
                self.check_pins(&last)?;
                let is_dirty =
                    self.mapping.records.has_any(self.mapping.pages(&last), Records::is_dirty);
                if before < mapped {
                    if is_dirty {
                        self.read_behind(before..len.min(mapped), &exclusion)?;
                    } else {
                        self.mapping.give_back(&last).map_err(Error::Change)?;
                    }
                }
                self.mapping.backing.set_len(len);
                drop(exclusion);
            }
            Err(Error::NotMapped(_)) => self.mapping.backing.set_len(len),
            Err(error) => return Err(error),
        }
        if mapped < wanted
            && let Err(error) = self.map(mapped..len)
        {
            self.mapping.backing.set_len(before);
            return Err(error);
        }
        Ok(())
    }

    /// Reads from the source what lies behind the region's end so far, in its last page, which was
    /// written and is excluded.
    fn read_behind(
        &self,
        behind: Range<usize>,
        exclusion: &Exclusion<'static, Piece>,
    ) -> Result<(), Error> {
        let mut bytes = vec![0; behind.len()];
        let source = &self.mapping.backing.source;
        source.read_at(behind.start as u64, &mut bytes).map_err(|_| Error::ReadFailed)?;
        let before = Accesses::of(exclusion, &self.mapping)?;
        before.change(Access::ReadWrite)?;
        let page = self.mapping.page_at(behind.start);
        let outcome = self.mapping.let_write(&page);
        if outcome == Outcome::Done {
            copy::to_shared(&self.mapping.memory, behind.start, &bytes);
        }
        before.restore();
        if outcome == Outcome::Done { Ok(()) } else { Err(Error::Change(Errno::AGAIN)) }
    }

    /// Moves the region to other addresses, with space for `capacity` bytes there, and at least for
    /// its length. What was written and not [written back](Self::write_back) moves, and is present
    /// twice until all has moved, also beyond a [bound](crate::Options::resident); other pages are
    /// filled from the source again.
    ///
    /// Accesses to the old addresses are SIGSEGV from now on, until something else is mapped there.
    ///
    /// # Errors
    ///
    /// When a [`Pin`](crate::Pin) was leaked; when the kernel or memory run out.
    #[doc(alias = "mremap")]
    pub fn relocate(&mut self, capacity: usize) -> Result<(), Error> {
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        let old = Arc::clone(&self.mapping);
        self.check_pins(&old.whole())?;
        let page = self.page_size();
        let len = self.len().next_multiple_of(page);
        let new = Mapping::new(Arc::clone(&old.backing), None, capacity.max(len))?;
        let new = Arc::new(new);
        // The evictor and the writer would work at the old place.
        let mut place = self.place.write();
        let copied = match self.exclude(&(0..len)) {
            // All of it is unmapped.
            Err(Error::NotMapped(_)) => 0,
            Err(error) => return Err(error),
            Ok(exclusion) => self.move_excluded(&new, exclusion)?,
        };
        old.have_gone(old.records.count(Records::is_present).saturating_sub(copied));
        *place = Arc::clone(&new);
        drop(place);
        self.mapping = new;
        Ok(())
    }

    /// Moves what is excluded, and says how many pages were copied.
    fn move_excluded(
        &self,
        new: &Arc<Mapping>,
        exclusion: Exclusion<'static, Piece>,
    ) -> Result<usize, Error> {
        let old = &self.mapping;
        let before = Accesses::of(&exclusion, old)?;
        new.records.begin_later();
        let copied = before.make_readable().and_then(|()| copy::dirty_pages(old, new));
        let moved = copied.map_err(Error::Change).and_then(|copied| {
            for (part, access) in before.mapped() {
                new.memory.protect(part, access).map_err(Error::Change)?;
            }
            let to = new.memory.range().start;
            let moved = exclusion.relocate(to, |_, piece| Piece {
                mapping: Arc::clone(new),
                access: piece.access,
                is_isolated: false,
            });
            moved.map(|_old| copied).map_err(|error| self.of_change(error))
        });
        if moved.is_err() {
            before.restore();
        }
        moved
    }
}
