//! CRIU's image files: what they begin with, and the few messages in them that are needed.

use prost::Message;

/// All files but the inventory begin with this, in this version.
const COMMON: u32 = 0x5456_4319;
/// An inventory.
pub(super) const INVENTORY: u32 = 0x5831_3116;
/// The tasks.
pub(super) const PSTREE: u32 = 0x5027_3030;
/// The mappings of a task.
pub(super) const MM: u32 = 0x5749_2820;
/// The pages of a task.
pub(super) const PAGEMAP: u32 = 0x5608_4025;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Inventory {
    #[prost(uint32, required, tag = "1")]
    pub(super) img_version: u32,
}

/// A task.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PstreeEntry {
    #[prost(uint32, required, tag = "1")]
    pub(super) pid: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Mm {
    #[prost(message, repeated, tag = "14")]
    pub(super) vmas: Vec<Vma>,
}

/// A mapping.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Vma {
    #[prost(uint64, required, tag = "1")]
    pub(super) start: u64,
    #[prost(uint64, required, tag = "2")]
    pub(super) end: u64,
    /// As `mmap` takes them.
    #[prost(uint32, required, tag = "6")]
    pub(super) flags: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PagemapHead {
    /// The number in the name of the file that has the pages.
    #[prost(uint32, required, tag = "1")]
    pub(super) pages_id: u32,
}

/// Pages that follow each other.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PagemapEntry {
    #[prost(uint64, required, tag = "1")]
    pub(super) vaddr: u64,
    /// What counts if there is no `nr_pages`.
    #[prost(uint32, required, tag = "2")]
    pub(super) compat_nr_pages: u32,
    #[prost(bool, optional, tag = "3")]
    pub(super) in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    pub(super) flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub(super) nr_pages: Option<u64>,
}

/// The messages of an image file, whose bytes these are: its records.
///
/// # Errors
///
/// What is wrong with its head.
pub(super) fn records(mut bytes: &[u8], kind: u32) -> Result<Records<'_>, String> {
    let len = bytes.len();
    let magics: &[u32] = if kind == INVENTORY { &[INVENTORY] } else { &[COMMON, kind] };
    for &magic in magics {
        let found = take_u32(&mut bytes).ok_or("it is no image file: it is too short")?;
        if found != magic {
            return Err(format!("it is no image file of this kind: {found:#x} is not {magic:#x}"));
        }
    }
    Ok(Records { bytes, len })
}

/// Takes the messages of an image file one after the other.
pub(super) struct Records<'b> {
    bytes: &'b [u8],
    /// Of the file, in bytes.
    len: usize,
}

impl Records<'_> {
    /// The next message; `None` at the end.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn next<M: Message + Default>(&mut self) -> Result<Option<M>, String> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let at = self.len - self.bytes.len();
        let message = take_u32(&mut self.bytes)
            .and_then(|len| self.bytes.split_at_checked(usize::try_from(len).ok()?));
        let Some((message, rest)) = message else {
            return Err(format!("it is truncated within the record at byte {at}"));
        };
        self.bytes = rest;
        let decoded = M::decode(message);
        decoded.map(Some).map_err(|error| format!("the record at byte {at} is malformed: {error}"))
    }
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}
