//! The facts about a file change; its identity does not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use pervma_linux::{
    Config, Errno, File, FileFacts, MapOperation, Mm, NoBacking, OpenFile, StdPlatform, abi::*,
};

const ADDR: usize = 0x1000_0000;

type Space = Mm<NoBacking, StdPlatform>;

fn open(path: &str) -> (Arc<OpenFile<StdPlatform>>, Arc<dyn File>) {
    let open = Arc::new(OpenFile::new(path, FileFacts { inode: 9, ..FileFacts::new() }));
    (Arc::clone(&open), open)
}

/// Maps the page of the file with this number at the page with the same number.
fn map(mm: &Space, page: usize, prot: u64, kind: u64, file: &Arc<dyn File>) -> Result<(), Errno> {
    let (addr, offset) = (ADDR + page * PAGE, (page * PAGE) as u64);
    mm.mmap(addr, PAGE, prot, kind | MAP_FIXED, Some(file), offset).map(drop)
}

fn names(mm: &Space) -> Vec<String> {
    mm.maps().unwrap().lines().map(|line| line[73..].to_owned()).collect()
}

#[test]
fn a_new_name_is_shown_for_what_was_mapped_before() {
    let mm = Mm::new(NoBacking, Config::default());
    let (open, file) = open("/a");
    map(&mm, 0, PROT_READ, MAP_PRIVATE, &file).unwrap();
    open.rename("/b");
    map(&mm, 1, PROT_READ, MAP_PRIVATE, &file).unwrap();
    assert_eq!(names(&mm), ["/b"]);
    open.rename("/b (deleted)");
    assert_eq!(names(&mm), ["/b (deleted)"]);
    // The child of a fork has the same files.
    let child = mm.fork(NoBacking).unwrap();
    open.rename("/c");
    assert_eq!(names(&child), ["/c"]);
}

#[test]
fn a_seal_holds_from_the_next_call_on() {
    let mm = Mm::new(NoBacking, Config::default());
    let (open, file) = open("/memfd:a (deleted)");
    map(&mm, 0, PROT_READ | PROT_WRITE, MAP_SHARED, &file).unwrap();
    map(&mm, 2, PROT_READ, MAP_PRIVATE, &file).unwrap();
    open.update(|facts| facts.seal_future_write = true);
    // A mapping from before the seal may still write.
    mm.mprotect(ADDR, PAGE, PROT_READ).unwrap();
    mm.mprotect(ADDR, PAGE, PROT_READ | PROT_WRITE).unwrap();
    assert_eq!(map(&mm, 1, PROT_WRITE, MAP_SHARED, &file), Err(Errno::EPERM));
    map(&mm, 1, PROT_READ, MAP_SHARED, &file).unwrap();
    assert_eq!(mm.mprotect(ADDR + PAGE, PAGE, PROT_WRITE), Err(Errno::EACCES));
    map(&mm, 3, PROT_READ, MAP_PRIVATE, &file).unwrap();
    assert_eq!(mm.maps().unwrap().lines().count(), 3);
}

#[test]
fn two_files_with_equal_facts_do_not_merge() {
    let mm = Mm::new(NoBacking, Config::default());
    let ((_one, file), (_two, other)) = (open("/a"), open("/a"));
    map(&mm, 0, PROT_READ, MAP_PRIVATE, &file).unwrap();
    map(&mm, 1, PROT_READ, MAP_PRIVATE, &other).unwrap();
    assert_eq!(names(&mm), ["/a", "/a"]);
    map(&mm, 1, PROT_READ, MAP_PRIVATE, &file).unwrap();
    assert_eq!(names(&mm), ["/a"]);
}

#[test]
fn where_a_moved_file_goes_is_decided_by_the_facts_at_that_moment() {
    let mm = Mm::new(NoBacking, Config::default());
    let (open, file) = open("/a");
    let addr = mm.mmap(ADDR, HUGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, Some(&file), 0).unwrap();
    mm.mmap(addr + HUGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, Some(&file), 0).unwrap();
    open.update(|facts| facts.huge_aligned = true);
    let moved = mm.mremap(addr, HUGE, 2 * HUGE, MREMAP_MAYMOVE, 0).unwrap();
    assert_eq!(moved % HUGE, 0);
}

#[test]
fn a_tcp_socket_is_mapped_to_be_read_only() {
    let mm = Mm::new(NoBacking, Config::default());
    let facts = FileFacts { operation: MapOperation::Tcp, noexec: true, ..FileFacts::new() };
    let file: Arc<dyn File> = Arc::new(OpenFile::new("socket:[9]", facts));
    map(&mm, 0, PROT_READ, MAP_SHARED, &file).unwrap();
    map(&mm, 1, PROT_READ, MAP_SHARED | MAP_LOCKED, &file).unwrap();
    assert_eq!(names(&mm), ["socket:[9]", "socket:[9]"], "what is a driver's does not merge");
    let (_, vma) = mm.lookup(ADDR + PAGE).unwrap().unwrap();
    assert_eq!((vma.flags.to_string().as_str(), mm.counts().locked), ("rd sh mr ms mm", 0));
    assert_eq!(mm.mprotect(ADDR, PAGE, PROT_WRITE), Err(Errno::EACCES));
    // What was there is gone when the socket is asked.
    assert_eq!(map(&mm, 0, PROT_WRITE, MAP_SHARED, &file), Err(Errno::EPERM));
    assert_eq!(names(&mm).len(), 1);
}

#[test]
fn what_is_new_of_a_stacked_file_merges_with_none_and_what_is_changed_merges() {
    let mm = Mm::new(NoBacking, Config::default());
    let (open, file) = open("/merged/file");
    open.update(|facts| facts.stacked = true);
    let lines = || mm.maps().unwrap().lines().count();
    for page in 0..3 {
        map(&mm, page, PROT_READ, MAP_PRIVATE, &file).unwrap();
    }
    assert_eq!(lines(), 3);
    // The second becomes one with both.
    for prot in [PROT_NONE, PROT_READ] {
        mm.mprotect(ADDR + PAGE, PAGE, prot).unwrap();
    }
    assert_eq!(lines(), 1);
    // So does what becomes longer, or moves to where it fits.
    mm.munmap(ADDR + PAGE, 2 * PAGE).unwrap();
    map(&mm, 2, PROT_READ, MAP_PRIVATE, &file).unwrap();
    mm.mremap(ADDR, PAGE, 2 * PAGE, 0, 0).unwrap();
    assert_eq!(lines(), 1);
}
