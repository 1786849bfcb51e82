//! A compressed snapshot in a file, and how a region reads it.
//!
//! ```text
//! frame | frame | ... | index: (end, checksum) of each frame | bytes of the snapshot | MAGIC
//! ```
//!
//! A frame holds [`FRAME`] bytes of the snapshot (the last one what is left), compressed on their
//! own; or as they are, if that is no shorter. Numbers have 8 bytes, the lowest first.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;

use lz4_flex::block::{compress, decompress_into};
use pervma_pager::{ReadFailed, SignalSafe, Source};

use crate::no_allocation::NoAllocation;

/// Bytes that are compressed together: what a fault decompresses, and so the region's granule.
pub(crate) const FRAME: usize = 16 << 10;
const MAGIC: u64 = u64::from_le_bytes(*b"frames/1");
/// Bytes behind the index, and of an entry in it.
const TRAILER: u64 = 16;
const ENTRY: u64 = 16;

/// Writes a snapshot of `size` bytes, of which `content` writes those from an offset on into a
/// buffer; returns how many bytes the file has.
pub(crate) fn write(
    file: &mut File,
    size: u64,
    content: impl Fn(u64, &mut [u8]),
) -> io::Result<u64> {
    let (mut index, mut end) = (Vec::new(), 0);
    for offset in (0..size).step_by(FRAME) {
        let mut bytes = vec![0; frame_len(size, offset)];
        content(offset, &mut bytes);
        let compressed = compress(&bytes);
        let stored = if compressed.len() < bytes.len() { compressed } else { bytes };
        file.write_all(&stored)?;
        end += stored.len() as u64;
        index.extend([end, checksum(&stored)]);
    }
    index.extend([size, MAGIC]);
    let index: Vec<u8> = index.into_iter().flat_map(u64::to_le_bytes).collect();
    file.write_all(&index)?;
    Ok(end + index.len() as u64)
}

/// The bytes of the frame that begins at `offset`.
fn frame_len(size: u64, offset: u64) -> usize {
    usize::try_from(size - offset).map_or(FRAME, |left| left.min(FRAME))
}

/// Tells bytes from damaged ones: a change within one word always shows, others nearly always.
/// (Against an attacker it is nothing.)
fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let mixed = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed.rotate_left(29)
    })
}

/// A snapshot that is open: the file, and its index in memory.
pub(crate) struct Snapshot {
    file: File,
    size: u64,
    frames: Vec<Frame>,
}

/// Where a frame is in the file.
struct Frame {
    start: u64,
    len: usize,
    checksum: u64,
}

impl Snapshot {
    /// Reads and checks the index. Frames are checked when they are read.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        let damaged = || io::Error::new(ErrorKind::InvalidData, "the index is damaged");
        let index_end = file.metadata()?.len().checked_sub(TRAILER).ok_or_else(damaged)?;
        let [size, magic] = pair(&file, index_end)?;
        let count = size.div_ceil(FRAME as u64);
        let index = count.checked_mul(ENTRY).and_then(|len| index_end.checked_sub(len));
        let index = index.filter(|_| magic == MAGIC).ok_or_else(damaged)?;

        let (mut frames, mut start) = (Vec::new(), 0);
        for (offset, at) in (0..size).step_by(FRAME).zip((index..).step_by(ENTRY as usize)) {
            let [end, checksum] = pair(&file, at)?;
            let len = end.checked_sub(start).ok_or_else(damaged)?;
            let len = usize::try_from(len).map_err(|_| damaged())?;
            // What follows relies on it: a frame fits where it is read and decompressed to.
            if len > frame_len(size, offset) {
                return Err(damaged());
            }
            frames.push(Frame { start, len, checksum });
            start = end;
        }
        if start == index { Ok(Self { file, size, frames }) } else { Err(damaged()) }
    }

    /// Where frame `number` is in the file.
    pub(crate) fn place(&self, number: usize) -> std::ops::Range<u64> {
        let Frame { start, len, .. } = self.frames[number];
        start..start + len as u64
    }

    /// Reads `part`, which begins `skip` bytes behind the start of a frame and lies in it.
    fn read_frame(
        &self,
        number: usize,
        skip: usize,
        part: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), ReadFailed> {
        let frame = self.frames.get(number).ok_or(ReadFailed)?;
        let stored = &mut scratch.stored[..frame.len];
        self.file.read_exact_at(stored, frame.start).map_err(|_| ReadFailed)?;
        if checksum(stored) != frame.checksum {
            return Err(ReadFailed);
        }
        let len = frame_len(self.size, (number * FRAME) as u64);
        if part.len() == len {
            return decode(stored, part);
        }
        // Some of its pages are there still, the others were given back.
        let whole = &mut scratch.whole[..len];
        decode(stored, whole)?;
        part.copy_from_slice(&whole[skip..skip + part.len()]);
        Ok(())
    }
}

/// Fills `bytes` with what a frame holds.
fn decode(stored: &[u8], bytes: &mut [u8]) -> Result<(), ReadFailed> {
    if stored.len() == bytes.len() {
        bytes.copy_from_slice(stored);
        return Ok(());
    }
    match decompress_into(stored, bytes) {
        Ok(len) if len == bytes.len() => Ok(()),
        _ => Err(ReadFailed),
    }
}

/// Two numbers in a file.
fn pair(file: &File, at: u64) -> io::Result<[u64; 2]> {
    let mut bytes = [[0; 8]; 2];
    file.read_exact_at(bytes.as_flattened_mut(), at)?;
    Ok(bytes.map(u64::from_le_bytes))
}

/// Where a thread reads a frame to, and decompresses one of which it needs a part.
struct Scratch {
    stored: [u8; FRAME],
    whole: [u8; FRAME],
}

thread_local! {
    // Initialised as a constant and without a destructor, so its first use runs no code.
    static SCRATCH: RefCell<Scratch> =
        const { RefCell::new(Scratch { stored: [0; FRAME], whole: [0; FRAME] }) };
}

impl Source for Snapshot {
    fn size(&self) -> u64 {
        self.size
    }

    /// Runs in the signal handler of the thread that has touched a page. With the region's granule
    /// a call is for one frame or a part of it, but that need not be so.
    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<(), ReadFailed> {
        let _checked = NoAllocation::here();
        while !buf.is_empty() {
            let (number, skip) = ((offset / FRAME as u64) as usize, offset as usize % FRAME);
            let part;
            (part, buf) = buf.split_at_mut((FRAME - skip).min(buf.len()));
            offset += part.len() as u64;
            SCRATCH.with_borrow_mut(|scratch| self.read_frame(number, skip, part, scratch))?;
        }
        Ok(())
    }
}

// SAFETY: `read_at` reads a file by `pread`, sums bytes up, and decompresses from one slice to
// another. It waits for no thread and takes no lock: what it writes to is its caller's or its own
// thread's, and no fault is served inside of another. The decoder (`lz4_flex`, built without its
// unsafe code) allocates nothing, which `NoAllocation` holds it to. Optimised, what it needs of the
// stack is no more than what a fault needs anyway.
unsafe impl SignalSafe for Snapshot {}
