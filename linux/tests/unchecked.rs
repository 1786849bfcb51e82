//! Rules that cannot be compared with every running kernel: it may be built without them, or
//! require privilege.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use pervma_linux::{
    Access, Backing, Config, Errno, File, FileFacts, Layout, MapOperation, Mm, NoBacking, OpenFile,
    Part, Refusal, VmFlags, abi::*,
};

const ANONYMOUS: u64 = MAP_PRIVATE | MAP_ANONYMOUS;

fn file(facts: FileFacts) -> Arc<dyn File> {
    Arc::new(OpenFile::new("/file", facts))
}

#[test]
fn names_keep_mappings_apart() {
    let mm = Mm::new(NoBacking, Config::default());
    let addr = mm.mmap(0, 3 * PAGE, PROT_READ, ANONYMOUS, None, 0).unwrap();
    mm.set_anon_name(addr + PAGE, PAGE, Some("a b")).unwrap();
    assert_eq!(mm.maps().unwrap().lines().count(), 3);
    assert_eq!(mm.maps().unwrap().matches("[anon:a b]").count(), 1);
    mm.set_anon_name(addr, 3 * PAGE, Some("a b")).unwrap();
    assert_eq!(mm.maps().unwrap().lines().count(), 1);
    mm.set_anon_name(addr, PAGE, None).unwrap();
    assert_eq!(mm.maps().unwrap().lines().count(), 2);
    for bad in ["a\nb", "[x]", "$", "`", "\\", &"x".repeat(80)] {
        assert_eq!(mm.set_anon_name(addr, PAGE, Some(bad)), Err(Errno::EINVAL), "{bad}");
    }
    let longest = "x".repeat(79);
    assert_eq!(mm.set_anon_name(addr, PAGE, Some(&longest)), Ok(()));
    assert_eq!(mm.set_anon_name(addr + PAGE, 3 * PAGE, None), Err(Errno::ENOMEM));

    let shared = mm.mmap(0, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, None, 0).unwrap();
    mm.set_anon_name(shared, PAGE, Some("s")).unwrap();
    assert!(mm.maps().unwrap().contains("[anon_shmem:s]"));
    let file = file(FileFacts::new());
    let mapped = mm.mmap(0, PAGE, PROT_READ, MAP_PRIVATE, Some(&file), 0).unwrap();
    assert_eq!(mm.set_anon_name(mapped, PAGE, Some("f")), Err(Errno::EBADF));
}

#[test]
fn files_are_asked_what_may_be_done() {
    let mm = Mm::new(NoBacking, Config::default());
    let map = |facts, prot, flags| mm.mmap(0, PAGE, prot, flags, Some(&file(facts)), 0);
    let plain = FileFacts::new();
    let noexec = FileFacts { noexec: true, ..plain };
    assert_eq!(map(noexec, PROT_EXEC, MAP_PRIVATE), Err(Errno::EPERM));
    let addr = map(noexec, PROT_READ, MAP_PRIVATE).unwrap();
    assert_eq!(mm.mprotect(addr, PAGE, PROT_EXEC), Err(Errno::EACCES));
    let unmappable = FileFacts { operation: MapOperation::Absent, ..plain };
    assert_eq!(map(unmappable, PROT_READ, MAP_PRIVATE), Err(Errno::ENODEV));
    let append = FileFacts { append_only: true, ..plain };
    assert_eq!(map(append, PROT_READ, MAP_SHARED), Err(Errno::EACCES));
    assert!(map(append, PROT_READ, MAP_PRIVATE).is_ok());
    let small = FileFacts { max_bytes: 0, ..plain };
    assert_eq!(map(small, PROT_READ, MAP_PRIVATE), Err(Errno::EOVERFLOW));
}

#[test]
fn what_refuses_late_leaves_a_hole_except_in_strict_mode() {
    let never = MapOperation::Refuses(Errno::ENODEV);
    for (operation, flags, error) in [
        (MapOperation::RefusesSync, MAP_PRIVATE | MAP_SYNC, Errno::EOPNOTSUPP),
        (never, MAP_PRIVATE, Errno::ENODEV),
    ] {
        let file = file(FileFacts { operation, ..FileFacts::new() });
        for strict in [false, true] {
            let mm = Mm::new(NoBacking, Config { strict, ..Config::default() });
            let addr = mm.mmap(0, 3 * PAGE, PROT_READ, ANONYMOUS, None, 0).unwrap();
            let over = mm.mmap(addr + PAGE, PAGE, PROT_READ, flags | MAP_FIXED, Some(&file), 0);
            assert_eq!(over, Err(error));
            let left = if strict { 3 } else { 2 };
            assert_eq!(
                (mm.counts().total, mm.lookup(addr + PAGE).unwrap().is_some()),
                (left, strict)
            );
        }
    }
}

#[test]
fn files_of_huge_pages_lie_on_huge_pages() {
    let mm = Mm::new(NoBacking, Config::default());
    let file = file(FileFacts { huge_aligned: true, ..FileFacts::new() });
    let addr = mm.mmap(0, 2 * HUGE, PROT_READ, MAP_PRIVATE, Some(&file), PAGE as u64).unwrap();
    assert_eq!(addr % HUGE, PAGE, "the file's pages and memory's pages agree");
}

#[test]
fn a_privileged_process_knows_no_limits() {
    let limits = pervma_linux::Limits { locked: 0, ..Default::default() };
    let config = Config { limits, may_lock: true, may_map_low: true, ..Config::default() };
    let mm = Mm::new(NoBacking, config);
    assert_eq!(mm.mmap(0, PAGE, PROT_READ, ANONYMOUS | MAP_FIXED, None, 0), Ok(0));
    assert_eq!(mm.mlock(0, PAGE), Ok(()));
    assert!(mm.lookup(0).unwrap().unwrap().1.flags.has(VmFlags::LOCKED));
}

#[test]
fn the_privileged_damage_memory_where_the_kernel_knows_how() {
    for advice in [MADV_HWPOISON, MADV_SOFT_OFFLINE] {
        let mm = Mm::new(NoBacking, Config { may_poison: true, ..Config::default() });
        let addr = mm.mmap(0, PAGE, PROT_READ, ANONYMOUS, None, 0).unwrap();
        let below = mm.mmap(addr - PAGE, PAGE, PROT_WRITE, ANONYMOUS, None, 0).unwrap();
        assert_eq!(mm.madvise(addr, PAGE, advice), Ok(()));
        assert_eq!(mm.madvise(addr, 2 * PAGE, advice), Err(Errno::EFAULT), "a hole");
        assert_eq!(mm.madvise(below, PAGE, advice), Err(Errno::EFAULT), "cannot be read");
        assert_eq!(mm.madvise(addr, 0, advice), Ok(()));

        let unprivileged = Mm::new(NoBacking, Config::default());
        assert_eq!(unprivileged.madvise(addr, PAGE, advice), Err(Errno::EPERM));
        let config = Config { may_poison: true, memory_failure: false, ..Config::default() };
        assert_eq!(Mm::new(NoBacking, config).madvise(addr, PAGE, advice), Err(Errno::EINVAL));
    }
}

#[test]
fn heap_and_stack_are_known_before_names_are_looked_at() {
    let mm = Mm::new(NoBacking, Config::default());
    let (heap, stack) = (mm.brk(0), mm.config().layout.start_stack);
    mm.brk(heap + PAGE);
    let prot = PROT_READ | PROT_WRITE;
    mm.mmap(stack, PAGE, prot, ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, None, 0).unwrap();
    for addr in [heap, stack] {
        mm.set_anon_name(addr, PAGE, Some("name")).unwrap();
    }
    let maps = mm.maps().unwrap();
    let names: Vec<&str> = maps.lines().map(|line| line[73..].trim()).collect();
    assert_eq!(names, ["[heap]", "[stack]"]);
}

#[test]
fn a_name_stays_on_its_line() {
    let mm = Mm::new(NoBacking, Config::default());
    let file: Arc<dyn File> = Arc::new(OpenFile::new("/a\nb\\c\td", FileFacts::new()));
    mm.mmap(0, PAGE, PROT_READ, MAP_PRIVATE, Some(&file), 0).unwrap();
    assert!(mm.maps().unwrap().ends_with(" /a\\012b\\c\td\n"), "{:?}", mm.maps());
}

#[test]
fn a_page_that_cannot_be_had_has_other_errors_for_mlock() {
    struct Without(Refusal);
    impl Backing for Without {
        fn fault(&self, _part: Part<'_>, _access: Access) -> Result<(), Refusal> {
            Err(self.0)
        }
    }
    for (refusal, locked, populated) in [
        (Refusal::OutOfMemory, Errno::EAGAIN, Errno::ENOMEM),
        (Refusal::Bus, Errno::ENOMEM, Errno::EFAULT),
    ] {
        let mm = Mm::new(Without(refusal), Config::default());
        let addr = mm.mmap(0, PAGE, PROT_READ, ANONYMOUS, None, 0).unwrap();
        assert_eq!(mm.mlock(addr, PAGE), Err(locked));
        assert_eq!(mm.madvise(addr, PAGE, MADV_POPULATE_READ), Err(populated));
    }
}

#[test]
fn pages_are_copied_by_a_fork_while_nothing_changes_them() {
    #[derive(Default)]
    struct Copies(Mutex<Vec<Range<usize>>>);
    impl Backing for Copies {
        fn copy(&self, part: Part<'_>, child: &Self) {
            child.0.lock().unwrap().push(part.range);
        }
    }
    let mm = Mm::new(Copies::default(), Config::default());
    let prot = PROT_READ | PROT_WRITE;
    let base = 0x1000_0000;
    for page in 0..5 {
        let addr = base + 2 * page * PAGE;
        mm.mmap(addr, PAGE, prot, ANONYMOUS | MAP_FIXED, None, 0).unwrap();
    }
    // Untouched; touched; touched and wiped; touched and not copied; untouched, with guard pages.
    for page in 1..4 {
        mm.fault(base + 2 * page * PAGE, Access::Write).unwrap();
    }
    mm.madvise(base + 4 * PAGE, PAGE, MADV_WIPEONFORK).unwrap();
    mm.madvise(base + 6 * PAGE, PAGE, MADV_DONTFORK).unwrap();
    mm.madvise(base + 8 * PAGE, PAGE, MADV_GUARD_INSTALL).unwrap();
    let child = mm.fork(Copies::default()).unwrap();
    let copied = [base + 2 * PAGE, base + 8 * PAGE].map(|addr| addr..addr + PAGE);
    assert_eq!(*child.backing().0.lock().unwrap(), copied);
}

#[test]
fn a_fork_promises_what_has_merged() {
    let mm = Mm::new(NoBacking, Config { commit_limit: 3, ..Config::default() });
    let prot = PROT_READ | PROT_WRITE;
    let upper = mm.mmap(0, 2 * PAGE, prot, ANONYMOUS, None, 0).unwrap();
    assert!(mm.fork(NoBacking).is_ok());
    let addr = mm.mmap(0, 2 * PAGE, prot, ANONYMOUS, None, 0).unwrap();
    assert_eq!(addr + 2 * PAGE, upper);
    assert_eq!(mm.fork(NoBacking).err(), Some(Errno::ENOMEM));
    mm.madvise(addr, 4 * PAGE, MADV_DONTFORK).unwrap();
    assert!(mm.fork(NoBacking).is_ok());
}

#[test]
fn the_heap_keeps_a_gap_of_any_size_free_below_a_stack() {
    for stack_guard_gap in [0, 256 * PAGE, usize::MAX - 2 * PAGE, usize::MAX] {
        let layout = Layout { stack_guard_gap, ..Layout::default() };
        let mm = Mm::new(NoBacking, Config { layout, ..Config::default() });
        let heap = mm.brk(0);
        assert_eq!(mm.brk(heap + PAGE), heap + PAGE, "nothing lies above");
        let stack = heap + (1 << 30);
        mm.mmap(stack, PAGE, PROT_READ, ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, None, 0).unwrap();
        let wide = stack_guard_gap > 1 << 30;
        let end = heap + if wide { PAGE } else { 2 * PAGE };
        assert_eq!(mm.brk(heap + 2 * PAGE), end, "{stack_guard_gap:#x}");
    }
}
