//! The state in which a step is generated.

use std::ops::Range;

use pervma_linux::{Counts, Limits, Vma};

use crate::model::Subject;

/// The mappings, counts and limits before a step.
#[derive(Debug, Default)]
pub struct Scene {
    /// The mappings.
    pub vmas: Vec<(Range<usize>, Vma)>,
    /// The counts of pages.
    pub counts: Counts,
    /// The limits.
    pub limits: Limits,
    /// Whether new mappings may be locked from the start (`mlockall`).
    pub locks_new: bool,
}

impl Scene {
    /// Returns the present scene of a model.
    pub fn of(subject: &impl Subject) -> Self {
        Self {
            vmas: subject.vmas(),
            counts: subject.counts(),
            limits: subject.limits(),
            locks_new: false,
        }
    }
}
