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
    READ_ADMIT: Rmw Acquire, pairs [ATTACH_PUBLISH, EXCLUDE_END],
        without "the sequence test moves in front of the increment and a write-locked VMA is read-locked; a reader of a recycled slot sees its previous tenant";

    /// A reader inside compares `lock_seq` with the space's sequence. If it reads the even number
    /// that an edit's end stored, or anything later, it also sees what that edit wrote.
    READ_SEQ: Load Acquire, pairs [EDIT_END],
        without "a reader believes that an edit has ended and reads fields from the middle of it";

    /// A reader leaves. Its reads are over before a writer can see the lower count.
    READ_PUT: Rmw Release, pairs [EXCLUDE_IDLE, EXCLUDE_WAIT],
        without "a writer changes fields that a reader is still reading";

    /// A writer or excluder adds X. It gets the slot's link from the last that had X; the last
    /// reader it sees leave in the look at the count that follows.
    EXCLUDE_BEGIN: Rmw Acquire, pairs [EXCLUDE_END],
        without "an excluder writes the slot's link while the last one is still reading it";

    /// The count goes from 1 to X+1 in one step: nobody was inside, and here the last reader is
    /// seen to have left.
    EXCLUDE_IDLE: Rmw Acquire, pairs [READ_PUT, EXCLUDE_END],
        without "a VMA that was found idle is changed while its last reader's reads are still under way";

    /// A writer or excluder looks, at once and after each wait, whether the count is X+1.
    EXCLUDE_WAIT: Load Acquire, pairs [READ_PUT],
        without "a writer that finds nobody inside, or has waited for the last reader, races with what that read";

    /// X is taken away again; from here the sequence refuses readers, if an edit has write-locked
    /// the VMA. Publishes `lock_seq` and the odd sequence to any reader that comes in afterwards,
    /// and hands the slot's link to the next that adds X.
    EXCLUDE_END: Rmw Release, pairs [READ_ADMIT, EXCLUDE_BEGIN, EXCLUDE_IDLE],
        without "a reader comes in after the exclusion, sees the old lock_seq and believes the VMA unlocked; the next excluder overwrites a link that is still to be read";

    /// Whoever was refused by an exclusion says in the gate that it is going to sleep, then looks
    /// whether the exclusion is still on.
    GATE_REGISTER: Rmw Acquire, pairs [GATE_OPEN],
        without "a sleeper that comes after the gate was opened still sees the old count, and sleeps for ever";

    /// The end of an exclusion moves the gate on, after X is gone.
    GATE_OPEN: Rmw Release, pairs [GATE_REGISTER],
        without "a sleeper that sees the gate moved on still sees the old count, and sleeps for ever";

    /// A reservation that is dropped while somebody has the mmap lock is left to the next edit.
    LEAVE_BEHIND: Rmw Release, pairs [TAKE_ON],
        without "the edit that takes the reservation on follows a link that is still on its way";

    /// An edit begins by giving back the ranges of reservations that were left behind.
    TAKE_ON: Rmw Acquire, pairs [LEAVE_BEHIND],
        without "the edit that takes the reservation on follows a link that is still on its way";

    /// A new VMA appears in a slot: one reference, nobody inside.
    ATTACH_PUBLISH: Store Release, pairs [READ_ADMIT],
        without "a reader that still holds the address of the recycled slot reads fields of its previous tenant";

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
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// A step of the protocol that a model can leave out, to show that it is needed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step {
            $($(#[doc = $doc])+ $name),+
        }

        impl Step {
            /// What is done in this step.
            ///
            /// ```
            /// use pervma::ledger::Step;
            ///
            /// assert_eq!(Step::CheckRange.what(), "The reader checks the range.");
            /// ```
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii()),+
                }
            }
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
    /// Whoever excludes a VMA waits for the readers that are inside.
    WaitForReaders,
    /// Whoever wants to exclude looks first whether somebody does.
    TestExcluded,
    /// X stays until the detached VMA's count goes to 0, in one step.
    KeepExcluded,
    /// The drop of a space waits for late readers of its VMAs, also those of other spaces.
    DrainOnDrop,
    /// An exclusion ends on the VMAs of its own list, not on those of its range.
    OwnList,
    /// Those whom an exclusion refuses sleep on the gate, not on the count.
    SeparateGate,
    /// A list's link is read before X is given back.
    LinkBeforeEnd,
    /// A refused reader looks again after it has registered at the gate.
    LookAgain,
    /// What a word of the tree points to is told by that very word.
    TagInWord,
}
