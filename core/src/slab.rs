//! The memory that address spaces live in, a space's own or shared among many.

use alloc::sync::Arc;
use core::fmt;

use crate::arena::{Arena, Usage, Users};
use crate::facade::{AtomicU64, Relaxed, const_unless_model};
use crate::mm::SpaceId;
use crate::platform::{Platform, with_default_platform};
use crate::slots::Slots;
use crate::tree::Node;

with_default_platform! {
    /// Type-stable memory for the VMAs and tree nodes of address spaces.
    ///
    /// A space has a slab of its own unless it is given a shared one
    /// ([`AddressSpace::new_in`](crate::AddressSpace::new_in)). What a removal frees is used
    /// again by the next insertion, in whichever space that happens. Memory goes back when the
    /// slab is dropped, never before; it holds at most some 89 million VMAs, and as many nodes. It is
    /// asked for in chunks, each four times as large as the one before, the first of 64 objects.
    ///
    /// ```
    /// use pervma::{AddressSpace, Slab};
    /// use std::sync::Arc;
    ///
    /// let slab = Arc::new(Slab::new());
    /// let a = AddressSpace::new_in(4096, Arc::clone(&slab));
    /// let b = AddressSpace::new_in(4096, Arc::clone(&slab));
    ///
    /// a.edit()?.insert(0x1000..0x2000, "text")?;
    /// a.edit()?.remove(0x1000..0x2000)?;
    /// b.edit()?.insert(0x7000..0x8000, "heap")?;
    /// // The second insertion used the slot that the removal had freed.
    /// assert_eq!(slab.vmas().made, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("vm_area_cachep", "SLAB_TYPESAFE_BY_RCU"))]
    pub struct Slab<T, P> {
        slots: Slots<T, P>,
        nodes: Arena<Node, P>,
        /// The identity of the next space on this slab; [`OWNER`] is taken.
        next_space: AtomicU64,
    }
}

/// The identity of the space that owns its slab.
pub const OWNER: SpaceId = SpaceId(1);

#[cfg(any(feature = "std", pervma_model))]
impl<T> Slab<T> {
    const_unless_model! {
        /// An empty slab on the default platform.
        ///
        /// ```
        /// let slab = pervma::Slab::<u32>::new();
        /// assert_eq!(slab.vmas().made, 0);
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
            Self {
                slots: Slots::new(users),
                nodes: Arena::new(users),
                next_space: AtomicU64::new(OWNER.0 + 1),
            }
        }
    }

    /// How many VMA slots were made, and how many hold a VMA.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.slab().vmas().in_use, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn vmas(&self) -> Usage {
        self.slots.usage()
    }

    /// How many tree nodes were made, and how many are part of a tree.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.slab().nodes().in_use, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn nodes(&self) -> Usage {
        self.nodes.usage()
    }

    #[inline(always)]
    pub(crate) fn slots(&self) -> &Slots<T, P> {
        &self.slots
    }

    #[inline(always)]
    pub(crate) fn node_arena(&self) -> &Arena<Node, P> {
        &self.nodes
    }

    /// An identity that no space on this slab ever had.
    pub(crate) fn new_space(&self) -> SpaceId {
        SpaceId(self.next_space.fetch_add(1, Relaxed("a number taken once; it publishes nothing")))
    }
}

impl<T, P: Platform> fmt::Debug for Slab<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").finish_non_exhaustive()
    }
}

/// The slab of a space.
#[expect(clippy::large_enum_variant, reason = "a space in a `static` cannot box its slab")]
pub enum SlabRef<T, P: Platform> {
    /// Part of the space, so that a space can be a `static`.
    Own(Slab<T, P>),
    /// Shared with other spaces.
    Shared(Arc<Slab<T, P>>),
}

impl<T, P: Platform> SlabRef<T, P> {
    const_unless_model! {
        /// A slab for one space only.
        pub fn own() -> Self {
            Self::Own(Slab::for_users(Users::OneSpace))
        }
    }

    #[inline(always)]
    pub fn get(&self) -> &Slab<T, P> {
        match self {
            Self::Own(slab) => slab,
            Self::Shared(slab) => slab,
        }
    }
}
