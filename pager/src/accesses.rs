//! What may be accessed where, in a part of a region that is excluded.

use std::ops::Range;

use pervma::Exclusion;

use crate::Error;
use crate::mapping::{Mapping, Piece};
use crate::records::Records;
use crate::sys::{Access, Errno};

/// What may be accessed in a part of a region that is excluded, to change it and to change it back.
pub(crate) struct Accesses<'m> {
    mapping: &'m Mapping,
    /// All of it, in order; `None` where nothing is mapped.
    parts: Vec<(Range<usize>, Option<Access>)>,
    /// What is excluded with it, and mapped without a gap: its VMAs, which may reach beyond it.
    excluded: Vec<Range<usize>>,
}

impl<'m> Accesses<'m> {
    pub(crate) fn of(
        exclusion: &Exclusion<'static, Piece>,
        mapping: &'m Mapping,
    ) -> Result<Self, Error> {
        let within = exclusion.range();
        let mut parts = Vec::new();
        let most = 2 * exclusion.iter().count() + 1;
        parts.try_reserve_exact(most).map_err(|_| Error::Change(Errno::NOMEM))?;
        let mut excluded: Vec<Range<usize>> = Vec::new();
        excluded.try_reserve_exact(most).map_err(|_| Error::Change(Errno::NOMEM))?;
        let mut next = within.start;
        for (vma, piece) in exclusion.iter() {
            let all = mapping.offset_of(vma.start)..mapping.offset_of(vma.end);
            match excluded.last_mut() {
                Some(last) if last.end == all.start => last.end = all.end,
                _ => excluded.push(all),
            }
            let vma = vma.start.max(within.start)..vma.end.min(within.end);
            parts.push((next..vma.start, None));
            next = vma.end;
            parts.push((vma, Some(piece.access)));
        }
        parts.push((next..within.end, None));
        parts.retain(|(part, _)| !part.is_empty());
        for (part, _) in &mut parts {
            *part = mapping.offset_of(part.start)..mapping.offset_of(part.end);
        }
        Ok(Self { mapping, parts, excluded })
    }

    /// The first part that is not mapped.
    pub(crate) fn gap(&self) -> Option<Range<usize>> {
        self.parts.iter().find(|(_, access)| access.is_none()).map(|(part, _)| part.clone())
    }

    /// What is mapped.
    pub(crate) fn mapped(&self) -> impl Iterator<Item = (Range<usize>, Access)> {
        self.parts.iter().filter_map(|(part, access)| Some((part.clone(), (*access)?)))
    }

    /// What is mapped of a part. The rest is not excluded: another thread may map and fill it.
    pub(crate) fn mapped_of(
        &self,
        part: &Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, Access)> {
        let within = move |(mapped, access): (Range<usize>, Access)| {
            (mapped.start.max(part.start)..mapped.end.min(part.end), access)
        };
        self.mapped().map(within).filter(|(mapped, _)| !mapped.is_empty())
    }

    /// Changes what is mapped, all of it or nothing.
    pub(crate) fn change(&self, access: Access) -> Result<(), Error> {
        for (part, _) in self.mapped() {
            if let Err(errno) = self.mapping.memory.protect(part, access) {
                self.restore();
                return Err(match (access, errno) {
                    (Access::ReadExecute, Errno::ACCESS | Errno::PERM) => {
                        Error::NotExecutable(errno)
                    }
                    _ => Error::Change(errno),
                });
            }
        }
        Ok(())
    }

    /// Gives back the pages of what is mapped, and tables that are for nothing any more.
    pub(crate) fn give_back(&self) -> Result<(), Errno> {
        self.give_back_pages()?;
        self.mapped().for_each(|(part, _)| self.give_back_tables(&part));
        Ok(())
    }

    /// As [`give_back`](Self::give_back), of what was unmapped since: only that is still reserved.
    pub(crate) fn give_back_unmapped(&self) -> Result<(), Errno> {
        self.give_back_pages()?;
        self.mapped().for_each(|(part, _)| self.mapping.give_back_tables(&part, &part));
        Ok(())
    }

    fn give_back_pages(&self) -> Result<(), Errno> {
        self.mapped().try_for_each(|(part, _)| self.mapping.give_back(&part))
    }

    /// Gives back the tables of a part that are for nothing any more, where it is excluded.
    pub(crate) fn give_back_tables(&self, part: &Range<usize>) {
        let touches = |all: &&Range<usize>| all.start < part.end && part.start < all.end;
        for excluded in self.excluded.iter().filter(touches) {
            self.mapping.give_back_tables(part, excluded);
        }
    }

    /// Lets what was written be read.
    pub(crate) fn make_readable(&self) -> Result<(), Errno> {
        let records = &self.mapping.records;
        for (part, access) in self.mapped() {
            if access == Access::None
                && records.has_any(self.mapping.pages(&part), Records::is_dirty)
            {
                self.mapping.memory.protect(part, Access::Read)?;
            }
        }
        Ok(())
    }

    /// Makes what is mapped as it was. It only undoes, so the kernel needs no more mappings for it
    /// than it had.
    pub(crate) fn restore(&self) {
        for (part, access) in self.mapped() {
            // What was possible before is possible, unless a filter came between.
            let _ = self.mapping.memory.protect(part, access);
        }
    }
}
