//! What the pager relies on: rules of the running kernel, each by itself.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::fd::AsFd;
use std::time::Duration;

use common::{ALL_EVENTS, Kind, Memory, PAGE, REMAP, REMOVE, UNMAP, alone, userfaultfd};
use pervma_pager::sys::{CopyError, Errno, Event, Message, RemoteUserfaultfd};

/// Memory, and the userfaultfd that it is registered with.
fn registered(pages: usize, features: u64) -> (RemoteUserfaultfd, Memory) {
    let fd = userfaultfd(features).unwrap();
    let memory = Memory::map(pages * PAGE, Kind::Anonymous).unwrap().register(&fd);
    (RemoteUserfaultfd::new(fd).unwrap(), memory)
}

/// Waits until something can be read; `false` after so long.
fn is_told(uffd: &RemoteUserfaultfd, most: Duration) -> bool {
    let mut polled = [rustix::event::PollFd::new(uffd, rustix::event::PollFlags::IN)];
    let most = most.try_into().unwrap();
    rustix::event::poll(&mut polled, Some(&most)).unwrap() > 0
}

const LONG: Duration = Duration::from_secs(30);

/// What is told next.
fn next(uffd: &RemoteUserfaultfd) -> Event {
    assert!(is_told(uffd, LONG));
    let mut message = [Message::default()];
    assert_eq!(uffd.read(&mut message), Ok(1));
    message[0].take()
}

/// Until a thread of this process sleeps in the kernel, for a fault or an event that is to be read.
fn until_asleep(thread: i32) {
    let sleeps = || {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
        matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('S' | 'D'))
    };
    while !sleeps() {
        std::thread::yield_now();
    }
}

fn this_thread() -> i32 {
    // SAFETY: no condition.
    unsafe { libc::gettid() }
}

fn page(byte: u8) -> [u8; PAGE] {
    [byte; PAGE]
}

#[test]
fn a_page_fault_is_read_before_an_older_removal() {
    let _alone = alone();
    let (uffd, memory) = registered(2, REMOVE);
    std::thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::channel();
        scope.spawn(move || {
            send.send(this_thread()).unwrap();
            memory.page(0).discard();
        });
        until_asleep(receive.recv().unwrap());
        assert!(is_told(&uffd, LONG), "the removal");
        let (send, receive) = std::sync::mpsc::channel();
        let reader = scope.spawn(move || {
            send.send(this_thread()).unwrap();
            memory.byte(PAGE)
        });
        until_asleep(receive.recv().unwrap());
        let mut messages = [Message::default(), Message::default()];
        assert_eq!(uffd.read(&mut messages), Ok(2));
        let [first, second] = messages.each_mut().map(Message::take);
        assert!(matches!(first, Event::Fault(fault) if fault.addr == memory.start + PAGE));
        assert!(matches!(second, Event::Remove(range) if range == memory.page(0).range()));
        while uffd.copy(memory.start + PAGE, &page(7), true).is_err() {
            std::thread::yield_now();
        }
        assert_eq!(reader.join().unwrap(), 7);
    });
    memory.unmap();
}

#[test]
fn a_removal_is_told_before_the_page_goes_and_waited_for() {
    let _alone = alone();
    let (uffd, memory) = registered(1, REMOVE);
    uffd.copy(memory.start, &page(7), true).unwrap();
    std::thread::scope(|scope| {
        let remover = scope.spawn(move || memory.discard());
        assert!(is_told(&uffd, LONG));
        assert_eq!(memory.byte(0), 7, "it is there still");
        assert!(!remover.is_finished());
        assert!(matches!(next(&uffd), Event::Remove(range) if range == memory.range()));
        remover.join().unwrap();
        uffd.copy(memory.start, &page(8), true).unwrap();
        assert_eq!(memory.byte(0), 8, "and is gone now");
    });
    memory.unmap();
}

#[test]
fn while_an_event_is_unread_nothing_is_filled_anywhere_and_wakes_go_on() {
    let _alone = alone();
    let (uffd, memory) = registered(4, REMOVE);
    std::thread::scope(|scope| {
        let remover = scope.spawn(move || memory.page(0).discard());
        assert!(is_told(&uffd, LONG));
        let again = Err(CopyError::Again { copied: 0 });
        let elsewhere = memory.start + 2 * PAGE;
        assert_eq!(uffd.copy(elsewhere, &page(7), true), again);
        assert_eq!(uffd.zero(elsewhere, PAGE, true), again);
        assert_eq!(uffd.poison(elsewhere, PAGE), again);
        assert_eq!(uffd.wake(elsewhere, PAGE), Ok(()));
        assert!(matches!(next(&uffd), Event::Remove(_)));
        remover.join().unwrap();
        assert_eq!(uffd.copy(elsewhere, &page(7), true), Ok(()));
    });
    memory.unmap();
}

#[test]
fn a_page_that_is_there_is_not_woken_for_by_filling_it() {
    let _alone = alone();
    let (uffd, memory) = registered(1, 0);
    std::thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::channel();
        let reader = scope.spawn(move || {
            send.send(this_thread()).unwrap();
            memory.byte(0)
        });
        let thread = receive.recv().unwrap();
        assert!(matches!(next(&uffd), Event::Fault(_)));
        assert_eq!(uffd.copy(memory.start, &page(7), false), Ok(()));
        let there = Err(CopyError::AlreadyPresent);
        assert_eq!(uffd.copy(memory.start, &page(8), true), there);
        until_asleep(thread);
        assert!(!reader.is_finished());
        uffd.wake(memory.start, PAGE).unwrap();
        assert_eq!(reader.join().unwrap(), 7);
    });
    memory.unmap();
}

#[test]
fn several_pages_are_filled_up_to_one_that_is_there() {
    let _alone = alone();
    let (uffd, memory) = registered(4, 0);
    uffd.copy(memory.start + 2 * PAGE, &page(7), true).unwrap();
    let bytes = [9; 4 * PAGE];
    let some = Err(CopyError::Again { copied: 2 * PAGE });
    assert_eq!(uffd.copy(memory.start, &bytes[..], true), some);
    let there = Err(CopyError::AlreadyPresent);
    assert_eq!(uffd.copy(memory.start + 2 * PAGE, &bytes[2 * PAGE..], true), there);
    assert_eq!(uffd.copy(memory.start + 3 * PAGE, &bytes[3 * PAGE..], true), Ok(()));
    assert_eq!([0, 1, 2, 3].map(|page| memory.byte(page * PAGE)), [9, 9, 7, 9]);
    memory.unmap();
}

#[test]
fn what_is_not_registered_or_only_in_part_is_told_apart() {
    let _alone = alone();
    let (uffd, memory) = registered(4, UNMAP);
    let bytes = [9; 4 * PAGE];
    std::thread::scope(|scope| {
        let unmapper = scope.spawn(move || memory.pages(2..4).unmap());
        assert!(matches!(next(&uffd), Event::Unmap(range) if range == memory.pages(2..4).range()));
        unmapper.join().unwrap();
    });
    let not = Err(CopyError::NotRegistered);
    assert_eq!(uffd.copy(memory.start + PAGE, &bytes[..2 * PAGE], true), not, "across its end");
    assert_eq!(uffd.copy(memory.start + 2 * PAGE, &bytes[..PAGE], true), not);
    assert_eq!(
        uffd.copy(memory.start + 77, &bytes[..PAGE], true),
        Err(CopyError::Other(Errno::INVAL))
    );
    assert_eq!(
        uffd.copy(memory.start, std::ptr::slice_from_raw_parts(std::ptr::null(), PAGE), true),
        Err(CopyError::Other(Errno::FAULT))
    );
    memory.pages(0..2).unmap_beside(&uffd);
}

#[test]
fn what_moves_is_told_with_its_old_place_unmapped_after_it() {
    let _alone = alone();
    let (uffd, memory) = registered(2, REMAP | UNMAP);
    let place = Memory::map(2 * PAGE, Kind::Anonymous).unwrap();
    std::thread::scope(|scope| {
        let mover = scope.spawn(move || memory.relocate(place.start, 0));
        let first = next(&uffd);
        let (from, to) = (memory.start, place.start);
        assert!(
            matches!(first, Event::Remap { from: f, to: t, len } if (f, t, len) == (from, to, 2 * PAGE)),
            "{first:?}"
        );
        assert!(matches!(next(&uffd), Event::Unmap(range) if range == memory.range()));
        mover.join().unwrap();
    });
    assert_eq!(uffd.copy(place.start, &page(7), true), Ok(()));
    assert_eq!(uffd.copy(memory.start, &page(7), true), Err(CopyError::NotRegistered));
    place.unmap_beside(&uffd);
}

#[test]
fn a_process_that_has_gone_is_told_by_filling_and_by_nothing_else() {
    let _alone = alone();
    let Some(fd) = userfaultfd(ALL_EVENTS) else { return };
    let memory = Memory::map(PAGE, Kind::Anonymous).unwrap().register(&fd);
    let uffd = RemoteUserfaultfd::new(fd).unwrap();
    let child = std::thread::scope(|scope| {
        let forker = scope.spawn(|| common::in_child(|| 5));
        let Event::Fork(child) = next(&uffd) else { panic!("it forks") };
        assert_eq!(forker.join().unwrap(), 5);
        RemoteUserfaultfd::new(child).unwrap()
    });
    assert_eq!(child.copy(memory.start, &page(7), true), Err(CopyError::ProcessGone));
    assert!(!is_told(&child, Duration::ZERO));
    assert_eq!(uffd.copy(memory.start, &page(7), true), Ok(()), "its parent is here");
    memory.unmap_beside(&uffd);
}

#[test]
fn when_the_last_descriptor_is_closed_what_is_missing_is_zeros() {
    let _alone = alone();
    let (uffd, memory) = registered(2, 0);
    uffd.copy(memory.start, &page(7), true).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || memory.byte(PAGE));
        assert!(matches!(next(&uffd), Event::Fault(_)));
        drop(uffd.as_fd().try_clone_to_owned().unwrap());
        drop(uffd);
        assert_eq!(reader.join().unwrap(), 0, "why a client is poisoned first");
    });
    memory.unmap();
}
