//! Identities and versions of VMAs, which outlive a lock: to find the same VMA again, or to learn
//! that it is gone.

use crate::identity::SpaceId;
use crate::lock::EditSeq;

/// Names one VMA among all that ever were in this process, from a guard's
/// [`id`](crate::ReadGuard::id); [`AddressSpace::try_read_id`](crate::AddressSpace::try_read_id)
/// finds the VMA by it, or says that it is gone.
///
/// An address does not prove identity: after a lock was dropped, another VMA may be mapped there.
/// An id does. It is valid as long as its VMA is attached, and never given twice:
///
/// | what is done to the VMA | the id |
/// |---|---|
/// | write-locked, its payload changed ([`Edit::write`](crate::Edit::write)) | stays |
/// | [`update`](crate::AddressSpace::update)d, also in part | stays with the part that has the VMA's start; other parts get new ones |
/// | split | stays with the left part; the right part gets a new one |
/// | merged | the leftmost VMA's stays; those of the others are gone |
/// | [`relocate`](crate::AddressSpace::relocate)d | gone; the moved part gets a new one |
/// | [`remove`](crate::AddressSpace::remove)d or [`replace`](crate::AddressSpace::replace)d, as a whole or its start | gone |
///
/// ```
/// use pervma::{AddressSpace, ReadError};
///
/// let space = AddressSpace::new(4096);
/// space.edit()?.insert(0x1000..0x4000, "file A")?;
/// let id = space.try_read(0x1000)?.id();
///
/// space.update(0x3000..0x4000, |_, _| "file A, read-only")?; // splits it
/// assert_eq!(space.try_read_id(id)?.range(), 0x1000..0x3000);
///
/// space.replace(0x1000..0x3000, "file B")?; // another VMA at the same address
/// assert_eq!(space.try_read_id(id).err(), Some(ReadError::Gone { addr: 0x1000 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VmaId {
    pub(crate) space: SpaceId,
    /// The start of the VMA. It does not change while the VMA is attached.
    pub(crate) start: usize,
    /// The address of its slot.
    pub(crate) slot: usize,
    /// Which of the VMAs that lived in the slot it is.
    pub(crate) generation: u32,
}

impl VmaId {
    /// As words, for other languages or a table of numbers.
    ///
    /// ```
    /// use pervma::{AddressSpace, VmaId};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let words = space.try_read(0x2000)?.id().to_words();
    /// assert_eq!(*space.try_read_id(VmaId::from_words(words))?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn to_words(self) -> [u64; 4] {
        [self.space.to_word(), self.start as u64, self.slot as u64, self.generation.into()]
    }

    /// What [`to_words`](Self::to_words) has made words of. Any others name no VMA that there is,
    /// or some VMA: all that is done with an id is to compare it.
    #[must_use]
    pub fn from_words([space, start, slot, generation]: [u64; 4]) -> Self {
        Self {
            space: SpaceId::from_word(space),
            start: start as usize,
            slot: slot as usize,
            generation: generation as u32,
        }
    }
}

/// Names one state of one VMA, from a guard's [`version`](crate::ReadGuard::version): gone at any
/// write lock of the VMA, also if nothing was changed under it, and never given twice.
///
/// For work that is prepared without a lock: keep the version, release the VMA, read or compute,
/// find the VMA again by its [`id`](Self::id), and compare.
///
/// ```
/// use pervma::AddressSpace;
///
/// let space = AddressSpace::new(4096);
/// space.edit()?.insert(0x1000..0x4000, 7)?;
/// let version = space.try_read(0x1000)?.version();
///
/// // Slow work, with no lock held, and then:
/// assert_eq!(space.try_read_id(version.id())?.version(), version); // nothing has changed
///
/// *space.edit()?.write(0x1000)? += 1;
/// assert_ne!(space.try_read_id(version.id())?.version(), version); // start over
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VmaVersion {
    pub(crate) vma: VmaId,
    pub(crate) changed_by: EditSeq,
}

impl VmaVersion {
    /// The VMA of which this is a state.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let vma = space.try_read(0x1000)?;
    /// assert_eq!(vma.version().id(), vma.id());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn id(self) -> VmaId {
        self.vma
    }
}
