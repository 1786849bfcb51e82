//! Descriptors that are not what they seem: what is written is stored at its offset, or refused
//! with an error that says why, and the page is still to be written then.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges are compared")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use common::{MODES, Mode, PAGE, byte, bytes, child_case, random_bytes, refuse, run_child};
use pervma_pager::sys::Errno;
use pervma_pager::{Error, FileSource, OnFailure, Options, Region};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_getfl, fcntl_setfl};
use rustix::process::{Resource, Rlimit, setrlimit};

const PAGES: usize = 9;

/// A file with these bytes, which has a name as long as the directory lives.
fn named(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    File::create_new(&path).unwrap().write_all(bytes).unwrap();
    (directory, path)
}

fn open(path: &Path, flags: i32) -> std::io::Result<File> {
    File::options().read(true).write(true).custom_flags(flags).open(path)
}

fn map(mode: Mode, file: File) -> Region {
    let source = FileSource::new(file).unwrap();
    match mode {
        Mode::Signal => Options::new().writable().map(source).unwrap(),
        Mode::Thread => Options::new().handler_threads(1).writable().map(source).unwrap(),
    }
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Writes a page, writes it back, and demands that it is where it belongs, or that the error has
/// all these words and nothing has changed. Whether it was stored.
fn stored_or_refused(region: &Region, file: &File, words: &[&str]) -> bool {
    let before = content(file);
    let at = 4 * PAGE;
    region.write(at + 9, &[!before[at + 9]]);
    let mut after = before.clone();
    let stored = match region.write_back(0..region.len()) {
        Ok(bytes) => {
            assert_eq!(bytes, PAGE);
            after[at + 9] = !before[at + 9];
            true
        }
        Err(Error::WriteBack(error)) => {
            let text = error.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{words:?} in: {text}");
            assert_eq!(region.written(0..region.len()).unwrap(), [at..at + PAGE]);
            assert_eq!(byte(region, at + 9), !before[at + 9]);
            false
        }
        Err(other) => panic!("{other}"),
    };
    assert!(content(file) == after, "it is where it belongs, and nothing else has changed");
    if stored {
        region.discard(0..region.len()).unwrap();
        assert!(bytes(region) == after);
    }
    stored
}

/// What Linux answers that has no `RWF_NOAPPEND`, or a filter that refuses the call.
const NO_SUCH_WRITE: [Errno; 3] = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::PERM];

#[test]
fn a_file_that_is_open_for_appending_is_written_at_the_offset() {
    common::watch();
    for mode in MODES {
        let (_directory, path) = named(&random_bytes(PAGES * PAGE - 5, 1));
        let plain = File::open(&path).unwrap();
        let appending = map(mode, open(&path, libc::O_APPEND).unwrap());
        if !stored_or_refused(&appending, &plain, &["O_APPEND"]) {
            println!("before Linux 6.9: refused");
        }
        // And one to which it is done later, through another descriptor.
        let file = open(&path, 0).unwrap();
        let other = file.try_clone().unwrap();
        let region = map(mode, file);
        assert!(stored_or_refused(&region, &plain, &[]));
        fcntl_setfl(&other, fcntl_getfl(&other).unwrap() | OFlags::APPEND).unwrap();
        stored_or_refused(&region, &plain, &["O_APPEND"]);
    }
}

#[test]
fn appending_is_refused_where_the_kernel_cannot_write_at_an_offset_then() {
    common::watch();
    for errno in NO_SUCH_WRITE {
        let filtered = move || {
            let (_directory, path) = named(&random_bytes(PAGES * PAGE, 2));
            let plain = File::open(&path).unwrap();
            let file = open(&path, 0).unwrap();
            let other = file.try_clone().unwrap();
            let region = map(Mode::Signal, file);
            refuse(libc::SYS_pwritev2, errno);
            assert!(stored_or_refused(&region, &plain, &[]), "by the older call");
            fcntl_setfl(&other, fcntl_getfl(&other).unwrap() | OFlags::APPEND).unwrap();
            assert!(!stored_or_refused(&region, &plain, &["O_APPEND"]));
        };
        std::thread::spawn(filtered).join().unwrap();
    }
}

#[test]
fn a_file_that_is_not_open_for_writing_is_not_written() {
    common::watch();
    let (_directory, path) = named(&random_bytes(PAGES * PAGE, 3));
    let plain = File::open(&path).unwrap();
    for mode in MODES {
        let region = map(mode, File::open(&path).unwrap());
        assert!(!stored_or_refused(&region, &plain, &["not open for writing"]));
    }
    let source = FileSource::new(plain).unwrap();
    let refused = Options::new().writable().resident(8 * PAGE).map(source);
    assert!(matches!(refused, Err(Error::SourceNotWritable)));
}

#[test]
fn what_cannot_be_read_by_position_is_refused_by_its_name() {
    common::watch();
    let (directory, path) = named(&[7; PAGE]);
    let refused = |file: File| FileSource::new(file).unwrap_err();
    let open_as = |flags| {
        let mut options = File::options();
        options.read(true).custom_flags(flags);
        options.open(&path).unwrap()
    };
    let write_only = File::options().write(true).open(&path).unwrap();
    assert!(matches!(refused(write_only), Error::NotReadable));
    assert!(matches!(refused(open_as(libc::O_PATH)), Error::NotReadable));
    let empty = directory.path().join("empty");
    File::create_new(&empty).unwrap();
    let write_only = File::options().write(true).open(&empty).unwrap();
    assert!(matches!(refused(write_only), Error::NotReadable), "also one without a byte");

    let mut not_files: Vec<OwnedFd> = vec![
        File::open(directory.path()).unwrap().into(),
        File::open("/dev/null").unwrap().into(),
        File::open("/dev/zero").unwrap().into(),
        std::os::unix::net::UnixStream::pair().unwrap().0.into(),
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
        std::io::pipe().unwrap().0.into(),
        std::io::pipe().unwrap().1.into(),
        rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap(),
        rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap(),
    ];
    // A terminal.
    // SAFETY: opens a descriptor.
    let terminal = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if terminal >= 0 {
        // SAFETY: it is new, and has no other owner.
        not_files.push(unsafe { OwnedFd::from_raw_fd(terminal) });
    }
    if let Ok(disk) = File::open("/dev/loop0").or_else(|_| File::open("/dev/vda")) {
        not_files.push(disk.into());
    }
    for not_file in not_files {
        let error = refused(not_file.into());
        assert!(matches!(error, Error::NotARegularFile), "{error}");
    }
}

#[test]
fn a_file_whose_size_is_not_that_of_its_content_is_refused() {
    common::watch();
    let of_proc = FileSource::new(File::open("/proc/self/status").unwrap()).unwrap();
    let error = Options::new().map(of_proc).unwrap_err();
    assert!(matches!(error, Error::Empty) && error.to_string().contains("/proc"), "{error}");
    let of_sys = File::open("/sys/kernel/mm/transparent_hugepage/enabled");
    if let Ok(of_sys) = of_sys {
        let refused = FileSource::new(of_sys).unwrap_err();
        assert!(matches!(refused, Error::NotItsSize { .. }), "{refused}");
    }
}

#[test]
fn direct_io_is_right_and_set_later_right_or_refused() {
    common::watch();
    let expected = random_bytes(PAGES * PAGE - 5, 4);
    if child_case().is_none() {
        for mode in MODES {
            let (_directory, path) = named(&expected);
            let direct = match open(&path, libc::O_DIRECT) {
                Ok(direct) => direct,
                Err(error) => return common::not_run(format_args!("no direct I/O here: {error}")),
            };
            let region = map(mode, direct);
            region.prefetch(0..4 * PAGE).unwrap();
            assert!(bytes(&region) == expected, "{mode:?}");
            // Some of the last page are not the file's.
            for page in [0, 2, 3, PAGES - 1] {
                region.write(page * PAGE + 7, b"written");
            }
            region.sync().unwrap();
            let stored = content(&File::open(&path).unwrap());
            assert!(stored == bytes(&region) && stored.len() == expected.len(), "{mode:?}");
            assert_eq!(&stored[(PAGES - 1) * PAGE + 7..][..7], b"written");
        }
    }
    // Later, and through another descriptor: an access fails, or gets the file's bytes.
    if let Some(case) = child_case() {
        let (_directory, path) = named(&expected);
        let plain = File::open(&path).unwrap();
        let file = open(&path, 0).unwrap();
        let other = file.try_clone().unwrap();
        let source = FileSource::new(file).unwrap();
        let options = Options::new().writable().on_failure(OnFailure::exit(42, "cannot be read\n"));
        let region = match case.as_str() {
            "signal" => options.map(source).unwrap(),
            _ => options.handler_threads(1).map(source).unwrap(),
        };
        byte(&region, 4 * PAGE);
        fcntl_setfl(&other, fcntl_getfl(&other).unwrap() | OFlags::DIRECT).unwrap();
        if stored_or_refused(&region, &plain, &[]) {
            assert!(bytes(&region) == content(&plain));
        }
        return;
    }
    for case in ["signal", "thread"] {
        let ended = run_child("direct_io_is_right_and_set_later_right_or_refused", case);
        assert!(matches!(ended.exit, Some(0 | 42)), "{case}: {ended:?}");
    }
}

fn memfd(expected: &[u8]) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("sealed", flags).unwrap());
    file.write_all(expected).unwrap();
    file
}

#[test]
fn a_sealed_file_is_as_writable_as_its_seals_let_it_be() {
    common::watch();
    for mode in MODES {
        for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
            let file = memfd(&random_bytes(PAGES * PAGE, 5));
            // Sealed while a region has it.
            let region = map(mode, file.try_clone().unwrap());
            assert!(stored_or_refused(&region, &file, &[]));
            fcntl_add_seals(&file, seal).unwrap();
            assert!(!stored_or_refused(&region, &file, &["sealed"]));
            // And before: a bound of what is there could not be kept.
            let source = FileSource::new(file.try_clone().unwrap()).unwrap();
            let refused = Options::new().writable().resident(8 * PAGE).map(source);
            assert!(matches!(refused, Err(Error::SourceNotWritable)));
            let region = map(mode, file.try_clone().unwrap());
            assert!(!stored_or_refused(&region, &file, &["sealed"]));
        }
        let file = memfd(&random_bytes(PAGES * PAGE - 7, 6));
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        assert!(stored_or_refused(&map(mode, file.try_clone().unwrap()), &file, &[]));
    }
}

/// A limit is an error, and not the signal that ends a process by default.
#[test]
fn a_limit_of_file_sizes_is_an_error() {
    common::watch();
    if child_case().is_some() {
        for mode in MODES {
            let expected = random_bytes(PAGES * PAGE, 7);
            let file = common::file_with(&expected);
            let region = map(mode, file.try_clone().unwrap());
            for limit in [PAGE, 4 * PAGE + 100] {
                let limit = Rlimit { current: Some(limit as u64), maximum: None };
                setrlimit(Resource::Fsize, limit).unwrap();
                assert!(!stored_or_refused(&region, &file, &["limit"]));
            }
            let limit = Rlimit { current: Some(5 * PAGE as u64), maximum: None };
            setrlimit(Resource::Fsize, limit).unwrap();
            assert!(stored_or_refused(&region, &file, &[]));
            setrlimit(Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
        }
        return;
    }
    let ended = run_child("a_limit_of_file_sizes_is_an_error", "child");
    assert_eq!(ended.exit, Some(0), "{ended:?}");
}

#[test]
fn a_file_without_a_name_and_one_that_was_read_before_are_ordinary() {
    common::watch();
    for mode in MODES {
        let mut file = common::file_with(&random_bytes(PAGES * PAGE, 8));
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        let duplicate = File::from(file.as_fd().try_clone_to_owned().unwrap());
        assert!(stored_or_refused(&map(mode, duplicate), &file, &[]));
    }
}
