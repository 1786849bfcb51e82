//! Images of a checkpoint: what belongs where, and what is refused, with a line that says why.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/any_images.rs"]
mod any_images;
#[path = "common/images.rs"]
mod images;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use images::{
    Entry, IN_PARENT, INVENTORY, LAZY, MM, Message, PAGEMAP, PRESENT, PSTREE, START, image, vma,
    write_mm, write_pages, write_tasks,
};
use pervma_serve::images::Images;
use pervma_serve::state::Extent;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tempfile::TempDir;

const PAGE: usize = 4096;
const PID: u64 = 7;

/// Bytes that say of which page and which checkpoint they are.
fn bytes(pages: usize, checkpoint: u8) -> Vec<u8> {
    let page = |page: usize| vec![checkpoint << 6 | page as u8; PAGE];
    (0..pages).flat_map(page).collect()
}

/// Images of a task with 16 pages.
fn write(folder: &Path, checkpoint: u8, entries: &[Entry]) {
    write_tasks(folder, &[PID]);
    write_mm(folder, PID, &[vma(&(START..START + 32 * PAGE), 0x22)]);
    write_pages(folder, PID, &bytes(16, checkpoint), entries);
}

/// What the images say of the first byte of each page; `None` where they have none.
fn first_bytes(images: &Images) -> Vec<Option<u8>> {
    let (extents, source) = (images.extents(PID as u32).unwrap(), images.source());
    let first = |page: usize| {
        let addr = (START + page * PAGE) as u64;
        let extent = extents.iter().find(|extent| extent.range().contains(&addr))?;
        assert_eq!((extent.content, extent.page_size), (Extent::SOURCE, 4096));
        let mut byte = [0];
        source.read_at(extent.offset + (addr - extent.start), &mut byte).unwrap();
        Some(byte[0])
    };
    (0..16).map(first).collect()
}

/// What is wrong with the images in a folder: one line.
fn refused(folder: &Path) -> String {
    let error = Images::open(folder).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn pages_are_where_the_pagemap_says_and_others_are_zeros() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 1, &[(1..4, LAZY | PRESENT), (4..5, PRESENT), (9..16, LAZY | PRESENT)]);
    let images = Images::open(folder.path()).unwrap();
    let expected = (0..16).map(|page| (1..5).contains(&page) || page >= 9);
    let expected: Vec<_> = expected.zip(64..).map(|(is, byte)| is.then_some(byte)).collect();
    assert_eq!(first_bytes(&images), expected);
    assert_eq!(images.tasks().collect::<Vec<_>>(), [PID as u32]);
    assert_eq!(images.extents(PID as u32).unwrap().len(), 2, "runs that go on are one extent");
    assert!(images.extents(8).is_none());
}

#[test]
fn pages_that_did_not_change_are_in_the_parent_images_however_far() {
    let root = tempfile::tempdir().unwrap();
    let [last, middle, first] = ["last", "middle", "first"].map(|name| root.path().join(name));
    for (folder, parent) in
        [(&last, Some("../middle")), (&middle, Some("../first")), (&first, None)]
    {
        fs::create_dir(folder).unwrap();
        if let Some(parent) = parent {
            symlink(parent, folder.join("parent")).unwrap();
        }
    }
    write(&last, 3, &[(0..2, LAZY | PRESENT), (2..10, LAZY | IN_PARENT), (12..13, PRESENT)]);
    // Page 4 was deduplicated: it stands in the last, and what is here counts no more.
    write(&middle, 2, &[(1..4, PRESENT), (4..8, IN_PARENT), (8..16, PRESENT)]);
    write(&first, 1, &[(0..5, PRESENT), (5..16, LAZY | PRESENT)]);
    let images = Images::open(&last).unwrap();
    let checkpoints = [3, 3, 2, 2, 1, 1, 1, 1, 2, 2, 0, 0, 3, 0, 0, 0];
    let expected = checkpoints.iter().zip(0_u8..);
    let expected: Vec<_> =
        expected.map(|(&is, page)| (is > 0).then_some((is & 3) << 6 | page)).collect();
    assert_eq!(first_bytes(&images), expected);

    write(&first, 1, &[(0..5, PRESENT), (7..16, PRESENT)]);
    assert!(refused(&last).contains("is to be in the parent images"), "{}", refused(&last));
    fs::remove_file(first.join("pagemap-7.img")).unwrap();
    assert!(refused(&last).contains("is to be in the parent images"), "{}", refused(&last));
    fs::remove_dir_all(&first).unwrap();
    assert!(refused(&last).contains("No such file"), "{}", refused(&last));
    symlink("last", &first).unwrap();
    assert!(refused(&last).contains("lead back"), "{}", refused(&last));
}

#[test]
fn what_is_in_no_mapping_that_can_be_lazy_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 1, &[(0..8, PRESENT), (8..16, LAZY | PRESENT)]);
    let part = |start: usize, end: usize| START + start * PAGE..START + end * PAGE;
    // Of a file, private, locked; nothing from 14 on.
    let vmas = [(0, 2, 0x02), (2, 4, 0x22), (4, 6, 0x2022), (6, 7, 0x22), (9, 14, 0x02)];
    let vmas = vmas.map(|(start, end, flags)| vma(&part(start, end), flags));
    write_mm(folder.path(), PID, &vmas);
    let images = Images::open(folder.path()).unwrap();
    let is = [2, 3, 6, 9, 10, 11, 12, 13];
    let expected: Vec<_> = (0..16).map(|page| is.contains(&page).then_some(64 + page)).collect();
    assert_eq!(first_bytes(&images), expected);
}

#[test]
fn a_zombie_has_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 1, &[]);
    write_tasks(folder.path(), &[PID, 9]);
    let images = Images::open(folder.path()).unwrap();
    assert!(images.extents(9).is_none());
    assert_eq!(images.extents(PID as u32).unwrap().len(), 0);
    fs::remove_file(folder.path().join("pages-7.img")).unwrap();
    assert!(Images::open(folder.path()).is_ok(), "no page of it is needed");
}

/// A pagemap with these entries: address, pages, flags.
fn pagemap(entries: &[(u64, u64, u64)]) -> Vec<u8> {
    let entry = |&(start, pages, flags): &(u64, u64, u64)| {
        let entry = Message::default().number(1, start).number(2, 1).number(4, flags);
        entry.number(5, pages)
    };
    let head = Message::default().number(1, PID);
    image(PAGEMAP, &[vec![head], entries.iter().map(entry).collect()].concat())
}

#[test]
fn images_that_are_not_as_they_must_be_are_refused_with_the_file_and_what_is_wrong() {
    let start = START as u64;
    let whole = || {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 1, &[(0..16, LAZY | PRESENT)]);
        folder
    };
    let refused_with = |file: &str, bytes: Option<&[u8]>, what: &str| {
        let folder: TempDir = whole();
        let path = folder.path().join(file);
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = refused(folder.path());
        assert!(error.contains(what) && error.contains(folder.path().to_str().unwrap()), "{error}");
    };
    for file in ["inventory.img", "pstree.img", "mm-7.img", "pagemap-7.img", "pages-7.img"] {
        refused_with(file, None, "it is not there");
        refused_with(
            file,
            Some(&[]),
            if file.starts_with("pages") { "which has 0" } else { "too short" },
        );
    }
    let number = |field, number| Message::default().number(field, number);
    refused_with("inventory.img", Some(&image(INVENTORY, &[number(1, 1)])), "of version 1");
    refused_with("inventory.img", Some(&image(INVENTORY, &[])), "it is empty");
    refused_with("pstree.img", Some(&image(PSTREE, &[])), "no task");
    refused_with("pstree.img", Some(&image(PSTREE, &[number(1, 0)])), "task 0 cannot");
    let twice = [number(1, PID), number(1, PID)];
    refused_with("pstree.img", Some(&image(PSTREE, &twice)), "task 7 cannot");
    refused_with("pstree.img", Some(&image(MM, &[])), "of this kind");
    refused_with("pagemap-7.img", Some(&image(PAGEMAP, &[])), "it has no head");

    // Cut anywhere, or with a byte changed, it is refused, or is another whole one.
    let valid = pagemap(&[(start, 3, 6), (start + 0x5000, 11, 6)]);
    for len in 0..valid.len() {
        let folder = whole();
        fs::write(folder.path().join("pagemap-7.img"), &valid[..len]).unwrap();
        drop(Images::open(folder.path()));
        let mut changed = valid.clone();
        changed[len] ^= 0x41;
        fs::write(folder.path().join("pagemap-7.img"), &changed).unwrap();
        drop(Images::open(folder.path()));
    }
    refused_with("pagemap-7.img", Some(&valid[..valid.len() - 1]), "truncated");
    let mut huge = valid.clone();
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    refused_with("pagemap-7.img", Some(&huge), "truncated within the record at byte 8");
    huge[8..].fill(0xFF);
    huge[8..12].copy_from_slice(&4_u32.to_le_bytes());
    refused_with("pagemap-7.img", Some(&huge), "the record at byte 8 is malformed");

    for (entries, what) in [
        (&[(start + 1, 1, 6)][..], "there cannot be 1 pages"),
        (&[(start, 0, 6)], "there cannot be 0 pages"),
        (&[(start, u64::MAX, 6)], "there cannot be"),
        (&[(start, 1 << 40, 6)], "there cannot be"),
        (&[(u64::MAX - 0xFFF, 1, 6)], "there cannot be"),
        (&[(start, 4, 6), (start + 0x3000, 1, 6)], "not behind those before"),
        (&[(start, 1, 6), (start, 1, 6)], "not behind those before"),
        (&[(start, 17, 6)], "tells of 69632 bytes of pages-7.img, which has 65536"),
        (&[(start, 15, 6)], "tells of 61440 bytes of pages-7.img, which has 65536"),
        (&[], "tells of 0 bytes of pages-7.img, which has 65536"),
        (&[(start, 16, 6), (start + 0x10000, 1, 2)], "page server"),
        (&[(start, 16, 6), (start + 0x10000, 1, 3)], "parent images"),
    ] {
        refused_with("pagemap-7.img", Some(&pagemap(entries)), what);
    }
    let mapping = |start, end| {
        let vma = number(1, start).number(2, end);
        image(MM, &[Message::default().message(14, &vma)])
    };
    refused_with("mm-7.img", Some(&image(MM, &[])), "it is empty");
    refused_with("mm-7.img", Some(&mapping(start, start)), "cannot be there");
    refused_with("mm-7.img", Some(&mapping(start, 0)), "cannot be there");
    refused_with("mm-7.img", Some(&mapping(start + 1, start + 0x2001)), "cannot be there");

    let folder = whole();
    let pipe = folder.path().join("mm-7.img");
    fs::remove_file(&pipe).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(refused(folder.path()).contains("regular file"), "{}", refused(folder.path()));
    let long = fs::File::create(folder.path().join("pstree.img")).unwrap();
    long.set_len(1 << 40).unwrap();
    assert!(refused(folder.path()).contains("longer than"), "{}", refused(folder.path()));
    assert!(refused(&folder.path().join("absent")).contains("No such file"));
}

/// The same as the fuzz target, with random bytes.
#[test]
fn any_images_are_refused_or_are_served_as_they_say() {
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..600 {
        let mut bytes = vec![0; random.random_range(0..40)];
        random.fill_bytes(&mut bytes);
        any_images::run(&bytes);
    }
}
