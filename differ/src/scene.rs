//! The state in which a step is generated.

use std::ops::Range;

use pervma_linux::{Counts, Layout, Limits, VmFlags, Vma};

use crate::model::Subject;

/// The mappings, counts, limits and layout before a step.
#[derive(Debug, Default)]
pub struct Scene {
    /// The mappings.
    pub vmas: Vec<(Range<usize>, Vma)>,
    /// The counts of pages.
    pub counts: Counts,
    /// The limits.
    pub limits: Limits,
    /// The layout.
    pub layout: Layout,
    /// Whether new mappings may be locked from the start (`mlockall`).
    pub locks_new: bool,
}

impl Scene {
    /// Returns the present scene of a model.
    pub fn of(subject: &impl Subject) -> Self {
        let config = subject.config();
        Self {
            vmas: subject.vmas(),
            counts: subject.counts(),
            limits: config.limits,
            layout: config.layout,
            locks_new: config.future.has(VmFlags::LOCKED),
        }
    }
}
