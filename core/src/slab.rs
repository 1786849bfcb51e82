//! The memory that address spaces live in, a space's own or shared among many.

use alloc::sync::Arc;
use core::fmt;

use crate::arena::{Arena, Usage, Users};
use crate::btree::Node;
use crate::host::DefaultPlatform;
use crate::platform::Platform;
use crate::slots::Slots;
use crate::sync::{Line, const_unless_model};

/// Type-stable memory for the VMAs and tree nodes of address spaces.
///
/// A space has a slab of its own unless it is given a shared one
/// ([`AddressSpace::new_in`](crate::AddressSpace::new_in)). What a removal frees is used again by
/// the next insertion, in whichever space that happens. Memory goes back when the slab is dropped,
/// never before; it holds at most some 67 million VMAs, and as many nodes. It is asked for in
/// chunks, each for twice as many objects as the one before, the first for 16; none before the
/// first VMA comes.
///
/// ```
/// use pervma::{AddressSpace, Slab};
/// use std::sync::Arc;
///
/// let slab = Arc::new(Slab::new());
/// let a = AddressSpace::new_in(4096, Arc::clone(&slab));
/// let b = AddressSpace::new_in(4096, Arc::clone(&slab));
///
/// a.insert(0x1000..0x2000, "text")?;
/// a.remove(0x1000..0x2000)?;
/// b.insert(0x7000..0x8000, "heap")?;
/// // The second insertion used the slot that the removal had freed.
/// assert_eq!(slab.vmas().capacity, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias("vm_area_cachep", "SLAB_TYPESAFE_BY_RCU"))]
pub struct Slab<T, P: Platform = DefaultPlatform> {
    /// Written in every edit, and not touched by lookups.
    arenas: Line<Arenas<T, P>>,
}

struct Arenas<T, P: Platform> {
    slots: Slots<T, P>,
    nodes: Arena<Node, P>,
}

#[cfg(any(feature = "std", pervma_model))]
impl<T> Slab<T> {
    const_unless_model! {
        /// An empty slab on the default platform. Without the feature `std`, name one:
        /// [`with_platform`](Self::with_platform).
        ///
        /// ```
        /// let slab = pervma::Slab::<u32>::new();
        /// assert_eq!(slab.vmas().capacity, 0);
        /// ```
        #[must_use]
        pub fn new() -> Self {
            Self::with_platform()
        }
    }
}

#[cfg(any(feature = "std", pervma_model))]
impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, P: Platform> Slab<T, P> {
    const_unless_model! {
        /// An empty slab on the platform `P`.
        ///
        /// ```
        /// use pervma::{Slab, StdPlatform};
        ///
        /// let slab = Slab::<u32, StdPlatform>::with_platform();
        /// assert_eq!(slab.vmas().in_use, 0);
        /// ```
        #[must_use]
        pub fn with_platform() -> Self {
            Self::for_users(Users::Spaces)
        }
    }

    const_unless_model! {
        fn for_users(users: Users) -> Self {
            Self { arenas: Line(Arenas { slots: Slots::new(users), nodes: Arena::new(users) }) }
        }
    }

    /// How many VMAs there is memory for, and how many of these places hold a VMA or a reservation.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.slab().vmas().in_use, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn vmas(&self) -> Usage {
        self.slots().usage()
    }

    /// How many tree nodes there is memory for, and how many of them are part of a tree.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.slab().nodes().in_use, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn nodes(&self) -> Usage {
        self.node_arena().usage()
    }

    #[inline(always)]
    pub(crate) fn slots(&self) -> &Slots<T, P> {
        &self.arenas.0.slots
    }

    #[inline(always)]
    pub(crate) fn node_arena(&self) -> &Arena<Node, P> {
        &self.arenas.0.nodes
    }
}

impl<T, P: Platform> fmt::Debug for Slab<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("vmas", &self.vmas()).field("nodes", &self.nodes()).finish()
    }
}

/// The slab of a space.
#[cfg_attr(
    pervma_model,
    expect(clippy::large_enum_variant, reason = "a space in a `static` cannot box its slab")
)]
pub(crate) enum SlabRef<T, P: Platform> {
    /// Part of the space, so that a space can be a `static`.
    Own(Slab<T, P>),
    /// Shared with other spaces.
    Shared(Arc<Slab<T, P>>),
}

impl<T, P: Platform> SlabRef<T, P> {
    const_unless_model! {
        /// A slab for one space only.
        pub(crate) fn own() -> Self {
            Self::Own(Slab::for_users(Users::OneSpace))
        }
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> &Slab<T, P> {
        match self {
            Self::Own(slab) => slab,
            Self::Shared(slab) => slab,
        }
    }
}
