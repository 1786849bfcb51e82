//! The edge ledger: every memory ordering of this crate, by name.
//!
//! An *edge* is one ordered operation: what it is, what it pairs with, and what goes wrong without
//! it. The crate's atomics accept nothing else, except a relaxed access that states its reason.
//! [`EDGES`] is the whole list; the models weaken each by name and must notice.
//!
//! ```
//! use pervma::ledger::{EDGES, Ordering};
//!
//! let admit = EDGES.iter().find(|edge| edge.name == "READ_ADMIT").expect("listed");
//! assert_eq!(admit.ordering, Ordering::Acquire);
//! assert!(admit.pairs.contains(&"ATTACH_PUBLISH"));
//! ```

pub use core::sync::atomic::Ordering;

use crate::facade::{FenceOrder, LoadOrder, RmwOrder, StoreOrder, resolve};

/// What kind of operation carries an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An atomic load.
    Load,
    /// An atomic store.
    Store,
    /// An atomic read-modify-write.
    Rmw,
    /// A fence.
    Fence,
}

/// One named ordering.
#[derive(Clone, Copy, Debug)]
pub struct Edge {
    /// Its name, the same in the source, the models and the documents.
    pub name: &'static str,
    /// The operation that carries it.
    pub kind: Kind,
    /// The ordering it has.
    pub ordering: Ordering,
    /// The names of the edges at the other end.
    pub pairs: &'static [&'static str],
    /// What breaks without it.
    pub without: &'static str,
}

macro_rules! edges {
    ($($(#[$doc:meta])* $name:ident: $kind:ident $order:ident, pairs [$($pair:ident),+], without $without:literal;)+) => {
        /// Every edge of the crate.
        pub const EDGES: &[Edge] = &[$(Edge {
            name: stringify!($name),
            kind: Kind::$kind,
            ordering: Ordering::$order,
            pairs: &[$(stringify!($pair)),+],
            without: $without,
        }),+];

        $(
            $(#[$doc])*
            #[doc = concat!("\n\nWithout it: ", $without)]
            #[derive(Clone, Copy, Debug)]
            #[expect(non_camel_case_types, reason = "an edge is written like the constant it is")]
            pub struct $name;

            edges!(@impl $kind $name $order);
        )+
    };
    (@impl Load $name:ident $order:ident) => { edges!(@order LoadOrder $name $order); };
    (@impl Store $name:ident $order:ident) => { edges!(@order StoreOrder $name $order); };
    (@impl Rmw $name:ident $order:ident) => { edges!(@order RmwOrder $name $order); };
    (@impl Fence $name:ident $order:ident) => { edges!(@order FenceOrder $name $order); };
    (@order $trait:ident $name:ident $order:ident) => {
        impl $trait for $name {
            #[inline(always)]
            fn order(self) -> Ordering {
                resolve(stringify!($name), Ordering::$order)
            }
        }
    };
}

edges! {
    /// A reader takes the count. Everything it checks and reads afterwards stays behind this
    /// increment: the sequence, the space, the range, the payload.
    READ_ADMIT: Rmw Acquire, pairs [ATTACH_PUBLISH, WRITE_UNLOCK],
        without "the sequence test moves in front of the increment and a write-locked VMA is read-locked; a reader of a recycled slot sees its previous tenant";

    /// A reader inside compares `lock_seq` with the space's sequence. If it reads the even number
    /// that an edit's end stored, or anything later, it also sees what that edit wrote.
    READ_SEQ: Load Acquire, pairs [EDIT_END],
        without "a reader believes that an edit has ended and reads fields from the middle of it";

    /// A reader leaves. Its reads are over before a writer can see the lower count.
    READ_PUT: Rmw Release, pairs [WRITE_EXCLUDE, WRITE_WAIT, DETACH_EXCLUDE, DETACH_WAIT],
        without "a writer changes fields that a reader is still reading";

    /// A writer adds X and may find the count at 1 already: then this is where it sees the last
    /// reader leave.
    WRITE_EXCLUDE: Rmw Acquire, pairs [READ_PUT],
        without "a writer that finds nobody inside skips the wait and races with an earlier reader";

    /// A writer waits until the count is X+1.
    WRITE_WAIT: Load Acquire, pairs [READ_PUT],
        without "a writer that waited for the last reader races with what it read";

    /// A writer takes X away again; from here the sequence refuses readers, not the count. It
    /// publishes `lock_seq` and the odd sequence to any reader that comes in afterwards.
    WRITE_UNLOCK: Rmw Release, pairs [READ_ADMIT],
        without "a reader comes in after the exclusion, sees the old lock_seq and believes the VMA unlocked";

    /// A new VMA appears in a slot: one reference, nobody inside.
    ATTACH_PUBLISH: Store Release, pairs [READ_ADMIT],
        without "a reader that still holds the address of the recycled slot reads fields of its previous tenant";

    /// A detacher takes the attach reference away and excludes readers in one addition; when
    /// nobody was inside this is where it sees the last reader leave.
    DETACH_EXCLUDE: Rmw Acquire, pairs [READ_PUT],
        without "a detacher that finds nobody inside reuses fields that an earlier reader is still reading";

    /// A detacher waits until the count is X.
    DETACH_WAIT: Load Acquire, pairs [READ_PUT],
        without "a detacher that waited for a late reader reuses fields that it is still reading";

    /// The sequence becomes even: all write locks of the edit end, all it wrote is published.
    EDIT_END: Store Release, pairs [READ_SEQ, HOLE_BEGIN],
        without "a reader is admitted to a VMA whose fields are still on their way";

    /// A walker loads the sequence before its walk. An even value makes everything earlier edits
    /// wrote visible to the walk.
    HOLE_BEGIN: Load Acquire, pairs [EDIT_END],
        without "a walk that began after an edit misses what the edit inserted and reports a hole";

    /// The acquire fence between the walk and the second load of the sequence. Whoever has met a
    /// store of an edit sees that the edit has begun: every such store is a release.
    HOLE_CHECK: Fence Acquire, pairs [NODE_KEY],
        without "the second load of the sequence moves into the walk, and a change that the walk has met goes unnoticed";

    /// A walker follows a word of the tree to a node or a slot.
    NODE_FOLLOW: Load Acquire, pairs [NODE_LINK],
        without "a walker reaches a node or a slot before its first initialisation";

    /// The writer links a node or a VMA into the tree.
    NODE_LINK: Store Release, pairs [NODE_FOLLOW],
        without "a walker reaches a node or a slot before its first initialisation; or it meets another space's use of a recycled node and does not learn that its own space has changed";

    /// The writer stores a key. Release on every one of them, not a single fence where the edit
    /// begins: the node may be recycled from another space whose edit began, and with it that
    /// fence, before this space gave the node away.
    NODE_KEY: Store Release, pairs [HOLE_CHECK],
        without "a walker in a node that another space has recycled turns by that space's keys, finds its own sequence unchanged and reports a hole";
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// A step of the protocol that a model can leave out, to show that it is needed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step {
            $($(#[$doc])* $name),+
        }

        /// Every step that can be left out.
        pub const STEPS: &[Step] = &[$(Step::$name),+];
    };
}

steps! {
    /// The reader checks that the slot belongs to its space.
    CheckSpace,
    /// The reader compares `lock_seq` with the sequence while inside.
    CheckSeq,
    /// The reader checks the range.
    CheckRange,
    /// A hole is believed only if the sequence has not moved.
    CheckHole,
    /// A merged node is given back only when its entries have been copied.
    FreeLast,
    /// A leaving reader wakes the writer that waits for it.
    WakeWaiter,
    /// An edit begins by a read-modify-write, which carries on the release sequence of the last end.
    BeginByRmw,
    /// Attach stores `lock_seq`, so that nobody enters before the edit ends.
    AttachLocked,
    /// A detacher waits for late readers.
    DetachWait,
}
