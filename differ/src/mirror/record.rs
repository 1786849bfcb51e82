//! What a picture of a run is drawn from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use libc::pid_t;
use pervma_linux::{Source, VmFlags, Vma};

use crate::mirror::space::Mirrored;

/// The kind of a mapping, as a picture distinguishes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Of a file, executable.
    Code,
    /// Of a file.
    File,
    /// Private memory without a file.
    Anonymous,
    /// Memory that is shared, without a file.
    Shared,
    /// A stack.
    Stack,
    /// What nothing may access.
    Nothing,
    /// The kernel's own pages.
    Special,
}

impl Kind {
    /// All of them, with their names.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Code, "code"),
        (Self::File, "file"),
        (Self::Anonymous, "anonymous"),
        (Self::Shared, "shared"),
        (Self::Stack, "stack"),
        (Self::Nothing, "no access"),
        (Self::Special, "kernel's"),
    ];

    fn of(vma: &Vma) -> Self {
        match vma.source {
            Source::Special(_) => Self::Special,
            _ if vma.flags.has(VmFlags::GROWSDOWN) => Self::Stack,
            _ if !vma.flags.any(VmFlags::ACCESS) => Self::Nothing,
            Source::File(_) if vma.flags.has(VmFlags::EXEC) => Self::Code,
            Source::File(_) => Self::File,
            Source::SharedAnonymous(_) => Self::Shared,
            Source::Anonymous | Source::Zero(_) => Self::Anonymous,
        }
    }
}

/// A mapping, from the call after which it was there to the one after which it was not.
#[derive(Clone, Debug)]
pub struct Span {
    /// The address space, by its number.
    pub space: usize,
    /// Its addresses.
    pub range: Range<usize>,
    /// Its kind.
    pub kind: Kind,
    /// From when on.
    pub from: Duration,
    /// Until when.
    pub to: Duration,
}

/// A call, at a time.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The address space, by its number.
    pub space: usize,
    /// The thread that made it.
    pub tid: pid_t,
    /// When it was over.
    pub at: Duration,
    /// The name of the call.
    pub name: &'static str,
    /// Where it was, if it was somewhere.
    pub addr: Option<usize>,
    /// The addresses at which mappings merged.
    pub merged: Vec<usize>,
}

/// An address space in the picture.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its number.
    pub space: usize,
    /// Its program, and the process that it began with.
    pub name: String,
}

/// What happened when, for a picture.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The address spaces.
    pub spaces: Vec<Named>,
    /// The mappings.
    pub spans: Vec<Span>,
    /// The calls.
    pub moments: Vec<Moment>,
    open: BTreeMap<usize, BTreeMap<(usize, usize, Kind), Duration>>,
}

impl Record {
    /// Notes the map of an address space, and returns the boundaries that are inside of mappings
    /// now, among those that were there and those given.
    pub(crate) fn map(
        &mut self,
        space: usize,
        mm: &Mirrored,
        at: Duration,
        new: &[usize],
    ) -> Vec<usize> {
        let open = self.open.entry(space).or_default();
        let mut boundaries: Vec<usize> = new.to_vec();
        boundaries.extend(open.keys().flat_map(|(start, end, _)| [*start, *end]));
        boundaries.sort_unstable();
        boundaries.dedup();
        let (mut now, mut merged) = (BTreeMap::new(), Vec::new());
        let seen = mm.for_each(|range, vma| {
            let first = boundaries.partition_point(|boundary| *boundary <= range.start);
            let last = boundaries.partition_point(|boundary| *boundary < range.end);
            // A stack has grown.
            if Kind::of(vma) != Kind::Stack {
                merged.extend_from_slice(&boundaries[first..last.max(first)]);
            }
            let key = (range.start, range.end, Kind::of(vma));
            now.insert(key, open.get(&key).copied().unwrap_or(at));
        });
        debug_assert_eq!(seen, Ok(()), "no call is under way");
        for ((start, end, kind), from) in std::mem::replace(open, now) {
            if !open.contains_key(&(start, end, kind)) {
                self.spans.push(Span { space, range: start..end, kind, from, to: at });
            }
        }
        merged
    }

    /// The address space has come to its end.
    pub(crate) fn end(&mut self, space: usize, at: Duration) {
        for ((start, end, kind), from) in self.open.remove(&space).unwrap_or_default() {
            self.spans.push(Span { space, range: start..end, kind, from, to: at });
        }
    }
}
