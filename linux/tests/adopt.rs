//! Mappings that are taken over.

use std::sync::Arc;

use pervma_linux::{
    Access, AnonVma, Config, Counts, Errno, File, FileFacts, Limits, Mm, NoBacking, Object,
    OpenFile, Source, VmFlags, Vma, abi::*,
};

const BASE: usize = 0x10_0000;

fn anonymous(flags: VmFlags, number: Option<u64>) -> Vma {
    let anon = number.map(|number| AnonVma { number, from_parent: false });
    Vma { flags, page_offset: (BASE / PAGE) as u64, source: Source::Anonymous, anon, name: None }
}

const MEMORY: VmFlags = VmFlags::MAYALL;

#[test]
fn what_is_taken_over_is_there_exactly_and_counted() {
    let mm = Mm::new(NoBacking, Config::default());
    let vma = anonymous(MEMORY | VmFlags::READ | VmFlags::WRITE, None);
    // They would merge, and do not.
    mm.adopt(BASE..BASE + PAGE, vma.clone()).unwrap();
    let next = Vma { page_offset: vma.page_offset + 1, ..vma.clone() };
    mm.adopt(BASE + PAGE..BASE + 3 * PAGE, next).unwrap();
    assert_eq!(mm.maps().unwrap().lines().count(), 2);
    assert_eq!(mm.counts(), Counts { total: 3, data: 3, ..Counts::default() });
    let locked = Vma { flags: MEMORY | VmFlags::LOCKED, ..vma };
    mm.adopt(BASE + 8 * PAGE..BASE + 9 * PAGE, locked).unwrap();
    assert_eq!((mm.counts().total, mm.counts().locked), (4, 1));
    mm.munmap(0, 1 << 40).unwrap();
    assert_eq!(mm.counts(), Counts::default());
}

#[test]
fn what_cannot_be_there_is_refused() {
    let mm = Mm::new(NoBacking, Config::default());
    let end = mm.config().layout.task_size;
    let adopt = |range| mm.adopt(range, anonymous(MEMORY, None));
    for range in [BASE..BASE, BASE + 1..BASE + PAGE, BASE..BASE + PAGE + 1, end..end + PAGE] {
        assert_eq!(adopt(range.clone()), Err(Errno::EINVAL), "{range:x?}");
    }
    adopt(end - PAGE..end).unwrap();
    adopt(BASE..BASE + 2 * PAGE).unwrap();
    assert_eq!(adopt(BASE + PAGE..BASE + 3 * PAGE), Err(Errno::EEXIST));
    assert_eq!(mm.counts().total, 3);
}

#[test]
fn what_is_made_later_has_other_numbers() {
    let mm = Mm::new(NoBacking, Config::default());
    let writable = MEMORY | VmFlags::READ | VmFlags::WRITE;
    mm.adopt(BASE..BASE + PAGE, anonymous(writable, Some(7))).unwrap();
    let object = Arc::new(Object { number: 9, size: PAGE });
    let flags = writable | VmFlags::SHARED | VmFlags::MAYSHARE;
    let shared = Vma { source: Source::SharedAnonymous(object), ..anonymous(flags, None) };
    mm.adopt(BASE + 2 * PAGE..BASE + 3 * PAGE, shared).unwrap();
    let prot = PROT_READ | PROT_WRITE;
    let addr = mm.mmap(0, PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, None, 0).unwrap();
    mm.fault(addr, Access::Write).unwrap();
    let (_, vma) = mm.lookup(addr).unwrap().unwrap();
    assert_eq!(vma.anon.unwrap().number, 8);
    let addr = mm.mmap(0, PAGE, prot, MAP_SHARED | MAP_ANONYMOUS, None, 0).unwrap();
    let (_, vma) = mm.lookup(addr).unwrap().unwrap();
    assert!(matches!(vma.source, Source::SharedAnonymous(object) if object.number == 10));
}

#[test]
fn what_will_be_mapped_is_locked_if_that_was_said_before() {
    let limits = Limits { locked: 2 * PAGE as u64, ..Limits::default() };
    for future in [VmFlags::default(), VmFlags::LOCKED, VmFlags::LOCKED_MASK] {
        let mm = Mm::new(NoBacking, Config { future, limits, ..Config::default() });
        // What is taken over is as it is.
        mm.adopt(BASE..BASE + PAGE, anonymous(MEMORY | VmFlags::READ, None)).unwrap();
        let map = || mm.mmap(0, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0);
        let locked = future != VmFlags::default();
        let flags = mm.lookup(map().unwrap()).unwrap().unwrap().1.flags;
        assert_eq!((flags & VmFlags::LOCKED_MASK, mm.config().future), (future, future));
        assert_eq!((mm.counts().locked, map().is_err()), (if locked { 2 } else { 0 }, locked));
        assert_eq!(mm.fork(NoBacking).unwrap().config().future, VmFlags::default());
        let changed = mm.configure(|config| config.future = VmFlags::LOCKED);
        assert_eq!(changed.is_err(), future != VmFlags::LOCKED, "it is mlockall's to change");
        mm.munlockall().unwrap();
        assert_eq!(mm.config().future, VmFlags::default());
    }
    // Nothing else is for all mappings to come.
    let config = Config { future: VmFlags::SEALED | VmFlags::LOCKED, ..Config::default() };
    assert_eq!(Mm::new(NoBacking, config).config().future, VmFlags::LOCKED);
}

#[test]
fn memory_of_devices_can_be_split_and_neither_merges_nor_is_locked() {
    let mm = Mm::new(NoBacking, Config::default());
    let file: Arc<dyn File> = Arc::new(OpenFile::new("/dev/device", FileFacts::new()));
    let flags = MEMORY | VmFlags::READ | VmFlags::WRITE | VmFlags::SHARED | VmFlags::MAYSHARE;
    let flags = flags | VmFlags::IO | VmFlags::PFNMAP | VmFlags::DONTEXPAND;
    let vma = Vma { flags, page_offset: 0, source: Source::File(file), anon: None, name: None };
    mm.adopt(BASE..BASE + 4 * PAGE, vma).unwrap();
    mm.mprotect(BASE, PAGE, PROT_READ).unwrap();
    mm.mprotect(BASE, PAGE, PROT_READ | PROT_WRITE).unwrap();
    assert_eq!(mm.maps().unwrap().lines().count(), 2, "split, and not merged again");
    mm.mlockall(MCL_CURRENT).unwrap();
    assert_eq!(mm.counts().locked, 0);
    assert_eq!(mm.mremap(BASE + PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE, 0), Err(Errno::EFAULT));
    assert_eq!(mm.madvise(BASE, PAGE, MADV_DONTNEED), Err(Errno::EINVAL));
    assert_eq!(mm.madvise(BASE, PAGE, MADV_DOFORK), Err(Errno::EINVAL));
    assert_eq!(mm.madvise(BASE, PAGE, MADV_DONTFORK), Ok(()));
    assert_eq!(mm.fork(NoBacking).unwrap().counts().total, 3);
}
