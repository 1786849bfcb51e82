//! The payload of the suite.
//!
//! Its first granule has a letter, which says what it is:
//!
//! | letter | split | merged |
//! |---|---|---|
//! | `a` to `z` | a file: the letter goes on, one a granule | with what goes on where it ends |
//! | `A` to `M` | the same all over | with its like |
//! | `N` to `Z` | the same all over | with its like, as long as it is shorter than [`SHORT`] |
//! | `0` to `9` | a file, but only before `0`, `4` and `8` | with what goes on where it ends |
//!
//! Every part that is made is known until it is dropped: [`Part::alive`].

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

/// `N` to `Z` take no more once they have this many granules. So the result of a chain of merges
/// shows in which order they were made.
pub(crate) const SHORT: usize = 3;

/// What it is, from which byte on.
pub(crate) struct Part {
    letter: u8,
    /// Where in its file it begins; wraps round, so that a file may begin at any address.
    offset: usize,
    granule: usize,
    /// Names this value, in [`ALIVE`].
    serial: u64,
}

thread_local! {
    /// The next serial, and those that are not dropped yet. Each test has a thread of its own.
    static ALIVE: RefCell<(u64, BTreeSet<u64>)> = const { RefCell::new((0, BTreeSet::new())) };
}

impl Part {
    /// The part that begins with `letter`.
    pub(crate) fn new(letter: char, granule: usize) -> Self {
        let offset = match letter {
            'a'..='z' => letter as usize - 'a' as usize,
            '0'..='9' => letter as usize - '0' as usize,
            'A'..='Z' => 0,
            _ => panic!("{letter:?} is no payload"),
        };
        let kind = match letter {
            'a'..='z' => b'a',
            '0'..='9' => b'0',
            _ => letter as u8,
        };
        Self::made(kind, offset * granule, granule)
    }

    fn made(letter: u8, offset: usize, granule: usize) -> Self {
        let serial = ALIVE.with_borrow_mut(|(next, alive)| {
            *next += 1;
            alive.insert(*next);
            *next
        });
        Self { letter, offset, granule, serial }
    }

    /// What this would be if it began `bytes` later.
    pub(crate) fn advanced(&self, bytes: usize) -> Self {
        let file = self.letter == b'a' || self.letter == b'0';
        let bytes = if file { bytes } else { 0 };
        Self::made(self.letter, self.offset.wrapping_add(bytes), self.granule)
    }

    /// The letter of its granule `n`.
    #[cfg(test)]
    pub(crate) fn letter(&self, n: usize) -> char {
        let here = self.advanced(n * self.granule);
        char::from(here.letter + u8::try_from(here.offset / here.granule).unwrap_or(b'?'))
    }

    /// How many there are on this thread.
    pub(crate) fn alive() -> usize {
        ALIVE.with_borrow(|(_, alive)| alive.len())
    }

    pub(crate) fn split_at(&self, offset: usize) -> Option<(Self, Self)> {
        let right = self.advanced(offset);
        if self.letter == b'0' && !right.offset.is_multiple_of(4 * self.granule) {
            return None;
        }
        Some((self.clone(), right))
    }

    pub(crate) fn merged(&self, len: usize, next: &Self) -> Option<Self> {
        let short = (b'N'..=b'Z').contains(&self.letter);
        let full = short && len >= SHORT * self.granule;
        let goes_on = *next == self.advanced(len);
        (goes_on && !full).then(|| self.clone())
    }
}

impl Clone for Part {
    fn clone(&self) -> Self {
        Self::made(self.letter, self.offset, self.granule)
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        assert_eq!(self.granule, other.granule);
        (self.letter, self.offset) == (other.letter, other.offset)
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", char::from(self.letter), self.offset)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let known = ALIVE.with_borrow_mut(|(_, alive)| alive.remove(&self.serial));
        assert!(known, "dropped twice: {self:?}");
    }
}

impl pervma_oracle::Payload for Part {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        self.split_at(offset)
    }

    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        self.merged(len, next)
    }
}
