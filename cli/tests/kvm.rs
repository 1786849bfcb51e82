//! The daemon, `pervma serve`, with a virtual machine: a guest's code touches memory that the
//! daemon serves, through KVM, while its monitor discards, forks, moves and unmaps.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "states of pages, which guard no memory")]

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/memory.rs"]
mod memory;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};

use client::{all_events, message, send};
use daemon::{Daemon, Place};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use memory::{FORK, Kind, Memory, PAGE, REMOVE, in_child, userfaultfd};

/// What a guest does with so many words, `STRIDE` bytes apart, or so many pages.
#[derive(Clone, Copy, Debug)]
enum Program {
    /// Adds up words of 4 bytes.
    Sum,
    /// Adds one to the first word of each page.
    Count,
    /// Tells its monitor the first word of each page, in order.
    Tell,
}

/// Where each instruction of such a guest is emulated, all words would take too long.
const STRIDE: usize = 256;
/// The address is in `esi`, the number of words or pages in `ecx`, the sum in `eax`.
const CODE: [&[u8]; 3] = [
    &[
        0x03, 0x06, // again: add eax, [esi]
        0x81, 0xC6, 0x00, 0x01, 0x00, 0x00, // add esi, STRIDE
        0x49, // dec ecx
        0x75, 0xF5, // jnz again
        0xF4, // hlt
    ],
    &[
        0xFF, 0x06, // again: inc dword [esi]
        0x81, 0xC6, 0x00, 0x10, 0x00, 0x00, // add esi, 4096
        0x49, // dec ecx
        0x75, 0xF5, // jnz again
        0xF4, // hlt
    ],
    &[
        0x8B, 0x06, // again: mov eax, [esi]
        0xE7, 0x10, // out 0x10, eax
        0x81, 0xC6, 0x00, 0x10, 0x00, 0x00, // add esi, 4096
        0x49, // dec ecx
        0x75, 0xF3, // jnz again
        0xF4, // hlt
    ],
];
/// Where the code is, in the guest; each program at a multiple of 64.
const CODE_AT: u64 = 0x0300_0000;
/// Where the memory is, in the guest.
const SLOTS: [u64; 2] = [0, 0x0200_0000];

/// A virtual machine without its processor; none where there is no KVM.
struct Machine(Option<VmFd>);

/// Its processor, or a thread that does the same.
struct Processor(Option<VcpuFd>);

/// A machine that has its code.
fn machine() -> (Machine, Processor) {
    let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) if serves_system_calls() => vm,
        other => {
            let why = other.err().map_or("no faults of the kernel".into(), |why| why.to_string());
            println!("NOT RUN: a guest, for want of KVM ({why}): a thread does the same");
            return (Machine(None), Processor(None));
        }
    };
    // Where Intel's processors have something of their own, in guests without paging.
    vm.set_tss_address(0xFFFB_D000).unwrap();
    let code = Memory::map(PAGE, Kind::Anonymous).unwrap();
    for (number, program) in CODE.iter().enumerate() {
        program.iter().enumerate().for_each(|(at, &byte)| code.set(number * 64 + at, byte));
    }
    let processor = vm.create_vcpu(0).unwrap();
    let machine = Machine(Some(vm));
    machine.set(SLOTS.len(), CODE_AT, code.start, code.len);
    let mut special = processor.get_sregs().unwrap();
    // All of memory, of 32 bits, from address 0 on.
    let flat = |type_: u8, selector: u16| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = flat(0xB, 8);
    let data = flat(0x3, 16);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    // Protected mode.
    special.cr0 |= 1;
    processor.set_sregs(&special).unwrap();
    (machine, Processor(Some(processor)))
}

/// Whether this user's userfaultfds serve accesses of the kernel, as those of KVM are.
fn serves_system_calls() -> bool {
    // SAFETY: opens a descriptor, or does not; it stays open.
    unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) >= 0 }
}

impl Machine {
    /// What memory a slot has from now on.
    fn give(&self, slot: usize, memory: Memory) {
        self.set(slot, SLOTS[slot], memory.start, memory.len);
    }

    /// It has none.
    fn take(&self, slot: usize) {
        self.set(slot, SLOTS[slot], 0, 0);
    }

    fn set(&self, slot: usize, guest: u64, start: usize, len: usize) {
        let Some(vm) = &self.0 else { return };
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: guest,
            memory_size: len as u64,
            userspace_addr: start as u64,
        };
        // SAFETY: memory of the test's, which stays mapped until the slot has other memory or none.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
    }
}

impl Processor {
    /// Runs a program on the memory of a slot, or the part that `memory` is of it, to its end;
    /// returns the sum. What it tells goes to `told`.
    fn run(
        &mut self,
        program: Program,
        slot: usize,
        memory: Memory,
        mut told: impl FnMut(u32),
    ) -> u32 {
        let step = if matches!(program, Program::Sum) { STRIDE } else { PAGE };
        let Some(processor) = &mut self.0 else {
            return Self::run_without(program, memory, step, told);
        };
        let registers = kvm_regs {
            rip: CODE_AT + program as u64 * 64,
            rsi: SLOTS[slot],
            rcx: (memory.len / step) as u64,
            rflags: 2,
            ..kvm_regs::default()
        };
        processor.set_regs(&registers).unwrap();
        loop {
            match processor.run().unwrap() {
                VcpuExit::Hlt => return processor.get_regs().unwrap().rax as u32,
                VcpuExit::IoOut(0x10, bytes) => told(u32::from_le_bytes(bytes.try_into().unwrap())),
                other => panic!("{other:?}"),
            }
        }
    }

    fn run_without(
        program: Program,
        memory: Memory,
        step: usize,
        mut told: impl FnMut(u32),
    ) -> u32 {
        let mut sum = 0_u32;
        for at in (0..memory.len).step_by(step) {
            let word = u32::from_le_bytes(std::array::from_fn(|byte| memory.byte(at + byte)));
            match program {
                Program::Sum => sum = sum.wrapping_add(word),
                Program::Count => {
                    let bytes = word.wrapping_add(1).to_le_bytes();
                    (0..4).for_each(|byte| memory.set(at + byte, bytes[byte]));
                }
                Program::Tell => told(word),
            }
        }
        sum
    }

    fn sum(&mut self, slot: usize, memory: Memory) -> u32 {
        self.run(Program::Sum, slot, memory, |_| ())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u32 {
    (0..bytes.len()).step_by(STRIDE).fold(0, |sum, at| sum.wrapping_add(word(bytes, at)))
}

/// Registers memory, one region behind the other in the memory file, and has it served. The
/// descriptor stays with the daemon alone.
fn connect(place: &Place, daemon: &mut Daemon, features: u64, regions: &[Memory]) -> UnixStream {
    let fd = userfaultfd(features).unwrap();
    let mut offset = 0;
    let mut told = Vec::new();
    for region in regions {
        region.register(&fd);
        told.push((region.start, region.len, offset));
        offset += region.len;
    }
    let connection = UnixStream::connect(&place.socket).unwrap();
    send(&connection, message(&told).as_bytes(), &[fd.as_fd()]);
    daemon.wait_for("a client has come");
    connection
}

#[test]
fn a_guest_has_the_bytes_of_the_file_and_keeps_what_it_writes() {
    const PAGES: usize = (16 << 20) / PAGE;
    let place = Place::new(PAGES);
    let mut daemon = place.serve(["--on-stop", "fail"]);
    let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap();
    let _connection = connect(&place, &mut daemon, REMOVE, &[memory]);
    let (machine, mut processor) = machine();
    machine.give(0, memory);
    assert_eq!(processor.sum(0, memory), sum(&place.bytes));
    processor.run(Program::Count, 0, memory, |_| ());
    let mut expected = place.bytes.clone();
    for page in expected.chunks_mut(PAGE) {
        let counted = word(page, 0).wrapping_add(1);
        page[..4].copy_from_slice(&counted.to_le_bytes());
    }
    assert_eq!(processor.sum(0, memory), sum(&expected));
    assert!(memory.copy() == expected);
    assert_eq!(daemon.stop().exit, Some(0));
    // All of it was there.
    assert_eq!(processor.sum(0, memory), sum(&expected));
}

#[test]
fn a_guest_that_writes_what_is_missing_keeps_the_rest_of_the_page() {
    const PAGES: usize = 512;
    let place = Place::new(PAGES);
    let mut daemon = place.serve(["--on-stop", "fill", "--granule", "4K", "--ahead", "0"]);
    let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap();
    let _connection = connect(&place, &mut daemon, REMOVE, &[memory]);
    let (machine, mut processor) = machine();
    machine.give(0, memory);
    let half = memory.pages(0..PAGES / 2);
    processor.run(Program::Count, 0, half, |_| ());
    assert_eq!(daemon.stop().exit, Some(0));
    // The other half was filled, and the guest needs no daemon any more.
    let expected = sum(&place.bytes).wrapping_add((PAGES / 2) as u32);
    assert_eq!(processor.sum(0, memory), expected);
}

/// States of a page.
const INTACT: u8 = 0;
const BEING_DISCARDED: u8 = 1;
const DISCARDED: u8 = 2;

/// While the guest touches all pages again and again, its monitor discards every other one, as a
/// balloon does, forks, and moves another region; then it unmaps a part of that.
#[test]
fn a_guest_is_right_while_its_memory_is_discarded_forked_moved_and_unmapped() {
    const PAGES: usize = 1024;
    const OTHER: usize = 128;
    let events = all_events();
    let place = Place::new(PAGES + OTHER);
    let (bytes, other_bytes) = place.bytes.split_at(PAGES * PAGE);
    let mut daemon = place.serve(["--on-stop", "fail", "--workers", "2"]);
    let memory = Memory::map(PAGES * PAGE, Kind::Anonymous).unwrap();
    let mut other = Memory::map(OTHER * PAGE, Kind::Anonymous).unwrap();
    let _connection = connect(&place, &mut daemon, events, &[memory, other]);
    let (machine, mut processor) = machine();
    machine.give(0, memory);
    machine.give(1, other);
    let quarter = other.pages(0..OTHER / 4);
    assert_eq!(processor.sum(1, quarter), sum(&other_bytes[..OTHER / 4 * PAGE]));

    let states: Vec<AtomicU8> = std::iter::repeat_with(AtomicU8::default).take(PAGES).collect();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (states, is_over, processor) = (&states, &is_over, &mut processor);
        let guest = scope.spawn(move || {
            let mut rounds = 0;
            while !is_over.load(SeqCst) {
                let mut page = 0;
                let mut before = states[0].load(SeqCst);
                processor.run(Program::Tell, 0, memory, |word_then| {
                    let after = states[page].load(SeqCst);
                    let of_file = word(bytes, page * PAGE);
                    let is_right = match (before, after) {
                        (_, INTACT) => word_then == of_file,
                        (DISCARDED, _) => word_then == 0,
                        _ => word_then == 0 || word_then == of_file,
                    };
                    assert!(is_right, "page {page}: {word_then:#x}, {before} {after}, {rounds}");
                    page += 1;
                    before = states.get(page).map_or(INTACT, |state| state.load(SeqCst));
                });
                assert_eq!(page, PAGES);
                rounds += 1;
            }
            rounds
        });
        for turn in 0..PAGES / 2 {
            let page = turn * 37 % (PAGES / 2) * 2;
            states[page].store(BEING_DISCARDED, SeqCst);
            memory.page(page).discard();
            states[page].store(DISCARDED, SeqCst);
            if turn % 64 == 63 {
                machine.take(1);
                let to = Memory::map(other.len, Kind::Anonymous).unwrap();
                other = other.relocate(to.start, 0);
                machine.give(1, other);
                let at = turn % OTHER * PAGE;
                assert_eq!(other.byte(at), other_bytes[at]);
            }
            if events & FORK != 0 && turn % 128 == 100 {
                assert_eq!(in_child(|| compare(memory, states, bytes, other, other_bytes)), 0);
            }
        }
        is_over.store(true, SeqCst);
        assert!(guest.join().unwrap() > 0);
    });

    let mut expected = bytes.to_vec();
    expected.chunks_mut(PAGE).step_by(2).for_each(|page| page.fill(0));
    assert_eq!(processor.sum(0, memory), sum(&expected));
    assert_eq!(processor.sum(1, other), sum(other_bytes));
    machine.take(1);
    let kept = other.pages(0..OTHER / 2);
    other.pages(OTHER / 2..OTHER).unmap();
    machine.give(1, kept);
    assert_eq!(processor.sum(1, kept), sum(&other_bytes[..kept.len]));
    let ended = daemon.stop();
    assert_eq!((ended.exit, ended.with("which is outside").len()), (Some(0), 0), "{ended:#?}");
}

/// In a forked child: 0 if a byte of each page is what it was when it was forked.
fn compare(
    memory: Memory,
    states: &[AtomicU8],
    bytes: &[u8],
    other: Memory,
    other_bytes: &[u8],
) -> i32 {
    for (page, state) in states.iter().enumerate() {
        let at = page * PAGE + page % PAGE;
        let expected = if state.load(SeqCst) == INTACT { bytes[at] } else { 0 };
        if memory.byte(at) != expected {
            return 1;
        }
    }
    let is_right = |at: usize| other.byte(at) == other_bytes[at];
    if (0..other.len).step_by(PAGE).all(is_right) { 0 } else { 2 }
}
