//! The memory behind the map refuses something, or calls the map.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;

use pervma_linux::{
    Access, Backing, Config, Counts, Errno, Limits, Mm, NoBacking, NotNow, Part, Refusal, Signal,
    StdPlatform, VmFlags, abi::*,
};

const ADDR: usize = 0x1000_0000;
const FIXED: u64 = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

/// Refuses what concerns this address.
struct Refusing(usize, Refusal);

impl Backing for Refusing {
    fn fault(&self, part: Part<'_>, _access: Access) -> Result<(), Refusal> {
        if part.range.contains(&self.0) { Err(self.1) } else { Ok(()) }
    }

    fn advise(&self, part: Part<'_>, _advice: i32) -> Result<(), Errno> {
        if part.range.contains(&self.0) { Err(Errno::EBUSY) } else { Ok(()) }
    }
}

fn seen<B: Backing>(mm: &Mm<B, StdPlatform>) -> (String, Vec<VmFlags>, Counts) {
    let mut flags = Vec::new();
    mm.for_each(|_, vma| flags.push(vma.flags)).unwrap();
    (mm.maps().unwrap(), flags, mm.counts())
}

/// Two mappings, of which the second refuses its second page; a stack; and names of calls that are
/// refused half-way.
fn refused_half_way(strict: bool) -> Vec<(&'static str, Errno, bool)> {
    type Call = fn(&Mm<Refusing, StdPlatform>) -> Result<(), Errno>;
    const STACK: usize = 2 * ADDR;
    let calls: [(&str, Call); 6] = [
        ("mlock", |mm| mm.mlock(ADDR, 4 * PAGE)),
        ("mlock of a part", |mm| mm.mlock(ADDR + PAGE, 3 * PAGE)),
        ("mlock2", |mm| mm.mlock2(ADDR, 4 * PAGE, 0)),
        ("populate", |mm| mm.madvise(ADDR, 4 * PAGE, MADV_POPULATE_WRITE)),
        ("pages out", |mm| mm.madvise(ADDR, 4 * PAGE, MADV_PAGEOUT)),
        ("mincore", |mm| mm.mincore(ADDR, 3 * PAGE, STACK - 2)),
    ];
    calls
        .into_iter()
        .map(|(name, call)| {
            let refused = if name == "mincore" { STACK } else { ADDR + 3 * PAGE };
            let config = Config { strict, ..Config::default() };
            let mm = Mm::new(Refusing(refused, Refusal::Bus), config);
            let prot = PROT_READ | PROT_WRITE;
            mm.mmap(ADDR, 2 * PAGE, prot, FIXED, None, 0).unwrap();
            mm.mmap(ADDR + 2 * PAGE, 2 * PAGE, prot, FIXED | MAP_NORESERVE, None, 0).unwrap();
            mm.mmap(STACK, PAGE, prot, FIXED | MAP_GROWSDOWN, None, 0).unwrap();
            let before = seen(&mm);
            let error = call(&mm).expect_err(name);
            (name, error, seen(&mm) == before)
        })
        .collect()
}

#[test]
fn a_strict_call_that_is_refused_half_way_leaves_the_map_as_it_was() {
    for (name, error, as_it_was) in refused_half_way(true) {
        assert!(as_it_was, "{name}: {error}");
    }
    let changed = refused_half_way(false).iter().filter(|(.., as_it_was)| !as_it_was).count();
    assert_eq!(changed, 4, "as in Linux, locks stay and stacks have grown");
}

#[test]
fn pages_that_were_made_before_a_refusal_keep_their_group() {
    let config = Config { strict: true, ..Config::default() };
    let mm = Mm::new(Refusing(ADDR + PAGE, Refusal::OutOfMemory), config);
    mm.mmap(ADDR, PAGE, PROT_READ | PROT_WRITE, FIXED, None, 0).unwrap();
    mm.mmap(ADDR + PAGE, PAGE, PROT_READ, FIXED, None, 0).unwrap();
    mm.mlock(ADDR, 2 * PAGE).unwrap_err();
    assert!(mm.lookup(ADDR).unwrap().unwrap().1.anon.is_some());
    assert!(mm.lookup(ADDR + PAGE).unwrap().unwrap().1.anon.is_none());
}

/// Calls the map it is behind.
#[derive(Default)]
struct Calling {
    mm: OnceLock<Weak<Mm<Calling, StdPlatform>>>,
    seen: Mutex<Vec<Seen>>,
}

/// The results of calls that a backing makes.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Calls on the addresses that it was asked about, or next to them in the same mapping.
    own: [Result<(), Errno>; 3],
    fault: Result<(), Signal>,
    /// Calls elsewhere.
    mmap: Result<(), Errno>,
    fault_elsewhere: Result<(), Signal>,
    lines: Result<usize, NotNow>,
    total: usize,
    limit: u64,
}

impl Calling {
    fn look(&self, range: Range<usize>) {
        let Some(mm) = self.mm.get().and_then(Weak::upgrade) else { return };
        mm.set_limits(Limits { data: 1 << 40, ..mm.limits() });
        let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        let seen = Seen {
            own: [
                mm.munmap(range.start, range.end - range.start),
                mm.mremap(ELSEWHERE, PAGE, PAGE, flags, range.start).map(drop),
                mm.fork(Calling::default()).map(drop),
            ],
            fault: mm.fault(range.start, Access::Write),
            mmap: mm.mmap(ELSEWHERE + PAGE, PAGE, PROT_READ, FIXED, None, 0).map(drop),
            fault_elsewhere: mm.fault(ELSEWHERE, Access::Write),
            lines: mm.maps().map(|maps| maps.lines().count()),
            total: mm.counts().total,
            limit: mm.limits().data,
        };
        self.seen.lock().unwrap().push(seen);
    }
}

const ELSEWHERE: usize = 2 * ADDR;

impl Backing for Calling {
    fn fault(&self, part: Part<'_>, access: Access) -> Result<(), Refusal> {
        if access == Access::Read && part.range.start == ADDR {
            self.look(part.range);
        }
        Ok(())
    }

    fn unmap(&self, range: Range<usize>) {
        if range.start == ADDR {
            self.look(range);
        }
    }
}

#[test]
fn a_backing_calls_its_map_elsewhere_and_is_refused_where_it_would_wait_for_itself() {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || {
        let mm = Arc::new(Mm::new(Calling::default(), Config::default()));
        for at in [ADDR, ELSEWHERE] {
            mm.mmap(at, PAGE, PROT_READ | PROT_WRITE, FIXED, None, 0).unwrap();
        }
        mm.backing().mm.set(Arc::downgrade(&mm)).unwrap();
        mm.fault(ADDR, Access::Read).unwrap();
        mm.munmap(ADDR, PAGE).unwrap();
        let seen = std::mem::take(&mut *mm.backing().seen.lock().unwrap());
        done.send((seen, mm.counts().total, mm.limits().data)).unwrap();
    });
    let (seen, total, limit) = wait.recv_timeout(Duration::from_secs(60)).expect("it hangs");
    let [in_fault, in_unmap] = &seen[..] else { panic!("{seen:?}") };
    // With a mapping locked for reading it cannot change the map, nor look at all of it.
    let refused = Seen {
        own: [Err(Errno::EAGAIN); 3],
        fault: Err(Signal::OwnCall),
        mmap: Err(Errno::EAGAIN),
        fault_elsewhere: Err(Signal::OwnCall),
        lines: Err(NotNow::OwnCall),
        total: 2,
        limit: 1 << 40,
    };
    assert_eq!(*in_fault, refused);
    let beside = Seen {
        own: [Err(Errno::EAGAIN); 3],
        fault: Err(Signal::OwnCall),
        mmap: Ok(()),
        fault_elsewhere: Ok(()),
        lines: Ok(3),
        total: 3,
        limit: 1 << 40,
    };
    assert_eq!(*in_unmap, beside);
    assert_eq!((total, limit), (2, 1 << 40));
}

/// Not one with `IDLE`: each call looks first.
struct Busy;

impl Backing for Busy {}

#[test]
fn shared_memory_is_numbered_as_it_is_mapped_whatever_stands_behind_it() {
    fn numbers<B: Backing>(backing: B) -> Vec<u64> {
        let mm = Mm::new(backing, Config::default());
        let flags = MAP_SHARED | MAP_ANONYMOUS;
        for number in 0..3 {
            let addr = (1 << 32) + number * 2 * PAGE;
            mm.mmap(addr, PAGE, PROT_READ, flags | MAP_FIXED, None, 0).unwrap();
            mm.mmap(0, PAGE, PROT_READ, flags, None, 0).unwrap();
            let refused = mm.mmap(addr, PAGE, PROT_READ, flags | MAP_FIXED_NOREPLACE, None, 0);
            assert_eq!(refused, Err(Errno::EEXIST));
        }
        let mut numbers = Vec::new();
        mm.for_each(|_, vma| numbers.push(vma.inode().unwrap().number)).unwrap();
        numbers
    }
    // From below: those at fixed addresses, then the others, each below the one before.
    assert_eq!(numbers(NoBacking), [1, 3, 5, 6, 4, 2]);
    assert_eq!(numbers(Busy), numbers(NoBacking));
}
