//! What was written is durable after `sync`: it is written back, and then the source is asked.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use common::{PAGE, file_with, random_bytes, refuse};
use pervma_pager::sys::Errno;
use pervma_pager::{Error, FileSource, MemorySource, Options, ReadFailed, Region, Source};

/// What a source was asked, and whether it fails at it.
#[derive(Default)]
struct Log(Mutex<(Vec<String>, Option<&'static str>)>);

impl Log {
    fn did(&self, what: String) -> io::Result<()> {
        let mut log = self.0.lock().unwrap();
        let fails = log.1 == what.split(' ').next();
        log.0.push(what);
        if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }

    fn fail(&self, what: Option<&'static str>) {
        self.0.lock().unwrap().1 = what;
    }
}

impl Source for Log {
    fn size(&self) -> u64 {
        8 * PAGE as u64
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        buf.fill(7);
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn sync(&self) -> io::Result<()> {
        self.did("sync".to_owned())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let pages = [offset as usize, bytes.len()].map(|bytes| bytes / PAGE);
        self.did(format!("write {} {}", pages[0], pages[1]))
    }
}

#[test]
fn it_writes_and_then_asks_the_source() {
    common::watch();
    let log = Arc::new(Log::default());
    let region = Options::new().writable().handler_threads(1).map(Arc::clone(&log)).unwrap();
    region.write(PAGE, &[1; 2 * PAGE]);
    region.write(6 * PAGE, &[1]);
    assert_eq!(region.sync_range(0..4 * PAGE).unwrap(), 2 * PAGE);
    assert_eq!(log.take(), ["write 1 2", "sync"]);
    assert_eq!(region.sync().unwrap(), PAGE);
    assert_eq!(log.take(), ["write 6 1", "sync"]);
    region.write(0, &[1]);
    region.write_back(0..PAGE).unwrap();
    assert_eq!(region.sync().unwrap(), 0);
    assert_eq!(log.take(), ["write 0 1", "sync"], "what was written before is made durable too");
    assert!(matches!(region.sync_range(1..PAGE), Err(Error::Range { .. })));

    region.write(0, &[1]);
    log.fail(Some("write"));
    assert!(matches!(region.sync(), Err(Error::WriteBack(_))));
    assert_eq!(log.take(), ["write 0 1"], "nothing is said of what was not written");
    log.fail(Some("sync"));
    let error = region.sync().unwrap_err();
    assert!(matches!(error, Error::Sync(_)) && error.to_string().contains("durable"), "{error}");
    log.fail(None);
    assert_eq!(log.take(), ["write 0 1", "sync"]);
    assert_eq!(region.sync().unwrap(), 0);

    let log = Arc::new(Log::default());
    let region = Options::new().handler_threads(1).map(Arc::clone(&log)).unwrap();
    assert_eq!(region.sync().unwrap(), 0);
    assert!(log.take().is_empty(), "nothing of it was written");
}

#[test]
fn a_file_is_synced() {
    common::watch();
    let synced = |region: &Region| region.sync().map_err(|error| error.to_string());
    let file = file_with(&random_bytes(5 * PAGE, 1));
    let source = FileSource::new(file.try_clone().unwrap()).unwrap();
    let region = &Options::new().writable().map(source).unwrap();
    region.write(9, &[1, 2, 3]);
    assert_eq!(synced(region), Ok(PAGE));
    let mut found = [0; 3];
    file.read_exact_at(&mut found, 9).unwrap();
    assert_eq!(found, [1, 2, 3]);
    // It is this call that makes it durable, and what it says is told.
    let filtered = move || {
        refuse(libc::SYS_fdatasync, Errno::IO);
        region.write(9, &[4]);
        region.sync()
    };
    let refused = std::thread::scope(|scope| scope.spawn(filtered).join().unwrap());
    match refused {
        Err(Error::Sync(error)) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
        other => panic!("{other:?}"),
    }
    // And a source in memory has nothing to do, but cannot be written.
    let region = Options::new().writable().map(MemorySource::new(vec![7; PAGE])).unwrap();
    assert_eq!(synced(&region), Ok(0));
    region.write(0, &[1]);
    assert!(matches!(region.sync(), Err(Error::WriteBack(_))));
}
