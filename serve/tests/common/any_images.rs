//! Any bytes as files of images, and as entries of pagemaps that are written as such: shared by a
//! random test and a fuzz target.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use pervma_serve::images::Images;
use pervma_serve::working_set::{SourceId, WorkingSet};

use crate::images::{Entry, IN_PARENT, PRESENT, START, vma, write_mm, write_pages, write_tasks};

const PAGE: usize = 4096;
const PID: u64 = 7;
/// Pages of the task's memory.
const PAGES: usize = 12;

/// Checks what becomes of the bytes: the first says what they are.
pub(crate) fn run(bytes: &[u8]) {
    let Some((how, rest)) = bytes.split_first() else { return };
    match how % 4 {
        0 => any_file(how / 4, rest),
        1 => changed(rest),
        2 => compare(rest),
        _ => record(rest),
    }
}

/// The byte of a page, which says of which checkpoint and which page it is.
fn byte(depth: usize, page: usize) -> u8 {
    (depth * 100 + page + 1) as u8
}

fn write(folder: &Path, depth: usize, entries: &[Entry]) {
    let bytes: Vec<u8> = (0..PAGES).flat_map(|page| [byte(depth, page); PAGE]).collect();
    write_tasks(folder, &[PID]);
    write_mm(folder, PID, &[vma(&(START..START + PAGES * PAGE), 0x22)]);
    write_pages(folder, PID, &bytes, entries);
}

const FILES: [&str; 5] =
    ["inventory.img", "pstree.img", "mm-7.img", "pagemap-7.img", "pages-7.img"];

/// One file of images has these bytes.
fn any_file(which: u8, bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 0, &[(0..3, PRESENT), (5..9, PRESENT)]);
    fs::write(folder.path().join(FILES[usize::from(which) % FILES.len()]), bytes).unwrap();
    check(folder.path());
}

/// Some bytes of the files are changed.
fn changed(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 0, &[(0..3, PRESENT), (5..9, PRESENT)]);
    for &[which, at, change] in bytes.as_chunks().0 {
        let path = folder.path().join(FILES[usize::from(which) % FILES.len()]);
        let mut bytes = fs::read(&path).unwrap();
        let len = bytes.len();
        bytes[usize::from(at) % len] ^= change;
        fs::write(&path, bytes).unwrap();
    }
    check(folder.path());
}

/// What is accepted can be served: each byte can be read, and is no other's.
fn check(folder: &Path) -> Option<Images> {
    let images = match Images::open(folder) {
        Ok(images) => images,
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            return None;
        }
    };
    let source = images.source();
    for task in images.tasks() {
        let extents = images.extents(task);
        let extents = extents.as_deref().unwrap_or_default();
        let next = extents.iter().skip(1).map(|extent| extent.start);
        let ends = extents.iter().map(|extent| extent.range().end);
        assert!(ends.clone().zip(next).all(|(end, next)| end <= next), "{extents:?}");
        assert!(ends.max().is_none_or(|end| end <= 1 << 47), "{extents:?}");
        for extent in extents {
            let pages = [extent.start, extent.len, extent.offset];
            assert!(extent.len > 0 && pages.iter().all(|at| at.is_multiple_of(PAGE as u64)));
            for page in [0, extent.len - PAGE as u64] {
                assert!(source.read_at(extent.offset + page, &mut [0; PAGE]).is_ok());
            }
        }
    }
    assert!(SourceId::of_images(&images).is_ok());
    Some(images)
}

/// An entry, and whether it is of the parent images.
fn entry(bytes: &[u8; 3]) -> (bool, Entry) {
    let [start, count, flags] = bytes.map(usize::from);
    let start = start % PAGES;
    (flags & 8 != 0, (start..(start + count % 5).min(PAGES), flags as u64 & 7))
}

/// Images with these entries are refused, or have the bytes that the entries say.
fn compare(bytes: &[u8]) {
    let all: Vec<_> = bytes.as_chunks().0.iter().take(10).map(entry).collect();
    let of = |parent: bool| {
        let own = all.iter().filter(|(is_parents, _)| *is_parents == parent);
        own.map(|(_, entry)| entry.clone()).collect::<Vec<_>>()
    };
    let entries = [of(false), of(true)];
    let root = tempfile::tempdir().unwrap();
    let [last, first] = ["last", "first"].map(|name| root.path().join(name));
    for (depth, folder) in [&last, &first].into_iter().enumerate() {
        fs::create_dir(folder).unwrap();
        write(folder, depth, &entries[depth]);
    }
    symlink("../first", last.join("parent")).unwrap();
    let found = check(&last).map(|images| {
        let (extents, source) = (images.extents(PID as u32).unwrap(), images.source());
        let byte = |page: usize| {
            let addr = (START + page * PAGE) as u64;
            let extent = extents.iter().find(|extent| extent.range().contains(&addr))?;
            let mut byte = [0];
            source.read_at(extent.offset + (addr - extent.start), &mut byte).unwrap();
            Some(byte[0])
        };
        (0..PAGES).map(byte).collect::<Vec<_>>()
    });
    assert_eq!(found, expected(&entries), "{entries:?}");
}

/// What each page has; `None` if that is not told.
fn expected(entries: &[Vec<Entry>; 2]) -> Option<Vec<Option<u8>>> {
    let is_in_order = |entries: &[Entry]| {
        let mut next = 0;
        entries.iter().all(|(range, _)| {
            let is_behind = range.start >= next && !range.is_empty();
            next = range.end;
            is_behind
        })
    };
    if !is_in_order(&entries[0]) {
        return None;
    }
    let at = |depth: usize, page: usize| {
        entries[depth].iter().find(|(range, _)| range.contains(&page)).map(|(_, flags)| *flags)
    };
    let page = |page: usize| match at(0, page) {
        None => Some(None),
        Some(flags) if flags & IN_PARENT != 0 => match at(1, page) {
            Some(flags) if flags & (IN_PARENT | PRESENT) == PRESENT => Some(Some(byte(1, page))),
            _ => None,
        },
        Some(flags) => (flags & PRESENT != 0).then(|| Some(byte(0, page))),
    };
    let is_parent_read = (0..PAGES).any(|page| at(0, page).is_some_and(|f| f & IN_PARENT != 0));
    if is_parent_read && !is_in_order(&entries[1]) {
        return None;
    }
    (0..PAGES).map(page).collect()
}

/// A record that is read is written as it was, and its runs are its granules.
fn record(bytes: &[u8]) {
    let Ok(set) = WorkingSet::read(bytes) else { return };
    let mut written = Vec::new();
    set.write(&mut written).unwrap();
    assert_eq!(WorkingSet::read(&written[..]).unwrap(), set);
    let granules: u64 = set.runs().iter().map(|run| (run.end - run.start) / set.granule).sum();
    assert_eq!(granules, set.touches.len() as u64);
}
