//! A guest of KVM that touches pages.
#![expect(unsafe_code, reason = "gives memory to a virtual machine")]

use std::error::Error;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::memory::Missing;
use super::order::Order;
use crate::layout::PAGE;

/// Reads a word of each page. The number of pages is in `ecx`, a power of two, and one less in
/// `edx`. The next page is `eax` times `edi` plus `ebx`.
const CODE: &[u8] = &[
    0x89, 0xC6, // again: mov esi, eax
    0xC1, 0xE6, 0x0C, // shl esi, 12
    0x8B, 0x2E, // mov ebp, [esi]
    0x0F, 0xAF, 0xC7, // imul eax, edi
    0x01, 0xD8, // add eax, ebx
    0x21, 0xD0, // and eax, edx
    0x49, // dec ecx
    0x75, 0xEF, // jnz again
    0xF4, // hlt
];

/// Where the code is, in the guest; its memory begins at 0.
const CODE_AT: u64 = 0x1000_0000;

/// Factor and addend of a sequence that has each number below a power of two once.
fn sequence(order: Order) -> (u64, u64) {
    match order {
        Order::Ascending => (1, 1),
        Order::Random => (709, 12_345),
    }
}

/// How long a new guest takes to touch the first pages of memory, so many, a power of two.
pub(super) fn touch(
    memory: Missing,
    pages: usize,
    order: Order,
) -> Result<Duration, Box<dyn Error>> {
    assert!(pages.is_power_of_two() && pages * PAGE <= memory.len, "as the code needs it");
    let vm = Kvm::new()?.create_vm()?;
    // Where Intel's processors have something of their own, in guests without paging.
    vm.set_tss_address(0xFFFB_D000)?;
    let code = Missing::map_plain(PAGE)?;
    code.write(CODE);
    give(&vm, 0, 0, memory)?;
    give(&vm, 1, CODE_AT, code)?;
    let mut processor = vm.create_vcpu(0)?;
    set_up(&processor)?;
    let (factor, addend) = sequence(order);
    processor.set_regs(&kvm_regs {
        rip: CODE_AT,
        rcx: pages as u64,
        rdx: pages as u64 - 1,
        rdi: factor,
        rbx: addend,
        rflags: 2,
        ..kvm_regs::default()
    })?;
    let start = Instant::now();
    match processor.run()? {
        VcpuExit::Hlt => Ok(start.elapsed()),
        other => Err(format!("the guest has stopped: {other:?}").into()),
    }
}

fn give(vm: &VmFd, slot: u32, guest: u64, memory: Missing) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: guest,
        memory_size: memory.len as u64,
        userspace_addr: memory.start as u64,
    };
    // SAFETY: the memory stays mapped, and no reference to it exists.
    unsafe { vm.set_user_memory_region(region) }
}

/// 32 bits, protected, without paging, with all addresses.
fn set_up(processor: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut special = processor.get_sregs()?;
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
    special.cr0 |= 1;
    processor.set_sregs(&special)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_has_each_page_once() {
        for order in [Order::Ascending, Order::Random] {
            let (factor, addend) = sequence(order);
            let (mut seen, mut page) = (vec![false; 1 << 14], 0_u64);
            for _ in 0..seen.len() {
                assert!(!std::mem::replace(&mut seen[page as usize], true), "{order:?}: {page}");
                page = (page * factor + addend) % seen.len() as u64;
            }
        }
    }
}
