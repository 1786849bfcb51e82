//! The edge ledger: every memory ordering of this crate, by name.
//!
//! An *edge* is one ordered operation: what it is, what it pairs with, and what goes wrong without
//! it. The crate's atomics accept nothing else, except a relaxed access that states its reason.
//! `EDGES` is the whole list; the models weaken each by name and must notice.
#![cfg_attr(
    not(pervma_model),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

pub use core::sync::atomic::Ordering;

use crate::sync::{FenceOrder, LoadOrder, RmwOrder, StoreOrder, resolve};

/// The kind of operation that carries an edge.
#[cfg(pervma_model)]
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
#[cfg(pervma_model)]
#[derive(Clone, Copy, Debug)]
pub struct Edge {
    /// The name, the same in the source, the models and the documents.
    pub name: &'static str,
    /// The operation that carries it.
    pub kind: Kind,
    /// The ordering it has.
    pub ordering: Ordering,
    /// The names of the edges at the other end.
    pub pairs: &'static [&'static str],
    /// What fails without it.
    pub without: &'static str,
}

macro_rules! edges {
    ($($(#[$doc:meta])* $name:ident: $kind:ident $order:ident, pairs [$($pair:ident),+], without $without:literal;)+) => {
        /// Every edge of the crate.
        #[cfg(pervma_model)]
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
    /// A reader increments the count. Everything it checks and reads afterwards stays behind this
    /// increment: the sequence, the space, the range, the payload.
    READ_ADMIT: Rmw Acquire, pairs [ATTACH_PUBLISH, EXCLUDE_END],
        without "the sequence test moves in front of the increment and a write-locked VMA is read-locked; a reader of a recycled slot sees its previous tenant";

    /// A reader that meets something newer than the watermark loads the sequence. All edits below
    /// the number it sees are completed, and what they wrote is visible.
    READ_SEQ: Load Acquire, pairs [EDIT_END, EDIT_BEGIN],
        without "a reader believes that an edit has ended and reads fields from the middle of it";

    /// The reader that loaded the sequence publishes that edits up to this number are completed.
    WATERMARK_ADVANCE: Store Release, pairs [READ_WATERMARK],
        without "a reader believes that an edit has ended and reads fields from the middle of it";

    /// Another reader compares `lock_seq`, or the version of a node, with the watermark.
    READ_WATERMARK: Load Acquire, pairs [WATERMARK_ADVANCE],
        without "a reader believes that an edit has ended and reads fields from the middle of it";

    /// A reader releases its reference. Its reads are over before a writer can see the lower count.
    READ_RELEASE: Rmw Release, pairs [EXCLUDE_WAIT],
        without "a writer changes fields that a reader is still reading";

    /// A writer or excluder sets EXCLUDED, while readers may hold the VMA. It takes over the slot's
    /// link from the last that had EXCLUDED set; the last reader it sees leave in the test of the
    /// count that follows.
    EXCLUDE_BEGIN: Rmw Acquire, pairs [EXCLUDE_END],
        without "an excluder reads and writes the slot's link while the last one still does";

    /// A writer or excluder tests, at once and after each wait, whether the VMA is drained. Here it
    /// sees the last reader leave, and where EXCLUDED was set only if the VMA was idle, the last
    /// that had it set.
    EXCLUDE_WAIT: Load Acquire, pairs [READ_RELEASE, EXCLUDE_END],
        without "a writer that finds the VMA idle, or has waited for the last reader, races with what that read";

    /// EXCLUDED is cleared; from here the sequence refuses readers, if an edit has write-locked the
    /// VMA. Publishes `lock_seq` and the odd sequence to any reader that acquires afterwards, and
    /// hands the slot's link to the next that sets EXCLUDED.
    EXCLUDE_END: Rmw Release, pairs [READ_ADMIT, HAZARD_ADMIT, EXCLUDE_BEGIN, EXCLUDE_WAIT],
        without "a reader acquires after the exclusion, sees the old lock_seq and believes the VMA unlocked; the next excluder reads and writes the link while the last one still does";

    /// A registered reader publishes which VMA it reads. What it read before is over.
    HAZARD_PUBLISH: Store Release, pairs [HAZARD_SCAN],
        without "a writer that sees only the next publication changes fields that the reader is still reading";

    /// A registered reader has published, and is going to test the count.
    HAZARD_PUBLISH_FENCE: Fence SeqCst, pairs [HAZARD_SCAN_FENCE],
        without "the reader tests the count before its publication can be seen, and both go on";

    /// A registered reader tests that the VMA is attached and EXCLUDED not set: its READ_ADMIT.
    HAZARD_ADMIT: Load Acquire, pairs [ATTACH_PUBLISH, EXCLUDE_END],
        without "a registered reader is admitted to a write-locked VMA, or reads fields of the previous tenant";

    /// A registered reader retracts its publication. Its reads are over before a writer sees that.
    HAZARD_RETRACT: Store Release, pairs [HAZARD_SCAN],
        without "a writer changes fields that a registered reader is still reading";

    /// A registered reader has tested for a transfer, and released its count if there was one: the
    /// hazard pointer is free.
    HAZARD_FREE: Store Release, pairs [HAZARD_SCAN],
        without "a writer that sees only that the hazard pointer is free changes what was read through it last";

    /// A registered reader has retracted, and is going to test whether it was transferred.
    HAZARD_RETRACT_FENCE: Fence SeqCst, pairs [HAZARD_TRANSFER_FENCE],
        without "the writer that has transferred the reader still sees its publication, and waits for a release that never comes";

    /// EXCLUDED is set. Whether a record is busy is going to be asked, and then the hazard pointers
    /// are scanned.
    HAZARD_SCAN_FENCE: Fence SeqCst, pairs [HAZARD_PUBLISH_FENCE, RECORD_RESUME_FENCE],
        without "a writer scans for readers before they can see that EXCLUDED is set, and both go on";

    /// A writer scans a hazard pointer.
    HAZARD_SCAN: Load Acquire, pairs [HAZARD_PUBLISH, HAZARD_RETRACT, HAZARD_FREE],
        without "a writer that sees a reader gone changes what that is still reading";

    /// The writer has transferred to the count what it found, and is going to test whether it is
    /// still published.
    HAZARD_TRANSFER_FENCE: Fence SeqCst, pairs [HAZARD_RETRACT_FENCE],
        without "a reader leaves before it is transferred, the writer still sees its publication, and waits forever";

    /// A record is given up, with nothing published.
    RECORD_GIVE_UP: Store Release, pairs [RECORD_TEST],
        without "a writer that skips a record that was given up changes what its last owner is still reading";

    /// A writer, or a thread that registers, tests whether a record has an owner.
    RECORD_TEST: Load Acquire, pairs [RECORD_GIVE_UP],
        without "a writer that skips a record that was given up changes what its last owner is still reading";

    /// A record is busy again, its owner about to publish: that is counted for all records.
    RECORD_RESUME: Rmw Release, pairs [RECORDS_BUSY],
        without "a scan takes a record for idle that has become busy, and the next writer changes what its owner reads";

    /// That is counted, and the next publication is going to test the count of a VMA.
    RECORD_RESUME_FENCE: Fence SeqCst, pairs [HAZARD_SCAN_FENCE],
        without "a writer still finds all records idle, the reader still tests the count as it was, and both go on";

    /// A scan loads how often a record has become busy, then tests whether each is idle.
    RECORDS_BUSY: Load Acquire, pairs [RECORD_RESUME],
        without "a scan takes a record for idle that has become busy, and the next writer changes what its owner reads";

    /// A scan has found all records idle. What was published there is over.
    RECORDS_IDLE: Store Release, pairs [RECORDS_TEST_IDLE],
        without "a writer of another space that need not scan changes what a reader is still reading";

    /// A writer tests whether all records have been idle since a scan.
    RECORDS_TEST_IDLE: Load Acquire, pairs [RECORDS_IDLE],
        without "a writer of another space that need not scan changes what a reader is still reading";

    /// A closed range lock is released. What its owner did is over.
    RANGE_REOPENED: Store Release, pairs [RANGE_CLOSED],
        without "a reader that sees no closed range lock works on pages that the owner of one has not left";

    /// A reader that has read-locked its VMA tests whether there are closed range locks.
    RANGE_CLOSED: Load Acquire, pairs [RANGE_REOPENED],
        without "a reader that sees no closed range lock works on pages that the owner of one has not left";

    /// A waiter that an exclusion refused announces in the event word that it is going to sleep,
    /// then tests whether the exclusion still lasts.
    EVENT_PREPARE: Rmw Acquire, pairs [EVENT_NOTIFY],
        without "a waiter that comes after the notification still sees the old count, and sleeps forever";

    /// The end of an exclusion advances the event word, after EXCLUDED is cleared.
    EVENT_NOTIFY: Rmw Release, pairs [EVENT_PREPARE],
        without "a waiter that sees the advanced event word still sees the old count, and sleeps forever";

    /// A reservation that is dropped while another thread has the mmap lock is deferred to the next
    /// edit.
    DEFER_PUSH: Rmw Release, pairs [DEFER_DRAIN],
        without "the edit that drains the list follows a link that is still on its way";

    /// An edit begins by releasing the reservations that were deferred.
    DEFER_DRAIN: Rmw Acquire, pairs [DEFER_PUSH],
        without "the edit that drains the list follows a link that is still on its way";

    /// A new VMA appears in a slot: one reference, no reader.
    ATTACH_PUBLISH: Store Release, pairs [READ_ADMIT, HAZARD_ADMIT],
        without "a reader that still holds the address of the recycled slot reads fields of its previous tenant";

    /// The sequence becomes odd. A reader that loads this number sees what the edits before have
    /// written, as if it had loaded the even number before.
    EDIT_BEGIN: Store Release, pairs [READ_SEQ],
        without "a reader that meets the next edit believes the last one completed, and reads fields that are still on their way";

    /// The sequence becomes even: all write locks of the edit end, all it wrote is published.
    EDIT_END: Store Release, pairs [READ_SEQ],
        without "a reader is admitted to a VMA whose fields are still on their way";

    /// A thread acquires the lock on the futex, for reading or writing.
    LOCK_ACQUIRE: Rmw Acquire, pairs [LOCK_RELEASE, LOCK_RELEASE_SHARED, LOCK_DOWNGRADE],
        without "the holder of the mmap lock does not see what was done under it before";

    /// A writer releases the lock on the futex.
    LOCK_RELEASE: Rmw Release, pairs [LOCK_ACQUIRE],
        without "the next holder of the mmap lock does not see what a writer did under it";

    /// A reader releases the lock on the futex.
    LOCK_RELEASE_SHARED: Rmw Release, pairs [LOCK_ACQUIRE],
        without "the next writer changes what a reader is still reading under the mmap lock";

    /// A writer becomes a reader of the lock on the futex.
    LOCK_DOWNGRADE: Rmw Release, pairs [LOCK_ACQUIRE],
        without "a reader that joins a view does not see what its edit did";

    /// The acquire fence between what is read of nodes and the check of their versions.
    /// A walker that has seen a change of a node sees the version that was set before it: every
    /// such store is a release.
    HOLE_CHECK: Fence Acquire, pairs [NODE_KEY],
        without "the check of the versions moves into the walk, and a change that the walk has met goes unnoticed";

    /// After HOLE_CHECK, the versions are checked, from the last node of the walk up to the root.
    /// That of a leaf which may show a hole by itself is loaded before, too.
    VERSION_CHECK: Load Acquire, pairs [NODE_VERSION],
        without "a node has gone to another space, whose number is taken for one of ours; the version of the node above it does not show that it was removed from our tree before";

    /// The writer announces that it is going to change a node, or the root.
    NODE_VERSION: Store Release, pairs [VERSION_CHECK],
        without "a reader that sees the version set by a node's next space does not see that the node was removed from its own tree before";

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

/// Nothing uses these edges where the lock on the futex is not part of the crate.
#[cfg(not(any(
    pervma_model,
    all(feature = "std", any(target_os = "linux", target_os = "android"))
)))]
const _: (LOCK_ACQUIRE, LOCK_RELEASE, LOCK_RELEASE_SHARED, LOCK_DOWNGRADE) =
    (LOCK_ACQUIRE, LOCK_RELEASE, LOCK_RELEASE_SHARED, LOCK_DOWNGRADE);

/// An ordering that the crate relies on and no model can show.
#[cfg(pervma_model)]
#[derive(Clone, Copy, Debug)]
pub struct Argued {
    /// Its name.
    pub name: &'static str,
    /// What is relied on.
    pub what: &'static str,
    /// Why it holds, step by step.
    pub because: &'static [&'static str],
    /// The test that tries it with real threads: a file, and a function in it.
    pub test: &'static str,
}

/// Every ordering that is argued, not modelled.
#[cfg(pervma_model)]
pub const ARGUED: &[Argued] = &[
    Argued {
        name: "LOCKS",
        what: "the mmap lock and the arenas' locks hand on what was done under them",
        because: &[
            "They are locks of the platform (`lock_api`), whose acquire and release are taken as given.",
            "That of `StdPlatform` on Linux has edges and models of its own (LOCK_ACQUIRE).",
            "In the models the checker's own lock stands in for them.",
        ],
        test: "core/tests/stress.rs::readers_and_editors_of_all_kinds",
    },
    Argued {
        name: "MEMBARRIER",
        what: "`membarrier(2)` makes each running thread of the process pass a full barrier between call and return",
        because: &[
            "That is what the system call is for; a thread that is not running passes a barrier when it is scheduled.",
            "The models have a stand-in that a reader passes at places around each of its accesses: its fences for signal handlers, and its barrier points.",
        ],
        test: "core/tests/registered.rs::registered_readers_and_writers_of_one_vma",
    },
    Argued {
        name: "REGISTRATION",
        what: "when a thread excludes a VMA that a registered reader can reach, either it knows of the registration, or the reader sees EXCLUDED",
        because: &[
            "A registration is made under the mmap lock of its space.",
            "What the reader's walk leads to was linked by an edit before the registration, or by one that knows of it.",
            "If by one before: the slot belonged to that space at the registration, so later owners are ordered after it.",
            "If by one that knows: it knows by the mmap lock if it is of the same space; if of another, the node or the slot was given to it by an edit that knew, through the arena's lock.",
            "The edits that own a slot follow each other in the same way: those before such an edit have completed as far as the reader can see, those after it know.",
        ],
        test: "core/tests/registered.rs::registered_readers_of_spaces_that_share_a_slab",
    },
    Argued {
        name: "SHARED_SLAB",
        what: "the thread that drops the last handle to a slab sees all that was done with it",
        because: &[
            "A shared slab is kept alive by `alloc`'s `Arc`, which orders its drops; loom does not see into it.",
        ],
        test: "core/tests/stress.rs::readers_and_editors_of_all_kinds",
    },
    Argued {
        name: "FUTEX",
        what: "a sleeper that compares after the word has changed does not sleep, and one that compared before is woken",
        because: &[
            "The kernel compares and enqueues in one step, under the lock that a wake takes.",
            "The models' stand-in is made of a mutex and a condition variable, which order more than that; so models in which a thread sleeps judge wake-ups and not orderings.",
        ],
        test: "core/tests/waiting.rs::overlapping_exclusions_take_turns",
    },
    Argued {
        name: "SIGNAL_FENCE",
        what: "a signal handler sees the accesses of the thread it interrupts in the order of the program",
        because: &[
            "A processor shows a thread its own accesses in order, and the compiler fences keep them so.",
            "What a handler can find half done is harmless to it (`core/src/thread.rs`), and it leaves everything as it found it.",
        ],
        test: "core/tests/signals.rs::a_handler_reads_in_the_middle_of_everything",
    },
    Argued {
        name: "IDENTITY",
        what: "identities of spaces and threads are given once, and a thread never takes itself for the editor that another thread is or was",
        because: &[
            "They are drawn from one counter by read-modify-write, which needs no ordering to be unique.",
            "A thread's identity is stored only by that thread (or a handler that interrupts it), so it always finds its own.",
            "A space's identity is stored by compare-and-swap, so all threads agree on it; a reader that could miss it has not met a VMA of that space, because NODE_LINK publishes the identity with the first VMA.",
        ],
        test: "core/tests/stress.rs::threads_that_reuse_a_state_are_told_apart",
    },
    Argued {
        name: "LOAD_BUFFERING",
        what: "no relaxed load returns a value that is stored only because of what it returned",
        because: &[
            "loom runs the accesses of a thread in order, so it never shows this.",
            "The only stores of a reader are to the count, the event word, its hazard pointers, the watermark, and behind a fence to the state of its record.",
            "The increment is an acquire, so no later load moves in front of it.",
            "The release of the count, the stores to a hazard pointer and that of the watermark are releases, so no earlier load moves behind them.",
            "A transfer that a reader meets makes it release a count, perhaps before the increment that the transfer stands for; the sum is the same.",
            "That release cannot come before EXCLUDED is set: a store waits for the branch it depends on, and a fence stands between setting EXCLUDED and the transfer.",
            "What is loaded before the increment (keys, hints) only decides where to look.",
        ],
        test: "core/tests/stress.rs::readers_and_editors_of_all_kinds",
    },
];
