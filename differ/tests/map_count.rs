//! At the limit of mappings the model and the kernel do the same. The results are compared after
//! each step, the maps at the end: there are many mappings.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use pervma_differ::{Difference, Machine, Model, Op, Options, Privileges, replay_after, run_after};
use pervma_linux::abi::*;

/// A limit above this would take too long to reach.
const MOST: usize = 100_000;
const BASE: usize = 0x1800_0000_0000;
/// The mapping of many pages that the steps change.
const STAGE: usize = BASE - 64 * PAGE;
const ANONYMOUS: u64 = MAP_PRIVATE | MAP_ANONYMOUS;

fn mmap(addr: usize, count: usize, prot: u64, flags: u64) -> Op {
    Op::Mmap { addr, len: count * PAGE, prot, flags: ANONYMOUS | flags, file: None, offset: 0 }
}

fn mprotect(page: usize, count: usize, prot: u64) -> Op {
    Op::Mprotect { addr: STAGE + page * PAGE, len: count * PAGE, prot }
}

fn munmap(page: usize, count: usize) -> Op {
    Op::Munmap { addr: STAGE + page * PAGE, len: count * PAGE }
}

fn mremap(page: usize, old: usize, new: usize, flags: u64, to: usize) -> Op {
    Op::Mremap {
        addr: STAGE + page * PAGE,
        old_len: old * PAGE,
        new_len: new * PAGE,
        flags,
        new_addr: STAGE + to * PAGE,
    }
}

fn madvise(page: usize, count: usize, advice: i32) -> Op {
    Op::Madvise { addr: STAGE + page * PAGE, len: count * PAGE, advice }
}

/// Steps that make `count` mappings: the page of instructions, the stage, a hole behind it, and a
/// mapping whose every second page is different.
fn fill(count: usize) -> Vec<Op> {
    let pages = count - 2;
    let mut steps = vec![
        mmap(STAGE, 56, PROT_READ | PROT_WRITE, MAP_FIXED),
        mmap(BASE, pages, PROT_NONE, MAP_FIXED | MAP_NORESERVE),
    ];
    let every_second = (1..pages).step_by(2).map(|page| Op::Mprotect {
        addr: BASE + page * PAGE,
        len: PAGE,
        prot: PROT_READ,
    });
    steps.extend(every_second);
    steps
}

/// The machine, if it has a limit that can be reached in reasonable time.
fn machine() -> Option<Machine> {
    let machine = common::machine()?;
    if machine.max_map_count > MOST {
        println!("NOT RUN: vm.max_map_count is {}", machine.max_map_count);
        return None;
    }
    Some(machine)
}

#[test]
fn at_the_limit_of_mappings() {
    let Some(machine) = machine() else { return };
    let most = machine.max_map_count;
    let may_move = MREMAP_MAYMOVE;
    let fixed = MREMAP_MAYMOVE | MREMAP_FIXED;
    let stays = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
    let scenes: [(usize, &[Op]); 4] = [
        // A move wants spare mappings before it looks at anything. First there are some, then there
        // are none, whatever is wrong with the source.
        (
            most - 8,
            &[
                Op::Mseal { addr: STAGE + 40 * PAGE, len: PAGE, flags: 0 },
                mremap(60, 1, 1, fixed, 62),
                mremap(60, 1, 1, stays, 0),
                mmap(STAGE + 58 * PAGE, 1, PROT_READ, MAP_FIXED),
                mremap(60, 1, 1, fixed, 62),
                mremap(60, 1, 1, stays, 0),
                mremap(40, 1, 1, fixed, 62),
                mremap(50, 14, 14, fixed, 80),
            ],
        ),
        // One split is possible, two are not.
        (most - 1, &[mprotect(10, 5, PROT_READ), mprotect(30, 1, PROT_READ)]),
        // No split is possible.
        (
            most,
            &[
                mprotect(10, 5, PROT_READ),
                madvise(10, 5, MADV_DONTFORK),
                Op::Mlock { addr: STAGE + 10 * PAGE, len: PAGE },
                Op::Mseal { addr: STAGE + 10 * PAGE, len: PAGE, flags: 0 },
                munmap(10, 5),
                mremap(0, 4, 8, may_move, 0),
                mremap(0, 4, 4, fixed, 57),
                // At the edge nothing is split. One mapping more than the limit is let through.
                munmap(54, 2),
                mmap(STAGE + 54 * PAGE, 1, PROT_READ, MAP_FIXED),
                mmap(STAGE + 60 * PAGE, 1, PROT_READ, MAP_FIXED),
                mmap(STAGE + 62 * PAGE, 1, PROT_READ, MAP_FIXED),
                munmap(0, 56),
                mmap(0, 1, PROT_READ, 0),
                Op::Brk { addr: 0 },
            ],
        ),
        // Each move adds two, until it wants more to be free than there is.
        (
            most - 12,
            &[
                mremap(8, 1, 1, fixed, 57),
                mremap(12, 1, 1, fixed, 59),
                mremap(16, 1, 1, fixed, 61),
                mprotect(0, 1, PROT_READ),
                mremap(20, 1, 1, fixed, 63),
                mremap(24, 1, 2, may_move, 0),
                mremap(28, 1, 2, may_move, 0),
                mprotect(32, 1, PROT_READ),
                mremap(36, 1, 2, may_move, 0),
            ],
        ),
    ];
    for (count, steps) in scenes {
        let (last, before) = steps.split_last().unwrap();
        let mut first = fill(count);
        first.extend_from_slice(before);
        let last_one = std::slice::from_ref(last);
        let differing = replay_after(&machine, Privileges::None, &Model::new, &first, last_one);
        if let Some((made, Difference { what, kernel, model })) = differing.unwrap() {
            let apart = kernel.lines().zip(model.lines()).find(|(kernel, model)| kernel != model);
            panic!("{count} mappings, after {made} steps: {what}: {apart:?}");
        }
    }
}

#[test]
fn random_steps_near_the_limit_of_mappings() {
    let Some(machine) = machine() else { return };
    // Not so near that a move is never possible.
    let before = fill(machine.max_map_count - 16);
    let apart = BASE..BASE + machine.max_map_count * PAGE;
    let options = Options { ops: 300, seed: 4 };
    let found = run_after(&machine, &Model::new, &before, &apart, options).unwrap();
    if let Some((Difference { what, kernel, model }, steps)) = found {
        let apart = kernel.lines().zip(model.lines()).find(|(kernel, model)| kernel != model);
        let last = steps.last().unwrap();
        panic!("after {} steps, of which the last is {last}: {what}: {apart:?}", steps.len());
    }
}
