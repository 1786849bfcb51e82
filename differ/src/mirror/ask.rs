//! What the kernel is asked about an address space, beside its map.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libc::{c_ulong, pid_t};

use crate::ptrace::check;

/// The files of `/proc` that are of one address space, whatever becomes of the process.
#[derive(Debug)]
pub(crate) struct Asked {
    maps: File,
    pagemap: File,
    /// The last text of the maps file.
    buffer: Vec<u8>,
}

/// What the kernel says of one mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) range: Range<usize>,
    /// The offset in the file, in bytes.
    pub(crate) offset: u64,
    pub(crate) device: (u32, u32),
    pub(crate) inode: u64,
    pub(crate) name: String,
}

/// `struct procmap_query`.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    addr: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name_addr: u64,
    build_id_addr: u64,
}

/// `PROCMAP_QUERY`.
const QUERY: c_ulong = 0xc068_6611;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    wanted: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `PAGEMAP_SCAN`, and its categories of pages.
const SCAN: c_ulong = 0xc060_6610;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const ZERO: u64 = 1 << 5;
const GUARD: u64 = 1 << 8;

impl Asked {
    /// Those of a process, or of a thread.
    pub(crate) fn of(pid: pid_t) -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/{pid}/{name}"));
        Ok(Self { maps: open("maps")?, pagemap: open("pagemap")?, buffer: vec![0; 1 << 16] })
    }

    /// The text of the maps file.
    pub(crate) fn maps(&mut self) -> io::Result<String> {
        let mut len = 0;
        loop {
            if len + 4096 > self.buffer.len() {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
            match self.maps.read_at(&mut self.buffer[len..], len as u64)? {
                0 => return Ok(String::from_utf8_lossy(&self.buffer[..len]).into_owned()),
                read => len += read,
            }
        }
    }

    /// The mapping at an address.
    pub(crate) fn at(&self, addr: usize) -> io::Result<Option<Shown>> {
        let mut name = [0_u8; 4096];
        let mut query = Query {
            size: size_of::<Query>() as u64,
            addr: addr as u64,
            name_size: u32::try_from(name.len()).unwrap_or(0),
            name_addr: name.as_mut_ptr().expose_provenance() as u64,
            ..Query::default()
        };
        // SAFETY: the kernel reads and writes the structure, and as many bytes of the name as it
        // says there are.
        let asked = unsafe { libc::ioctl(self.maps.as_raw_fd(), QUERY, &raw mut query) };
        match check(asked.into()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            asked => asked?,
        };
        let word = |word: u64| usize::try_from(word).map_err(io::Error::other);
        let len = usize::try_from(query.name_size).unwrap_or(0).saturating_sub(1);
        let bytes = name.get(..len).unwrap_or_default();
        Ok(Some(Shown {
            range: word(query.start)?..word(query.end)?,
            offset: query.offset,
            device: (query.major, query.minor),
            inode: query.inode,
            name: Path::new(std::ffi::OsStr::from_bytes(bytes)).to_string_lossy().into_owned(),
        }))
    }

    /// The first anonymous page in a range of private memory: one that was written.
    pub(crate) fn first_written(&self, range: &Range<usize>) -> io::Result<Option<usize>> {
        let mut region = Region::default();
        let neither = FILE | ZERO | GUARD;
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: range.start as u64,
            end: range.end as u64,
            vec: (&raw mut region).expose_provenance() as u64,
            vec_len: 1,
            max_pages: 1,
            inverted: neither,
            all_of: neither,
            any_of: PRESENT | SWAPPED,
            wanted: PRESENT,
            ..Scan::default()
        };
        // SAFETY: the kernel reads and writes the structure, and writes at most one region.
        let found = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), SCAN, &raw mut scan) };
        let found = check(found.into())?;
        let start = usize::try_from(region.start).map_err(io::Error::other)?;
        Ok((found > 0).then_some(start))
    }
}

/// Reads a file of a process or a thread in `/proc`.
pub(crate) fn file_of(pid: pid_t, name: &str) -> io::Result<String> {
    // Names of files are any bytes.
    let bytes = fs::read(format!("/proc/{pid}/{name}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn what_was_written_is_known_and_what_was_read_is_not_written() {
        let asked = Asked::of(std::process::id().cast_signed()).unwrap();
        let page = pervma_linux::abi::PAGE;
        // So much that it is mapped anew.
        let mut memory = vec![0_u8; 64 << 20];
        let start = memory.as_ptr().addr().next_multiple_of(page);
        let offset = start - memory.as_ptr().addr();
        let range = start..start + (32 << 20);
        // Zeros that nothing has written are shared.
        black_box(memory[40 * page]);
        assert_eq!(asked.first_written(&range).unwrap(), None);
        memory[offset + 5 * page] = black_box(1);
        let found = asked.first_written(&range).unwrap().unwrap();
        // It may be a huge page.
        assert!(found <= start + 5 * page && range.contains(&found));
        let shown = asked.at(start).unwrap().unwrap();
        assert!(shown.range.contains(&start) && shown.inode == 0);
        assert_eq!(asked.at(0).unwrap(), None);
    }
}
