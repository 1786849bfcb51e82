//! Images of a checkpoint, as CRIU writes them.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses some of it")]

use std::fs;
use std::ops::Range;
use std::path::Path;

const PAGE: usize = 4096;

pub(crate) const IN_PARENT: u64 = 1;
pub(crate) const LAZY: u64 = 2;
pub(crate) const PRESENT: u64 = 4;

/// Where the memory of tasks begins.
pub(crate) const START: usize = 1 << 44;

/// A protobuf message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    fn varint(mut self, mut number: u64) -> Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    pub(crate) fn number(self, field: u64, number: u64) -> Self {
        self.varint(field << 3).varint(number)
    }

    pub(crate) fn message(self, field: u64, message: &Self) -> Self {
        let mut with = self.varint(field << 3 | 2).varint(message.0.len() as u64);
        with.0.extend(&message.0);
        with
    }
}

/// The bytes of an image file.
pub(crate) fn image(magic: u32, messages: &[Message]) -> Vec<u8> {
    // The inventory has no common part.
    let common: &[u32] = if magic == INVENTORY { &[] } else { &[0x5456_4319] };
    let head = common.iter().chain([&magic]);
    let mut bytes: Vec<u8> = head.flat_map(|word| word.to_le_bytes()).collect();
    for message in messages {
        bytes.extend((message.0.len() as u32).to_le_bytes());
        bytes.extend(&message.0);
    }
    bytes
}

pub(crate) const INVENTORY: u32 = 0x5831_3116;
pub(crate) const PSTREE: u32 = 0x5027_3030;
pub(crate) const MM: u32 = 0x5749_2820;
pub(crate) const PAGEMAP: u32 = 0x5608_4025;

/// Writes what is there once in the images of tasks.
pub(crate) fn write_tasks(folder: &Path, tasks: &[u64]) {
    let inventory = Message::default().number(1, 2).number(2, 1).number(4, 1);
    fs::write(folder.join("inventory.img"), image(INVENTORY, &[inventory])).unwrap();
    let task = |&pid: &u64| {
        (2..=4).fold(Message::default().number(1, pid), |task, field| task.number(field, 1))
    };
    let tasks: Vec<_> = tasks.iter().map(task).collect();
    fs::write(folder.join("pstree.img"), image(PSTREE, &tasks)).unwrap();
}

/// The mapping of a task, as CRIU tells of one.
pub(crate) fn vma(range: &Range<usize>, flags: i32) -> Message {
    let fields = [(1, range.start as u64), (2, range.end as u64), (3, 0), (4, 0), (5, 3)];
    let vma =
        fields.iter().fold(Message::default(), |vma, &(field, number)| vma.number(field, number));
    vma.number(6, flags as u64).number(7, 0x201).number(8, 1)
}

/// Writes the mappings of a task.
pub(crate) fn write_mm(folder: &Path, pid: u64, vmas: &[Message]) {
    let mm = (1..=12).fold(Message::default(), |mm, field| mm.number(field, 0));
    let mm = vmas.iter().fold(mm, |mm, vma| mm.message(14, vma));
    fs::write(folder.join(format!("mm-{pid}.img")), image(MM, &[mm])).unwrap();
}

/// Pages of a task, by their numbers, and the flags of their entry in the pagemap.
pub(crate) type Entry = (Range<usize>, u64);

/// Writes the pages of a task whose memory has these bytes.
pub(crate) fn write_pages(folder: &Path, pid: u64, bytes: &[u8], entries: &[Entry]) {
    let mut messages = vec![Message::default().number(1, pid)];
    let mut pages = Vec::new();
    for (range, flags) in entries {
        let entry = Message::default().number(1, (START + range.start * PAGE) as u64);
        let entry = entry.number(2, range.len() as u64).number(4, *flags);
        messages.push(entry.number(5, range.len() as u64));
        if flags & (PRESENT | IN_PARENT) == PRESENT {
            pages.extend(&bytes[range.start * PAGE..range.end * PAGE]);
        }
    }
    fs::write(folder.join(format!("pagemap-{pid}.img")), image(PAGEMAP, &messages)).unwrap();
    fs::write(folder.join(format!("pages-{pid}.img")), pages).unwrap();
}
