//! Lookups and listings of the map.

use alloc::format;
use alloc::string::String;
use core::fmt::{self, Write};
use core::ops::Range;

use pervma::{Platform, ReadError};

use crate::abi::PAGE;
use crate::backing::Backing;
use crate::config::Layout;
use crate::file::{NAMELESS, OBJECTS};
use crate::flags::VmFlags;
use crate::mm::Mm;
use crate::not_now::{NotNow, not_now};
use crate::vma::{Source, Vma};

/// The column in which the name of a mapping starts in a line of the maps file.
const NAME_COLUMN: usize = 73;

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Finds the VMA that holds `addr`, if something is mapped there. Waits for a call that changes
    /// it.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    /// assert_eq!(Mm::new(NoBacking, Config::default()).lookup(0x1000), Ok(None));
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotNow::OwnCall`] where it would wait for its own thread.
    #[doc(alias("PROCMAP_QUERY", "vma_lookup"))]
    pub fn lookup(&self, addr: usize) -> Result<Option<(Range<usize>, Vma)>, NotNow> {
        match self.core.space.read(addr) {
            Ok(vma) => Ok(Some((vma.range(), (*vma).clone()))),
            Err(ReadError::NotMapped { .. }) => Ok(None),
            Err(error) => Err(not_now(error)),
        }
    }

    /// Finds the first VMA that ends above `addr`. Waits for a call that changes it.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    /// assert_eq!(Mm::new(NoBacking, Config::default()).lookup_from(0), Ok(None));
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotNow::OwnCall`] where it would wait for its own thread.
    #[doc(alias("PROCMAP_QUERY_COVERING_OR_NEXT_VMA", "find_vma"))]
    pub fn lookup_from(&self, addr: usize) -> Result<Option<(Range<usize>, Vma)>, NotNow> {
        let vma = self.core.space.read_at_or_after(addr).map_err(not_now)?;
        Ok(vma.map(|vma| (vma.range(), (*vma).clone())))
    }

    /// Calls `visit` with all VMAs in order of address, while no call changes them. It must not
    /// call the same `Mm`.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    /// Mm::new(NoBacking, Config::default()).for_each(|_, _| unreachable!("nothing is mapped"))?;
    /// # Ok::<(), pervma_linux::NotNow>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotNow::OwnCall`] where it would wait for its own thread.
    pub fn for_each(&self, mut visit: impl FnMut(Range<usize>, &Vma)) -> Result<(), NotNow> {
        let view = self.core.space.view().map_err(|_| NotNow::OwnCall)?;
        view.iter().for_each(|(range, vma)| visit(range, vma));
        Ok(())
    }

    /// Returns the map as `/proc/PID/maps` shows it.
    ///
    /// Shared anonymous memory is shown with its number in place of an inode's.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// mm.mmap(0x10000, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// assert_eq!(mm.maps()?, "00010000-00011000 r--p 00000000 00:00 0 \n");
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotNow::OwnCall`] where it would wait for its own thread.
    pub fn maps(&self) -> Result<String, NotNow> {
        let (mut text, mut layout) = (String::new(), None);
        self.for_each(|range, vma| {
            // No call changes it while the map is looked at.
            let layout = layout.get_or_insert_with(|| self.config().layout);
            // Writing to a string does not fail.
            let _ = show(&mut text, layout, &range, vma);
        })?;
        Ok(text)
    }
}

fn show(text: &mut String, layout: &Layout, range: &Range<usize>, vma: &Vma) -> fmt::Result {
    let line = text.len();
    let may = |flag, letter| if vma.flags.has(flag) { letter } else { '-' };
    let (device, inode, offset) = match &vma.source {
        Source::Anonymous | Source::Special(_) => ((0, 0), 0, 0),
        Source::SharedAnonymous(object) => (OBJECTS, object.number, vma.page_offset),
        Source::File(file) | Source::Zero(file) => {
            let facts = file.facts();
            (facts.device, facts.inode, vma.page_offset)
        }
    };
    write!(
        text,
        "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {inode} ",
        range.start,
        range.end,
        may(VmFlags::READ, 'r'),
        may(VmFlags::WRITE, 'w'),
        may(VmFlags::EXEC, 'x'),
        if vma.flags.has(VmFlags::MAYSHARE) { 's' } else { 'p' },
        offset.wrapping_mul(PAGE as u64),
        device.0,
        device.1,
    )?;
    let name = match &vma.source {
        // The one character that would end the line.
        Source::File(file) | Source::Zero(file) => file.path().replace('\n', "\\012"),
        Source::SharedAnonymous(_) => match &vma.name {
            Some(name) => format!("[anon_shmem:{name}]"),
            None => String::from(NAMELESS),
        },
        Source::Special(name) => String::from(&**name),
        Source::Anonymous if range.start < layout.brk && range.end > layout.start_brk => {
            String::from("[heap]")
        }
        Source::Anonymous
            if range.start <= layout.start_stack && range.end >= layout.start_stack =>
        {
            String::from("[stack]")
        }
        Source::Anonymous => {
            vma.name.as_ref().map_or_else(String::new, |name| format!("[anon:{name}]"))
        }
    };
    if !name.is_empty() {
        while text.len() - line < NAME_COLUMN {
            text.push(' ');
        }
        text.push_str(&name);
    }
    text.push('\n');
    Ok(())
}
