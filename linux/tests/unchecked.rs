//! Rules that the kernel at hand may not show: it was built without them, or asks for privilege.

use std::sync::Arc;

use pervma_linux::{Config, Errno, File, Mm, NoBacking, VmFlags, abi::*};

const ANONYMOUS: u64 = MAP_PRIVATE | MAP_ANONYMOUS;

#[test]
fn names_keep_mappings_apart() {
    let mm = Mm::new(NoBacking, Config::default());
    let addr = mm.mmap(0, 3 * PAGE, PROT_READ, ANONYMOUS, None, 0).unwrap();
    mm.set_anon_name(addr + PAGE, PAGE, Some("a b")).unwrap();
    assert_eq!(mm.maps().lines().count(), 3);
    assert_eq!(mm.maps().matches("[anon:a b]").count(), 1);
    mm.set_anon_name(addr, 3 * PAGE, Some("a b")).unwrap();
    assert_eq!(mm.maps().lines().count(), 1);
    mm.set_anon_name(addr, PAGE, None).unwrap();
    assert_eq!(mm.maps().lines().count(), 2);
    for bad in ["a\nb", "[x]", "$", "`", "\\", &"x".repeat(80)] {
        assert_eq!(mm.set_anon_name(addr, PAGE, Some(bad)), Err(Errno::EINVAL), "{bad}");
    }
    let longest = "x".repeat(79);
    assert_eq!(mm.set_anon_name(addr, PAGE, Some(&longest)), Ok(()));
    assert_eq!(mm.set_anon_name(addr + PAGE, 3 * PAGE, None), Err(Errno::ENOMEM));

    let shared = mm.mmap(0, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, None, 0).unwrap();
    mm.set_anon_name(shared, PAGE, Some("s")).unwrap();
    assert!(mm.maps().contains("[anon_shmem:s]"));
    let file = Arc::new(File::new("/file"));
    let mapped = mm.mmap(0, PAGE, PROT_READ, MAP_PRIVATE, Some(&file), 0).unwrap();
    assert_eq!(mm.set_anon_name(mapped, PAGE, Some("f")), Err(Errno::EBADF));
}

#[test]
fn files_are_asked_what_may_be_done() {
    let mm = Mm::new(NoBacking, Config::default());
    let map = |file: File, prot, flags| mm.mmap(0, PAGE, prot, flags, Some(&Arc::new(file)), 0);
    let file = || File::new("/file");
    let noexec = || File { noexec: true, ..file() };
    assert_eq!(map(noexec(), PROT_EXEC, MAP_PRIVATE), Err(Errno::EPERM));
    let addr = map(noexec(), PROT_READ, MAP_PRIVATE).unwrap();
    assert_eq!(mm.mprotect(addr, PAGE, PROT_EXEC), Err(Errno::EACCES));
    let unmappable = File { mappable: false, ..file() };
    assert_eq!(map(unmappable, PROT_READ, MAP_PRIVATE), Err(Errno::ENODEV));
    let append = || File { append_only: true, ..file() };
    assert_eq!(map(append(), PROT_READ, MAP_SHARED), Err(Errno::EACCES));
    assert!(map(append(), PROT_READ, MAP_PRIVATE).is_ok());
    let small = File { max_bytes: 0, ..file() };
    assert_eq!(map(small, PROT_READ, MAP_PRIVATE), Err(Errno::EOVERFLOW));
}

#[test]
fn files_of_huge_pages_lie_on_huge_pages() {
    let mm = Mm::new(NoBacking, Config::default());
    let file = Arc::new(File { huge_aligned: true, ..File::new("/file") });
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
    assert!(mm.lookup(0).unwrap().1.flags.has(VmFlags::LOCKED));
    let poisoning = Mm::new(NoBacking, Config { may_poison: true, ..Config::default() });
    assert_eq!(poisoning.madvise(0, PAGE, MADV_HWPOISON), Err(Errno::ENOMEM));
    assert_eq!(mm.madvise(0, PAGE, MADV_HWPOISON), Err(Errno::EPERM));
}
