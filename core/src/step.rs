//! Steps of the protocol that a model can leave out, each to show that it is needed.
#![cfg_attr(
    not(pervma_model),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// A step of the protocol that a model can leave out.
        #[cfg_attr(
            not(pervma_model),
            expect(dead_code, reason = "some are steps of the models' own")
        )]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step {
            $($(#[doc = $doc])+ $name),+
        }

        #[cfg(pervma_model)]
        impl Step {
            /// What is done in this step.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii()),+
                }
            }
        }

        /// Every step that can be left out.
        #[cfg(pervma_model)]
        pub const STEPS: &[Step] = &[$(Step::$name),+];
    };
}

steps! {
    /// The reader checks that the slot belongs to its space.
    CheckSpace,
    /// The reader checks, while it holds a reference, that the edit in `lock_seq` has completed.
    CheckSeq,
    /// The reader checks the range.
    CheckRange,
    /// The reader checks `lock_seq` before it believes a reservation, too.
    CheckSeqReserved,
    /// A reader under the mmap lock checks that the range is not only reserved.
    CheckReserved,
    /// The edit under way is not taken for a completed one.
    CheckEven,
    /// A hole is believed only if neither the root nor a node on the way to it has changed since
    /// the watermark.
    CheckHole,
    /// The versions of the visited nodes are checked from the last one up, the root's at the end.
    CheckUpwards,
    /// A leaf shows a hole by itself only if the edit that last changed it has completed.
    CheckLeafCompleted,
    /// And only if it leads to the VMA below the hole.
    CheckLeafEntry,
    /// And only if it is not changed meanwhile.
    CheckLeafAgain,
    /// And only where no other space can get the tree's nodes.
    CheckLeafOwned,
    /// The next VMA is returned as the next only if it has not changed since the watermark.
    CheckNextSince,
    /// A change of a node sets its version first.
    SetVersion,
    /// A change of only a key sets the node's version first, too.
    SetVersionForKey,
    /// A reader's increment fails at 0.
    RefuseDetached,
    /// A reader's increment fails at the limit.
    RefuseFull,
    /// Nor one more for a reader that has it.
    RefuseFullAgain,
    /// A reader's increment fails while EXCLUDED is set.
    RefuseExcluded,
    /// The thread that sets EXCLUDED scans the hazard pointers of registered readers.
    ScanHazards,
    /// Records are made and scanned under the lock of their arena.
    GuardRecords,
    /// A VMA with a count of 1 is idle only if no hazard pointer names it either.
    ScanIdle,
    /// Where a reader has no fence after its publication, the scan begins with a barrier.
    BarrierToScan,
    /// Where a reader has no fence after its retraction, the transfer ends with a barrier.
    BarrierToTransfer,
    /// The owner of an idle record retracts what it has published, and counts itself.
    RetractIdle,
    /// A scan that has tried whether a record is idle leaves it busy if it finds a publication.
    KeepBusy,
    /// A publication that was transferred to the count before is not transferred again.
    SkipTransferred,
    /// The transfer of a reader that has retracted meanwhile is undone.
    UndoTransfer,
    /// A merged node is freed only when its entries have been copied.
    FreeLast,
    /// And when it has been emptied: the edit may put back elsewhere what it removed there.
    EmptyMerged,
    /// Each VMA that a slot holds gets a generation of its own.
    CountGenerations,
    /// A VMA found by its id is believed only if the generation is that of the id.
    CheckGeneration,
    /// Of several threads that assign an identity at the same time, one succeeds.
    AgreeOnIdentity,
    /// A slot is freed only when its count is 0.
    FreeDetached,
    /// A reader that releases wakes the writer that waits for it.
    WakeWriter,
    /// Attach stores `lock_seq`, so that no reader is admitted before the edit ends.
    AttachLocked,
    /// The thread that sets EXCLUDED waits for the readers that hold the VMA.
    WaitForReaders,
    /// A thread tests whether EXCLUDED is set before it excludes.
    TestExcluded,
    /// EXCLUDED stays until a detached VMA's count goes to 0, in one step.
    KeepExcluded,
    /// EXCLUDED stays until `lock_seq` says that the VMA is write-locked.
    LockBeforeClear,
    /// An exclusion that is dropped clears EXCLUDED.
    ClearExcluded,
    /// The drop of a space waits for late readers of its VMAs, also those of other spaces.
    DrainOnDrop,
    /// An exclusion ends on the VMAs of its own list, not on those of its range.
    OwnList,
    /// A thread that an exclusion refuses sleeps on the event word, not on the count.
    SeparateEvent,
    /// A VMA is taken off its list before EXCLUDED is cleared.
    LinkBeforeClear,
    /// A waiter tests the count again after it has announced itself.
    TestAgain,
    /// The event is notified after EXCLUDED is cleared.
    NotifyLast,
    /// The end of an exclusion wakes all threads that sleep on its event word.
    WakeAll,
    /// The end of an exclusion advances the event word.
    AdvanceEvent,
    /// A waiter releases the mmap lock before it sleeps.
    SleepUnlocked,
    /// A word of the tree carries the kind of what it points to.
    TagInWord,
    /// An edit that gives up waiting for exclusions clears its range.
    ClearRange,
    /// A fork write-locks every VMA before it copies the first.
    LockBeforeCopy,
    /// An edit becomes a view without releasing the mmap lock.
    DowngradeAtOnce,
    /// A release of the lock on the futex that leaves it free wakes one that sleeps.
    WakeNext,
    /// A thread that was woken says that others may sleep.
    KeepWaiting,
    /// A reader wakes the next that sleeps.
    PassOn,
    /// A thread that comes lets one that was woken in vain go first.
    GiveWay,
    /// A thread that gives up hands on its wake-up, and lets readers join others again.
    HandOn,
    /// A range lock that is closed is counted, so that readers ask for it.
    CountClosed,
    /// Who locks a range waits for who has locked it before.
    WaitForRanges,
    /// The release of a range lock wakes those that wait for one.
    WakeForRanges,
    /// The models' stand-in for the futex wakes under the lock of its queue.
    WakeUnderLock,
}
