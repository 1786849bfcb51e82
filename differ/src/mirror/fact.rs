//! What calls do not show, and the kernel is asked for.

/// A fact that is taken over from the kernel, alone: never a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// A program begins: its mappings, which the kernel makes.
    Begin,
    /// A private mapping was written for the first time, which gives it an `anon_vma`.
    FirstWrite,
    /// A stack has grown by a touch.
    StackGrowth,
    /// A mapped file has another name, or none any more.
    FileName,
    /// The capabilities after `setuid` and the like.
    Privileges,
    /// The address of `MAP_32BIT`, which is chosen at random.
    RandomAddress,
    /// A mapping that a driver makes, or a pool of huge pages, or its refusal.
    Driver,
    /// A segment of System V.
    SystemV,
    /// The ring of `io_setup`.
    AsyncRing,
}

impl Fact {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Begin => "a program begins",
            Self::FirstWrite => "first write",
            Self::StackGrowth => "stack growth",
            Self::FileName => "file name",
            Self::Privileges => "privileges",
            Self::RandomAddress => "random address",
            Self::Driver => "driver",
            Self::SystemV => "System V segment",
            Self::AsyncRing => "io_setup ring",
        }
    }
}
