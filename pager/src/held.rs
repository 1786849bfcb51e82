//! Pages that a thread holds.

use crate::holds::Hold;
use crate::mapping::Mapping;
use crate::signal::SignalsBlocked;

/// Pages that are held until this is dropped.
pub(crate) struct Held<'m> {
    mapping: &'m Mapping,
    number: u64,
}

impl<'m> Held<'m> {
    /// Nothing yet, from a page on. The caller blocks signals.
    pub(crate) fn new(mapping: &'m Mapping, first: usize, how: Hold) -> Self {
        Self { mapping, number: mapping.holds.begin(first, how) }
    }

    /// Holds the pages up to `end` as well, and is `true`; or the bound does not let so many be
    /// held. The caller blocks signals.
    pub(crate) fn extend(&self, end: usize) -> bool {
        let backing = &self.mapping.backing;
        self.mapping.holds.extend(self.number, end, &self.mapping.records, |pages| {
            backing.share.as_ref().is_none_or(|share| share.hold(backing.counted(pages)))
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.mapping.memory.is_of_this_process() {
            // A forked child has no such pages, and the list may have been locked in its parent.
            return;
        }
        // If they cannot be blocked, it goes on without.
        let _blocked = SignalsBlocked::new();
        let pages = self.mapping.holds.end(self.number, &self.mapping.records);
        if let Some(share) = &self.mapping.backing.share {
            share.let_go(self.mapping.backing.counted(pages));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{PAGE, SPACE};
    use crate::{Options, ReadFailed, Source};

    /// What is written cannot be stored.
    struct Full;

    impl Source for Full {
        fn size(&self) -> u64 {
            64 * PAGE as u64
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
            buf.fill((offset / PAGE as u64) as u8);
            Ok(())
        }

        fn is_writable(&self) -> bool {
            true
        }

        fn write_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn no_access_fails_for_what_was_filled_ahead() {
        let options = Options::new().writable().resident(16 * PAGE).handler_threads(1);
        let region = options.map(Full).unwrap();
        let vma = SPACE.try_read(region.as_ptr().addr()).unwrap();
        let mapping = std::sync::Arc::clone(&vma.mapping);
        drop(vma);
        region.prefetch(0..12 * PAGE).unwrap();
        let held = Held::new(&mapping, 0, Hold::AgainstEviction);
        assert!(held.extend(12) && !held.extend(13), "three quarters of the bound");
        region.write(40 * PAGE, &[9; 4 * PAGE]);
        assert!(mapping.records.is_held(0));
        let mut found = [0];
        region.read(50 * PAGE, &mut found);
        assert_eq!(found, [50]);
        assert!(!mapping.records.is_held(0) && !held.extend(12), "it has ended");
        region.write(44 * PAGE, &[9; 4 * PAGE]);
        assert!(region.most_resident().unwrap() <= 16 * PAGE);
    }
}
