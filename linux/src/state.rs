//! What an address space has beside its map: counts, the configuration, the last numbers given.
#![expect(
    clippy::disallowed_types,
    reason = "a number that says when to look, and guards no memory"
)]

use alloc::sync::Arc;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use lock_api::RwLock;
use pervma::Platform;

use crate::config::Config;
use crate::counts::{Counts, Promised};
use crate::errno::Errno;
use crate::file::{OBJECTS, Object};
use crate::flags::VmFlags;
use crate::vma::{AnonVma, Source, Vma};

/// What an edit works on. Of the configuration only `layout` and `future` are written by calls.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(crate) promised: Promised,
    pub(crate) counts: Noted<Counts>,
    next_anon_vma: u64,
    next_object: u64,
    /// How many configurations there had been when this one was taken over.
    configured: usize,
    /// In an edit that was decided by it, an older one than is shown.
    pub(crate) config: Noted<Config>,
}

/// The configuration that a call was begun with.
pub(crate) struct Settings {
    config: Config,
    configured: usize,
}

impl State {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            counts: Noted::new(Counts::default()),
            config: Noted::new(Config { future: config.future & VmFlags::LOCKED_MASK, ..config }),
            configured: 0,
            promised: Promised::default(),
            next_anon_vma: 0,
            next_object: 0,
        }
    }

    /// An `anon_vma` that no VMA has yet.
    pub(crate) fn new_anon_vma(&mut self, from_parent: bool) -> AnonVma {
        // However high the numbers were that it was given.
        self.next_anon_vma = self.next_anon_vma.wrapping_add(1);
        AnonVma { number: self.next_anon_vma, from_parent }
    }

    /// Gives what is made from now on other numbers than those that a VMA has.
    pub(crate) fn number_above(&mut self, vma: &Vma) {
        if let Some(anon) = vma.anon {
            self.next_anon_vma = self.next_anon_vma.max(anon.number);
        }
        if let Some(inode) = vma.inode().filter(|inode| inode.device == OBJECTS) {
            self.next_object = self.next_object.max(inode.number);
        }
    }

    /// Makes it as it was `before`. No number is given again.
    pub(crate) fn restore(&mut self, before: &Self) {
        *self.counts = *before.counts;
        *self.config = *before.config;
        self.configured = before.configured;
    }

    /// What this edit goes by.
    pub(crate) fn settings(&self) -> Settings {
        Settings { config: *self.config, configured: self.configured }
    }

    /// Goes by the settings of an earlier edit of the same call, in this edit alone. What calls
    /// write is as it is now.
    pub(crate) fn go_by(&mut self, settings: &Settings) {
        if settings.configured != self.configured {
            let Config { layout, future, .. } = *self.config;
            *self.config = Config { layout, future, ..settings.config };
            self.configured = settings.configured;
        }
    }

    /// Shared memory that gets its number when it is mapped, so that calls which are only tried
    /// take none.
    pub(crate) fn object_to_number(size: usize) -> Source {
        Source::SharedAnonymous(Arc::new(Object { number: 0, size }))
    }

    /// Gives an object that nothing maps yet its number.
    pub(crate) fn number_new(&mut self, object: &mut Arc<Object>) {
        if let Some(object) = Arc::get_mut(object) {
            self.next_object = self.next_object.wrapping_add(1);
            object.number = self.next_object;
        }
    }
}

/// The counts and the configuration, as they were when the last edit ended that changed them. An
/// edit may wait for who looks at them here, with a VMA locked, so edits keep their own.
pub(crate) struct Shown<P: Platform> {
    /// How often the configuration was changed in no edit. Changes under the lock.
    configured: AtomicUsize,
    values: RwLock<P::Lock, (Counts, Config)>,
}

impl<P: Platform> Shown<P> {
    pub(crate) fn new(state: &State) -> Self {
        let values = RwLock::new((*state.counts, *state.config));
        Self { configured: AtomicUsize::new(state.configured), values }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.values.read().0
    }

    pub(crate) fn config(&self) -> Config {
        self.values.read().1
    }

    /// Changes the configuration, but for what calls write.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Config)) -> Result<(), Errno> {
        let (_, shown) = &mut *self.values.write();
        let mut config = *shown;
        change(&mut config);
        if config.layout != shown.layout || config.future != shown.future {
            return Err(Errno::EINVAL);
        }
        *shown = config;
        self.configured.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Takes the configuration over, in an edit that begins.
    #[inline]
    pub(crate) fn take_config(&self, state: &mut State) {
        // Relaxed: what was configured before this edit, in its thread or one that it knows of, has
        // been counted before. The lock brings the rest.
        if self.configured.load(Relaxed) != state.configured {
            let values = self.values.read();
            state.configured = self.configured.load(Relaxed);
            state.config = Noted::new(values.1);
        }
    }

    /// Shows what an edit has changed, before it ends.
    #[inline]
    pub(crate) fn show(&self, state: &mut State) {
        if state.counts.is_changed || state.config.is_changed {
            (state.counts.is_changed, state.config.is_changed) = (false, false);
            let (counts, config) = &mut *self.values.write();
            *counts = *state.counts;
            (config.layout, config.future) = (state.config.layout, state.config.future);
        }
    }
}

/// A value, and whether it may have been changed.
#[derive(Clone, Copy)]
pub(crate) struct Noted<V> {
    value: V,
    is_changed: bool,
}

impl<V> Noted<V> {
    /// A value that is shown already.
    pub(crate) fn new(value: V) -> Self {
        Self { value, is_changed: false }
    }
}

impl<V> Deref for Noted<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V> DerefMut for Noted<V> {
    fn deref_mut(&mut self) -> &mut V {
        self.is_changed = true;
        &mut self.value
    }
}
