//! What there is before a step.

use std::ops::Range;

use pervma_linux::{Counts, Limits, Vma};

use crate::model::Subject;

/// What there is to do something with.
#[derive(Debug, Default)]
pub struct Scene {
    /// The mappings.
    pub vmas: Vec<(Range<usize>, Vma)>,
    /// What is counted.
    pub counts: Counts,
    /// The limits.
    pub limits: Limits,
    /// Whether new mappings may be locked from the start (`mlockall`).
    pub locks_new: bool,
}

impl Scene {
    /// What there is now.
    pub fn of(subject: &impl Subject) -> Self {
        Self {
            vmas: subject.vmas(),
            counts: subject.counts(),
            limits: subject.limits(),
            locks_new: false,
        }
    }
}
