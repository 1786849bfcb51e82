//! LLNL UMap's interface, over regions: `umap/umap.h`, which is written by hand, gives the
//! functions UMap's names.
#![expect(unsafe_code, reason = "exports functions, and maps at addresses of the caller's")]

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use libc::size_t;
use pervma_pager::sys::At;
use pervma_pager::{Bound, Error, FileSource, Handlers, Options, Pin, Region, SignalSafe};

use crate::boundary::{Out, given, waiting_call};
use crate::pager::{Callbacks, SourceCallbacks};
use crate::status::{Status, fail, failed};

/// UMap's settings, as its environment variables say.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UmapSettings {
    /// UMAP_PAGESIZE: in bytes, a multiple of 4096. By default 4096.
    pub page_size: u64,
    /// UMAP_BUFSIZE: how many such pages of all regions are present at most, at least 4. By default
    /// nine tenths of the memory that is free when this is first asked for.
    pub buffer_pages: u64,
    /// UMAP_PAGE_FILLERS: threads that serve faults, of all regions. By default as many as CPUs.
    pub fillers: u64,
    /// UMAP_PAGE_EVICTORS: by default as many as CPUs. Of no effect: one thread gives back pages,
    /// another writes them.
    pub evictors: u64,
    /// UMAP_EVICT_HIGH_WATER_THRESHOLD: pages begin to go when so many per cent of the buffer are
    /// present. By default 90.
    pub high_water: u64,
    /// UMAP_EVICT_LOW_WATER_THRESHOLD: and go until so many are. By default 70.
    pub low_water: u64,
    /// UMAP_MAX_FAULT_EVENTS: by default 256. Of no effect.
    pub max_fault_events: u64,
    /// UMAP_READ_AHEAD: by default 0. Of no effect.
    pub read_ahead: u64,
    /// PERVMA_UMAP_MODE: 0 of `thread`, the default; non-zero of `signal`.
    pub is_in_signal: u64,
}

impl UmapSettings {
    /// What the variables say; or what is wrong with them.
    fn of(variable: impl Fn(&str) -> Option<String>, free_bytes: u64) -> Result<Self, String> {
        let number = |name: &str, default: u64| match variable(name) {
            None => Ok(default),
            Some(text) => {
                let text = text.trim();
                text.parse().map_err(|_| format!("{name} is not a number: {text}"))
            }
        };
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let page_size = number("UMAP_PAGESIZE", PAGE)?;
        if page_size == 0 || !page_size.is_multiple_of(PAGE) {
            return Err(format!("UMAP_PAGESIZE is no multiple of {PAGE}: {page_size}"));
        }
        let buffer_pages = number("UMAP_BUFSIZE", (free_bytes / 10 * 9 / page_size).max(4))?;
        if buffer_pages < 4 || buffer_pages.checked_mul(page_size).is_none_or(|all| all > MOST) {
            return Err(format!("UMAP_BUFSIZE is fewer than 4 pages, or too many: {buffer_pages}"));
        }
        let high_water = number("UMAP_EVICT_HIGH_WATER_THRESHOLD", 90)?;
        let low_water = number("UMAP_EVICT_LOW_WATER_THRESHOLD", 70)?;
        if high_water > 100 || low_water > high_water {
            return Err(format!("UMAP_EVICT_*_THRESHOLD: {low_water} and {high_water} per cent"));
        }
        let is_in_signal = match variable("PERVMA_UMAP_MODE").as_deref() {
            None | Some("thread") => 0,
            Some("signal") => 1,
            Some(other) => return Err(format!("PERVMA_UMAP_MODE: signal or thread, not {other}")),
        };
        Ok(Self {
            page_size,
            buffer_pages,
            fillers: number("UMAP_PAGE_FILLERS", cpus)?.clamp(1, 1024),
            evictors: number("UMAP_PAGE_EVICTORS", cpus)?,
            high_water,
            low_water,
            max_fault_events: number("UMAP_MAX_FAULT_EVENTS", 256)?,
            read_ahead: number("UMAP_READ_AHEAD", 0)?,
            is_in_signal,
        })
    }

    /// Parts of a page that are filled at once: the largest power of two that a page is a multiple
    /// of.
    fn granule(&self) -> usize {
        1 << self.page_size.trailing_zeros()
    }

    fn bound(&self) -> Result<Bound, Error> {
        let granule = self.granule();
        let bytes = (self.buffer_pages * self.page_size) as usize;
        let part = |per_cent: u64| bytes / 100 * per_cent as usize / granule * granule;
        // What a bound can be kept between, when it is of few pages.
        let high = part(self.high_water).clamp(3 * granule, bytes);
        let low = part(self.low_water).clamp(2 * granule, high - granule);
        Bound::with_watermarks(bytes, low, high)
    }
}

const PAGE: u64 = 4096;
/// More than any buffer.
const MOST: u64 = 1 << 47;

/// The settings of this process, which are read once.
fn settings() -> Result<&'static UmapSettings, Status> {
    static SETTINGS: OnceLock<Result<UmapSettings, String>> = OnceLock::new();
    let settings = SETTINGS.get_or_init(|| {
        let free = |text: String| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        let free = std::fs::read_to_string("/proc/meminfo").ok().and_then(free);
        UmapSettings::of(|name| std::env::var(name).ok(), free.unwrap_or(1 << 20) << 10)
    });
    settings.as_ref().map_err(|about| fail(Status::Invalid, about))
}

/// What all regions share.
struct Shared {
    bound: Bound,
    /// In thread mode.
    handlers: Option<Handlers>,
}

/// A region, for as long as it is mapped.
struct Mapped {
    addresses: Range<usize>,
    is_writable: bool,
    /// Taken by who unmaps it: others may know of it still, and must not unmap it later, when
    /// something else is there.
    live: RwLock<Option<Live>>,
}

/// Fields are dropped in order.
struct Live {
    /// They borrow the region.
    pins: Mutex<Vec<Pin<'static>>>,
    region: Region,
}

#[derive(Default)]
struct Regions {
    /// Made for the first region.
    shared: Option<Arc<Shared>>,
    by_address: BTreeMap<usize, Arc<Mapped>>,
}

static REGIONS: Mutex<Option<Regions>> = Mutex::new(None);

impl Regions {
    fn with<R>(use_them: impl FnOnce(&mut Self) -> R) -> R {
        let mut regions: MutexGuard<'_, Option<Self>> =
            REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
        use_them(regions.get_or_insert_default())
    }

    /// Those that overlap a range of addresses.
    fn overlapping(&self, range: &Range<usize>) -> impl Iterator<Item = &Arc<Mapped>> {
        let below = self.by_address.range(..range.end).rev().map(|(_, mapped)| mapped);
        let start = range.start;
        below.take_while(move |mapped| mapped.addresses.end > start)
    }

    fn shared(&mut self, settings: &UmapSettings) -> Result<Arc<Shared>, Error> {
        if let Some(shared) = &self.shared {
            return Ok(Arc::clone(shared));
        }
        let threads = settings.fillers as usize;
        let handlers =
            if settings.is_in_signal == 0 { Some(Handlers::new(threads)?) } else { None };
        let shared = Arc::new(Shared { bound: settings.bound()?, handlers });
        Ok(Arc::clone(self.shared.insert(shared)))
    }
}

impl Mapped {
    /// The whole UMap pages that a range of addresses is in, as offsets.
    fn pages(&self, range: &Range<usize>, page: usize) -> Range<usize> {
        let Range { start, end } = self.addresses;
        let from = (range.start.max(start) - start) / page * page;
        let to = (range.end.min(end) - start).next_multiple_of(page);
        from..to.min(end - start)
    }

    /// Runs `use_it` with the region, which is not unmapped meanwhile.
    fn with<R>(&self, use_it: impl FnOnce(&Live) -> Result<R, Status>) -> Result<R, Status> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().map_or_else(|| Err(gone()), use_it)
    }

    fn write_back(&self, live: &Live) -> Result<(), Status> {
        if !self.is_writable {
            return Ok(());
        }
        live.region.write_back(0..live.region.len()).map(drop).map_err(failed)
    }

    /// Writes back what was written, and unmaps the region; it stays if that fails.
    fn unmap(&self) -> Result<(), Status> {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        self.write_back(live.as_ref().ok_or_else(gone)?)?;
        // Before another region can be at its address.
        Regions::with(|regions| regions.by_address.remove(&self.addresses.start));
        *live = None;
        Ok(())
    }
}

fn gone() -> Status {
    fail(Status::NotMapped, &"no region of umap is there")
}

/// The region that an address is in.
fn at(addr: usize) -> Result<Arc<Mapped>, Status> {
    let mapped = Regions::with(|regions| {
        regions.overlapping(&(addr..addr.saturating_add(1))).next().map(Arc::clone)
    });
    mapped.ok_or_else(gone)
}

/// What is asked for by a call of umap.
struct Request {
    addr: usize,
    len: usize,
    is_writable: bool,
    is_fixed: bool,
}

impl Request {
    fn new(addr: *mut c_void, len: size_t, prot: c_int, flags: c_int) -> Result<Self, Status> {
        let invalid = |about: &'static str| Err(fail(Status::Invalid, &about));
        if len == 0 {
            return invalid("the length is 0");
        }
        if prot & libc::PROT_READ == 0 || prot & !(libc::PROT_READ | libc::PROT_WRITE) != 0 {
            return invalid("the protection is not PROT_READ, with or without PROT_WRITE");
        }
        if flags & libc::MAP_PRIVATE == 0 || flags & !(libc::MAP_PRIVATE | libc::MAP_FIXED) != 0 {
            return invalid("the flags are not UMAP_PRIVATE, with or without UMAP_FIXED");
        }
        let is_fixed = flags & libc::MAP_FIXED != 0;
        if is_fixed && (addr.is_null() || !addr.addr().is_multiple_of(PAGE as usize)) {
            return invalid("UMAP_FIXED, and the address is not one of a page");
        }
        if addr.addr().checked_add(len).is_none() {
            return Err(fail(Status::Overflow, &"the range ends too high"));
        }
        let is_writable = prot & libc::PROT_WRITE != 0;
        Ok(Self { addr: addr.addr(), len, is_writable, is_fixed })
    }

    /// Maps a source of this length.
    fn map<S: SignalSafe + 'static>(&self, source: Arc<S>) -> Result<*mut c_void, Status> {
        let settings = settings()?;
        Regions::with(|regions| {
            let shared = regions.shared(settings).map_err(failed)?;
            let mut options = Options::new().granule(settings.granule()).bound(&shared.bound);
            if self.is_fixed {
                if regions.overlapping(&(self.addr..self.addr + self.len)).next().is_some() {
                    let about = "a region of umap is there: uunmap it first";
                    return Err(fail(Status::Overlap, &about));
                }
                // SAFETY: the caller wants what is there replaced, as by mmap with MAP_FIXED.
                options = options.at(unsafe { At::replacing(self.addr) });
            }
            if self.is_writable {
                options = options.writable();
            }
            let region = match &shared.handlers {
                Some(handlers) => options.handlers(handlers).map(source),
                None => options.map(source),
            };
            let region = region.map_err(failed)?;
            let start = region.as_ptr();
            let addresses = start.addr()..start.addr() + region.len();
            let live = RwLock::new(Some(Live { pins: Mutex::default(), region }));
            let mapped = Mapped { addresses, is_writable: self.is_writable, live };
            regions.by_address.insert(start.addr(), Arc::new(mapped));
            Ok(start.cast())
        })
    }
}

/// UMap's settings.
///
/// @return PERVMA_OK; PERVMA_EINVALID when a variable cannot be used: pervma_last_error says which;
///         PERVMA_EIN_HANDLER
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_umap_settings_get(out: *mut UmapSettings) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        unsafe { Out::new(out) }?.set(*settings()?);
        Ok(())
    })
}

/// The caller's errno for a code; -1, or 0 of PERVMA_OK.
fn to_errno(status: Status) -> c_int {
    let errno = match status {
        Status::Ok => return 0,
        Status::Overlap => libc::EEXIST,
        Status::NoMemory | Status::Bound | Status::System => libc::ENOMEM,
        Status::Source | Status::Unavailable => libc::EIO,
        Status::Protected => libc::EACCES,
        Status::Busy | Status::BusyOwn | Status::InHandler => libc::EAGAIN,
        _ => libc::EINVAL,
    };
    // SAFETY: asks the C library for its place, of this thread.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: this thread may write there.
    unsafe { *place = errno };
    -1
}

/// The address that `map` has mapped, or MAP_FAILED with errno.
fn to_address(map: impl FnOnce() -> Result<*mut c_void, Status>) -> *mut c_void {
    let mut address = libc::MAP_FAILED;
    to_errno(waiting_call(|| {
        address = map()?;
        Ok(())
    }));
    address
}

/// Maps a part of a file: umap.
///
/// @param addr    where, with MAP_FIXED: what is mapped there is replaced, but for regions of umap.
///                Else it is not looked at, and the region begins at a multiple of UMap's page,
///                if that is a power of two
/// @param length  in bytes
/// @param prot    PROT_READ, with or without PROT_WRITE
/// @param flags   MAP_PRIVATE, with or without MAP_FIXED
/// @param fd      open for reading, and for writing if PROT_WRITE is set; duplicated. With
///                O_DIRECT, pages are read and written past the page cache
/// @param offset  where the part begins in the file, which has all of it
/// @return its first byte; MAP_FAILED with errno, and the reason in pervma_last_error
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_umap(
    addr: *mut c_void,
    length: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    to_address(|| {
        let request = Request::new(addr, length, prot, flags)?;
        let start = u64::try_from(offset).ok().filter(|_| fd >= 0);
        let start = start.ok_or_else(|| fail(Status::Invalid, &"the descriptor, or the offset"))?;
        // SAFETY: the caller's descriptor, which is open during the call; -1 it is not.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let file = fd.try_clone_to_owned().map_err(|error| fail(Status::Invalid, &error))?;
        let end = start.checked_add(length as u64);
        let end = end.ok_or_else(|| fail(Status::Overflow, &"the part of the file"))?;
        let source = FileSource::new(file.into()).and_then(|file| file.part(start..end));
        request.map(Arc::new(source.map_err(failed)?))
    })
}

/// Maps what functions of the caller's read and write: umap_ex with a store. Offsets are from the
/// start of the region.
///
/// @param source  copied; its `size` is not looked at, and its `destroy` not called if this fails
/// @return as pervma_umap
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_umap_source(
    addr: *mut c_void,
    length: size_t,
    prot: c_int,
    flags: c_int,
    source: *const SourceCallbacks,
) -> *mut c_void {
    to_address(|| {
        let request = Request::new(addr, length, prot, flags)?;
        // SAFETY: the caller's pointer.
        let source = SourceCallbacks { size: length as u64, ..*unsafe { given(source) }? };
        Callbacks::lend(source, |source| request.map(source))
    })
}

/// Writes what was written in a region to its source, and unmaps it: uunmap. No other thread uses
/// it.
///
/// @param addr    its first byte
/// @param length  not looked at, as by UMap: the region goes as a whole
/// @return 0; -1 with errno, EINVAL when no region begins there, EIO when it could not be written:
///         then it stays
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_uunmap(addr: *mut c_void, length: size_t) -> c_int {
    to_errno(waiting_call(|| {
        let _ = length;
        let mapped = Regions::with(|regions| regions.by_address.get(&addr.addr()).map(Arc::clone));
        mapped.ok_or_else(|| fail(Status::NotMapped, &"no region of umap begins there"))?.unmap()
    }))
}

/// Writes what was written in all regions to their sources: umap_flush.
///
/// @return 0; -1 with errno when some of it could not be written
#[unsafe(no_mangle)]
pub extern "C" fn pervma_umap_flush() -> c_int {
    to_errno(waiting_call(|| {
        let regions: Vec<_> =
            Regions::with(|regions| regions.by_address.values().map(Arc::clone).collect());
        // All of them, whatever becomes of one; what is unmapped meanwhile is written by that.
        let written = regions.iter().map(|mapped| {
            let live = mapped.live.read().unwrap_or_else(PoisonError::into_inner);
            live.as_ref().map_or(Ok(()), |live| mapped.write_back(live))
        });
        written.collect::<Vec<_>>().into_iter().collect()
    }))
}

/// Fills pages before they are touched, as far as the buffer has room for them: umap_prefetch.
///
/// @param count  how many there are
/// @param pages  an address in each
/// @return 0; -1 with errno: EINVAL when one is in no region, EIO when it cannot be had
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_umap_prefetch(count: size_t, pages: *const *mut c_void) -> c_int {
    to_errno(waiting_call(|| {
        let page_size = settings()?.page_size as usize;
        for number in 0..count {
            // SAFETY: the caller's array, of so many.
            let addr = unsafe { given(pages.wrapping_add(number)) }?.addr();
            let mapped = at(addr)?;
            let page = mapped.pages(&(addr..addr + 1), page_size);
            mapped.with(|live| live.region.prefetch(page).map_err(failed))?;
        }
        Ok(())
    }))
}

/// Fills pages, and keeps them present until the region is unmapped: umap_fetch_and_pin.
///
/// @param addr  all in one region
/// @param size  in bytes
/// @return 0; -1 with errno: ENOMEM when it is more than the buffer lets stay (three quarters)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_umap_fetch_and_pin(addr: *mut c_void, size: u64) -> c_int {
    to_errno(waiting_call(|| {
        let page_size = settings()?.page_size as usize;
        let mapped = at(addr.addr())?;
        let end = usize::try_from(size).ok().and_then(|size| addr.addr().checked_add(size));
        let inside = end.filter(|end| (addr.addr() + 1..=mapped.addresses.end).contains(end));
        let end = inside.ok_or_else(|| fail(Status::Invalid, &"it ends beyond the region"))?;
        let pages = mapped.pages(&(addr.addr()..end), page_size);
        mapped.with(|live| {
            // SAFETY: the region lives in `live` as long as its pins, which are dropped first, and
            // is neither moved nor changed as a whole: `live` is behind an `Arc`, and only ended.
            let region = unsafe { std::mem::transmute::<&Region, &'static Region>(&live.region) };
            let pin = region.pin(pages).map_err(failed)?;
            live.pins.lock().unwrap_or_else(PoisonError::into_inner).push(pin);
            Ok(())
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<UmapSettings, String> {
        let named = |name: &str| variables.iter().find(|(known, _)| *known == name);
        UmapSettings::of(|name| named(name).map(|(_, value)| (*value).to_owned()), 1 << 30)
    }

    #[test]
    fn settings_are_umaps() {
        let default = of(&[]).unwrap();
        assert_eq!((default.page_size, default.granule()), (4096, 4096));
        assert_eq!(default.buffer_pages, (1 << 30) / 10 * 9 / 4096);
        assert_eq!((default.low_water, default.high_water, default.is_in_signal), (70, 90, 0));
        let odd = of(&[("UMAP_PAGESIZE", "24576"), ("UMAP_BUFSIZE", "4")]).unwrap();
        assert_eq!((odd.page_size, odd.granule()), (24576, 8192), "3 parts");
        assert_eq!(odd.bound().unwrap().bytes(), 4 * 24576);
        assert_eq!(of(&[("PERVMA_UMAP_MODE", "signal")]).unwrap().is_in_signal, 1);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (name, value) in [
            ("UMAP_PAGESIZE", "5000"),
            ("UMAP_PAGESIZE", "0"),
            ("UMAP_PAGESIZE", "many"),
            ("UMAP_BUFSIZE", "3"),
            ("UMAP_BUFSIZE", "18446744073709551615"),
            ("UMAP_EVICT_HIGH_WATER_THRESHOLD", "101"),
            ("UMAP_EVICT_HIGH_WATER_THRESHOLD", "60"),
            ("PERVMA_UMAP_MODE", "both"),
        ] {
            let about = of(&[(name, value)]).unwrap_err();
            assert!(about.starts_with(&name[..10]) && about.len() > 20, "{about}");
        }
    }

    #[test]
    fn nothing_of_a_region_is_left_for_who_still_knows_of_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        // Where the kernel maps nothing by itself: not the stack of another test's thread either.
        let (prot, place) = (libc::PROT_READ, std::ptr::without_provenance_mut(0x2A00_0000_0000));
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        // SAFETY: a descriptor that is open, and a place of this test's own.
        let start = unsafe { pervma_umap(place, 8192, prot, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // As a flush of all regions does.
        let known = at(start.addr()).unwrap_or_else(|status| panic!("{status:?}"));
        // SAFETY: nobody uses the region.
        assert_eq!(unsafe { pervma_uunmap(start, 8192) }, 0);
        assert!(known.with(|_| Ok(())).is_err());
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: replaces nothing.
        let there = unsafe { libc::mmap(start, 8192, prot, flags, -1, 0) };
        assert_eq!(there, start, "the addresses are free");
        drop(known);
        // SAFETY: asks of two pages that this test has mapped, and writes a byte for each.
        let is_there = unsafe { libc::mincore(there, 8192, [0; 2].as_mut_ptr()) } == 0;
        assert!(is_there, "and stay what they are used for next");
        // SAFETY: nobody uses them any more.
        assert_eq!(unsafe { libc::munmap(there, 8192) }, 0);
    }

    #[test]
    fn a_small_buffer_has_watermarks() {
        for pages in ["4", "5", "7", "100"] {
            for page_size in ["4096", "65536", "12288"] {
                let low = [("UMAP_PAGESIZE", page_size), ("UMAP_BUFSIZE", pages)];
                assert!(of(&low).unwrap().bound().is_ok(), "{low:?}");
                let all = ("UMAP_EVICT_HIGH_WATER_THRESHOLD", "100");
                let none = ("UMAP_EVICT_LOW_WATER_THRESHOLD", "0");
                assert!(of(&[low[0], low[1], all, none]).unwrap().bound().is_ok(), "{low:?}");
            }
        }
    }
}
