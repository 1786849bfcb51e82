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

    /// A reader that meets something newer than the settled number loads the sequence. All edits
    /// below it are over, and what they wrote is visible.
    READ_SEQ: Load Acquire, pairs [EDIT_END, EDIT_BEGIN],
        without "a reader believes that an edit has ended and reads fields from the middle of it";

    /// That reader passes on what it saw: all edits up to this number are over.
    SEQ_SETTLE: Store Release, pairs [READ_SETTLED],
        without "a reader believes that an edit has ended and reads fields from the middle of it";

    /// Another reader compares `lock_seq`, or the stamp of a node, with the settled number.
    READ_SETTLED: Load Acquire, pairs [SEQ_SETTLE],
        without "a reader believes that an edit has ended and reads fields from the middle of it";

    /// A reader leaves. Its reads are over before a writer can see the lower count.
    READ_PUT: Rmw Release, pairs [EXCLUDE_WAIT],
        without "a writer changes fields that a reader is still reading";

    /// A writer or excluder adds X, whoever is inside. It gets the slot's link from the last that had X; the last
    /// reader it sees leave in the look at the count that follows.
    EXCLUDE_BEGIN: Rmw Acquire, pairs [EXCLUDE_END],
        without "an excluder writes the slot's link while the last one is still reading it";

    /// A writer or excluder looks, at once and after each wait, whether the count is X+1. Here it sees
    /// the last reader leave, and where X was added only if nobody was inside, the last that had X.
    EXCLUDE_WAIT: Load Acquire, pairs [READ_PUT, EXCLUDE_END],
        without "a writer that finds nobody inside, or has waited for the last reader, races with what that read";

    /// X is taken away again; from here the sequence refuses readers, if an edit has write-locked
    /// the VMA. Publishes `lock_seq` and the odd sequence to any reader that comes in afterwards,
    /// and hands the slot's link to the next that adds X.
    EXCLUDE_END: Rmw Release, pairs [READ_ADMIT, HAZARD_ADMIT, EXCLUDE_BEGIN, EXCLUDE_WAIT],
        without "a reader comes in after the exclusion, sees the old lock_seq and believes the VMA unlocked; the next excluder overwrites a link that is still to be read";

    /// A registered reader publishes which VMA it visits. Its visit before is over.
    HAZARD_SET: Store Release, pairs [HAZARD_SCAN],
        without "a writer that sees only the next visit changes fields that the reader is still reading";

    /// It has published, and is going to look at the count.
    HAZARD_SET_FENCE: Fence SeqCst, pairs [HAZARD_SCAN_FENCE],
        without "the reader looks at the count before anyone can see it, and both go on";

    /// It looks at the count: attached, and nobody has added X. What READ_ADMIT is to a counted reader.
    HAZARD_ADMIT: Load Acquire, pairs [ATTACH_PUBLISH, EXCLUDE_END],
        without "a registered reader is admitted to a write-locked VMA, or reads fields of the previous tenant";

    /// It leaves. Its reads are over before a writer can see that.
    HAZARD_CLEAR: Store Release, pairs [HAZARD_SCAN],
        without "a writer changes fields that a registered reader is still reading";

    /// It has looked for a mark, and made the put if it was marked: the hazard is free.
    HAZARD_FREE: Store Release, pairs [HAZARD_SCAN],
        without "a writer that sees only that the hazard is free changes what its last visitor is still reading";

    /// It has left, and is going to look whether somebody has marked it.
    HAZARD_CLEAR_FENCE: Fence SeqCst, pairs [HAZARD_MARK_FENCE],
        without "the writer that has counted the reader still sees it inside, and waits for a put that nobody makes";

    /// Whoever has added X is going to look for published visits.
    HAZARD_SCAN_FENCE: Fence SeqCst, pairs [HAZARD_SET_FENCE],
        without "a writer looks for readers before they can see that it has come, and both go on";

    /// It looks at one.
    HAZARD_SCAN: Load Acquire, pairs [HAZARD_SET, HAZARD_CLEAR, HAZARD_FREE],
        without "a writer that sees a reader gone changes what that is still reading";

    /// It has marked those that it has counted, and is going to look whether they are still there.
    HAZARD_MARK_FENCE: Fence SeqCst, pairs [HAZARD_CLEAR_FENCE],
        without "a reader leaves before it is marked, the writer still sees it inside, and waits for ever";

    /// A record is given up, with nothing published.
    RECORD_GIVE_UP: Store Release, pairs [RECORD_LOOK],
        without "a writer that looks at no hazard of a record that was given up changes what its last owner is still reading";

    /// Somebody looks whether a record is claimed.
    RECORD_LOOK: Load Acquire, pairs [RECORD_GIVE_UP],
        without "a writer that looks at no hazard of a record that was given up changes what its last owner is still reading";

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
    ATTACH_PUBLISH: Store Release, pairs [READ_ADMIT, HAZARD_ADMIT],
        without "a reader that still holds the address of the recycled slot reads fields of its previous tenant";

    /// The sequence becomes odd. Whoever loads this number sees what the edits before have written, as
    /// if it had loaded the even one in front.
    EDIT_BEGIN: Store Release, pairs [READ_SEQ],
        without "a reader that meets the next edit believes the last one over, and reads fields that are still on their way";

    /// The sequence becomes even: all write locks of the edit end, all it wrote is published.
    EDIT_END: Store Release, pairs [READ_SEQ],
        without "a reader is admitted to a VMA whose fields are still on their way";

    /// The acquire fence between the walk and a look at the stamps of the nodes on its way. Whoever
    /// has met a change of a node sees the stamp that was set before: every such store is a release.
    HOLE_CHECK: Fence Acquire, pairs [NODE_KEY],
        without "the look at the stamps moves into the walk, and a change that the walk has met goes unnoticed";

    /// Behind it, the stamps are looked at, from the last node of the walk up to the root.
    STAMP_CHECK: Load Acquire, pairs [NODE_STAMP],
        without "a node has gone to another space, whose number is taken for one of ours; that it was taken out of our tree before is not seen in the stamp of the node above it";

    /// The writer announces that it is going to change a node, or the root.
    NODE_STAMP: Store Release, pairs [STAMP_CHECK],
        without "whoever sees the stamp of a node's next space does not see that the node was taken out of its own tree before";

    /// A walker follows a word of the tree to a node or a slot.
    NODE_FOLLOW: Load Acquire, pairs [NODE_LINK],
        without "a walker reaches a node or a slot before its first initialisation";

    /// The writer links a node or a VMA into the tree.
    NODE_LINK: Store Release, pairs [NODE_FOLLOW],
        without "a walker reaches a node or a slot before its first initialisation; or it meets another space's use of a recycled node and does not learn that its own tree has changed";

    /// The writer stores a key. Release on every one of them, not a single fence where the edit
    /// begins: the node may be recycled from another space whose edit began, and with it that
    /// fence, before this space gave the node away.
    NODE_KEY: Store Release, pairs [HOLE_CHECK],
        without "a walker in a node that another space has recycled turns by that space's keys, finds the way to the node unchanged and reports a hole";
}

/// An ordering that the crate relies on and no model can show.
#[derive(Clone, Copy, Debug)]
pub struct Argued {
    /// Its name.
    pub name: &'static str,
    /// What is relied on.
    pub what: &'static str,
    /// Why it holds.
    pub because: &'static str,
    /// The test that tries it with real threads: a file, and a function in it.
    pub test: &'static str,
}

/// Every ordering that is argued, not modelled.
///
/// ```
/// use pervma::ledger::{ARGUED, EDGES};
///
/// assert!(ARGUED.iter().all(|argued| EDGES.iter().all(|edge| edge.name != argued.name)));
/// ```
pub const ARGUED: &[Argued] = &[
    Argued {
        name: "LOCKS",
        what: "the mmap lock and the arenas' locks hand on what was done under them",
        because: "they are locks of the platform (`lock_api`), whose acquire and release are taken as given; in the models loom's own lock stands in for them",
        test: "core/tests/stress.rs::readers_and_editors_of_all_kinds",
    },
    Argued {
        name: "MEMBARRIER",
        what: "`membarrier(2)` makes each running thread of the process pass a full barrier between call and return",
        because: "that is what it is for; a thread that is not running passes one when it is scheduled. The models have a stand-in that a reader comes past at places around each of its accesses: its fences for signal handlers, and passing places",
        test: "core/tests/registered.rs::registered_readers_and_writers_of_one_vma",
    },
    Argued {
        name: "REGISTRATION",
        what: "who excludes a VMA that a registered reader can get to either knows of the registration by then, or the reader sees its X",
        because: "a registration is made under the mmap lock of its space. What the reader's walk leads to was linked by an edit before it, and then belonged to that space at the registration, or by an edit that knows of it: of the same space by the mmap lock, of another since it was given the node or the slot by one that knew, through the arena's lock. The edits that own a slot follow each other in the same way: those before such an edit are over for the reader, those after it know",
        test: "core/tests/registered.rs::registered_readers_of_spaces_that_share_a_slab",
    },
    Argued {
        name: "SHARED_SLAB",
        what: "whoever drops the last handle to a slab sees all that was done with it",
        because: "a shared slab is kept alive by `alloc`'s `Arc`, which orders its drops; loom does not see into it",
        test: "core/tests/stress.rs::readers_and_editors_of_all_kinds",
    },
    Argued {
        name: "FUTEX",
        what: "a sleeper that compares after the word has changed does not sleep, and one that compared before is woken",
        because: "the kernel compares and enqueues in one step, under the lock that a wake takes; the models' stand-in is made of a mutex and a condition variable, which order more than that, so models in which somebody sleeps judge wake-ups and not orderings",
        test: "core/tests/waiting.rs::overlapping_exclusions_take_turns",
    },
    Argued {
        name: "SIGNAL_FENCE",
        what: "a signal handler sees the accesses of the thread it interrupts in the order of the program",
        because: "a processor shows a thread its own accesses in order, and the compiler fences keep them so; what a handler can find half done is harmless to it (`core/src/thread.rs`), and it leaves everything as it found it",
        test: "core/tests/signals.rs::a_handler_reads_in_the_middle_of_everything",
    },
    Argued {
        name: "THREAD_IDENTITY",
        what: "a thread never takes itself for the editor that another thread is or was",
        because: "the identity is the address of the thread's state; another thread's can come to lie there only when the first has ended and its memory was handed on, which orders all it did, its last store to `Editors::current` included",
        test: "core/tests/stress.rs::threads_that_come_and_go_are_told_apart",
    },
    Argued {
        name: "LOAD_BUFFERING",
        what: "no relaxed load returns a value that is stored only because of what it returned",
        because: "loom runs the accesses of a thread in order, so it never shows this; but the only stores of a reader are to the count, the gate, its hazards and the settled number: the increment is an acquire, so no later load moves in front of it; the put, the stores to a hazard and that of the settled number are releases, so no earlier load moves behind them; a mark that is met makes a put, which may come before the increment that the mark stands for, and the sum is the same (it cannot come before X: a store waits for the branch it depends on, and a fence stands between X and the mark); and what is loaded before the increment (keys, the hint) only decides where to look",
        test: "core/tests/stress.rs::readers_and_editors_of_all_kinds",
    },
];

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
    /// The reader checks while inside that the edit of `lock_seq` is over.
    CheckSeq,
    /// The reader checks the range.
    CheckRange,
    /// The reader checks that before it believes a reservation, too.
    CheckSeqReserved,
    /// A reader under the mmap lock checks that the range is not only reserved.
    CheckReserved,
    /// The edit under way is not taken for over.
    CheckEven,
    /// A hole is believed only if neither the root nor a node on the way to it has changed since the settled number.
    CheckHole,
    /// The nodes on the way are looked at from the last one up, the root at the end.
    CheckUpwards,
    /// The next VMA is believed to be that only if it has not changed since the settled number.
    CheckNextSince,
    /// A change of a node is announced by its stamp.
    StampNode,
    /// So is a change of nothing but a key.
    StampKey,
    /// The search for the next VMA passes over what has been reserved since the settled number.
    CheckReservedSince,
    /// A reader's increment fails at 0.
    RefuseDetached,
    /// A reader's increment fails at the limit.
    RefuseFull,
    /// A reader's increment fails from X on.
    RefuseExcluded,
    /// Whoever adds X looks for registered readers.
    CountVisits,
    /// Records are made and looked through under what guards their arena.
    GuardRecords,
    /// A VMA that counted nobody is idle only if nobody has published a visit either.
    LookAfterIdle,
    /// Where a reader has no fence behind its publication, who looks for it has a barrier.
    BarrierToScan,
    /// Where a reader has no fence behind its leave, who has marked it has a barrier.
    BarrierToMark,
    /// A visit that was counted before is not counted again.
    SkipMarked,
    /// Whoever has counted a reader that was leaving takes that back.
    TakeMarkBack,
    /// A merged node is given back only when its entries have been copied.
    FreeLast,
    /// A slot is given back only when its count is 0.
    FreeDetached,
    /// A leaving reader wakes the writer that waits for it.
    WakeWaiter,
    /// Attach stores `lock_seq`, so that nobody enters before the edit ends.
    AttachLocked,
    /// Whoever excludes a VMA waits for the readers that are inside.
    WaitForReaders,
    /// Whoever wants to exclude looks first whether somebody does.
    TestExcluded,
    /// X stays until the detached VMA's count goes to 0, in one step.
    KeepExcluded,
    /// X stays until `lock_seq` says that the VMA is write-locked.
    MarkBeforeEnd,
    /// Whoever gives up an exclusion gives X back.
    GiveBack,
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
    /// The gate opens after X is gone.
    OpenLast,
    /// The end of an exclusion wakes all who sleep on its gate.
    WakeAll,
    /// The end of an exclusion gives the gate a new number.
    AdvanceGate,
    /// Whoever an exclusion refuses lets the mmap lock go before it sleeps.
    SleepOutside,
    /// What a word of the tree points to is told by that very word.
    TagInWord,
    /// A fork write-locks every VMA before it copies the first.
    LockBeforeCopy,
    /// An edit becomes a view without letting the mmap lock go.
    DowngradeAtOnce,
    /// The models' stand-in for the futex wakes under the lock of its queue.
    WakeUnderLock,
}
