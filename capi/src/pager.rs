//! Regions: memory whose pages are filled when they are touched.
#![expect(unsafe_code, reason = "exports functions, and calls the caller's source")]
#![expect(clippy::disallowed_types, reason = "how many pins a region has")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use libc::size_t;
use pervma_pager::sys::Access;
use pervma_pager::{
    AccessError, Bound, Failure, FileSource, InSignal, OnFailure, Options, Pin, ReadFailed, Region,
    Response, Serves, SignalSafe, Source, WriteBackFailure,
};

use crate::boundary::{Out, call, callback, given, waiting_call};
use crate::handles::{Kind, Object, get, make, take};
use crate::status::{Status, fail, failed};
use crate::thread;

/// Memory that is filled from a source when it is touched. Any thread may use it.
#[derive(Debug)]
pub struct RegionHandle(());

/// A bound of how many bytes may be present, which regions share.
#[derive(Debug)]
pub struct BoundHandle(());

/// Pages of a region that are present and stay so.
#[derive(Debug)]
pub struct PinHandle(());

/// An access whose page cannot be had.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FailureInfo {
    /// The address that was accessed.
    pub addr: usize,
    /// Its offset in the region.
    pub offset: size_t,
    /// The interrupted thread's ucontext_t, which may be changed to have it go on elsewhere.
    pub ucontext: *mut c_void,
}

/// Is called when a page cannot be had, on the thread that made the access, IN A SIGNAL HANDLER in
/// which all signals are blocked: async-signal-safe, and no access to a region. It may leave by
/// siglongjmp, if no frame between has a destructor to run. Non-zero: the thread goes on, as its
/// ucontext_t says. 0: the signal goes to the handler that was there before.
pub type OnRegionFailure =
    Option<unsafe extern "C-unwind" fn(context: *mut c_void, failure: *const FailureInfo) -> c_int>;

/// Is told when pages from offset `start` to `end` had to go to keep a bound, and could not be
/// written to the source. They stay. Called on a thread of the region, with nothing locked. It must
/// not destroy the region.
pub type OnWriteBackFailure = Option<
    unsafe extern "C-unwind" fn(
        context: *mut c_void,
        start: size_t,
        end: size_t,
        reason: *const c_char,
    ),
>;

/// How a region is mapped. Zero it, then set what is wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RegionOptions {
    /// A fault fills the aligned part of so many bytes that it is in. A power of two. 0: a page.
    pub granule: size_t,
    /// Addresses are reserved for so many bytes, so that the region can grow in its place.
    pub capacity: size_t,
    /// At most so many bytes are present at a time, at least four granules. 0: no bound.
    pub resident: size_t,
    /// In place of `resident`: a bound that regions share. NULL: none.
    pub bound: *mut BoundHandle,
    /// 0: signal mode: the thread that faults serves the fault, in a handler of SIGBUS; a system
    /// call that touches a missing page fails with EFAULT; the functions of a source must be
    /// async-signal-safe. Else thread mode: so many threads of the region serve faults, from Linux
    /// 6.6 on.
    pub handler_threads: size_t,
    /// Non-zero: it can be written, and knows what was.
    pub writable: c_int,
    /// Non-zero: pages of 2 MiB, of hugetlbfs.
    pub huge_pages: c_int,
    /// NULL: see `exit_message`.
    pub on_failure: OnRegionFailure,
    /// The first argument of `on_failure`.
    pub failure_context: *mut c_void,
    /// Without `on_failure`: the process writes this to standard error and exits with `exit_code`
    /// when a page cannot be had. Copied, and the copy kept. NULL: the signal goes to the handler
    /// that was there before.
    pub exit_message: *const c_char,
    /// See `exit_message`.
    pub exit_code: c_int,
    /// NULL: nobody is told; pervma_region_write_back_failure keeps the last.
    pub on_write_back_failure: OnWriteBackFailure,
    /// The first argument of `on_write_back_failure`.
    pub write_back_context: *mut c_void,
    /// Zero.
    pub reserved: [usize; 4],
}

/// Where the bytes of a region come from. Its functions are called by several threads at once, must
/// not touch the region (calls on it are PERVMA_EBUSY_OWN), and must return. In signal mode `read`
/// is async-signal-safe, and uses little stack (3 KiB).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SourceCallbacks {
    /// In bytes.
    pub size: u64,
    /// Fills `buffer`, which is all zeros, with `len` bytes from `offset` on. 0 when it has, else
    /// they cannot be had. Not NULL.
    pub read: Option<
        unsafe extern "C-unwind" fn(
            context: *mut c_void,
            offset: u64,
            buffer: *mut c_void,
            len: size_t,
        ) -> c_int,
    >,
    /// Takes `len` bytes that belong at `offset`. 0 when it has. Never called in a signal handler.
    /// NULL: the source cannot be written.
    pub write: Option<
        unsafe extern "C-unwind" fn(
            context: *mut c_void,
            offset: u64,
            bytes: *const c_void,
            len: size_t,
        ) -> c_int,
    >,
    /// Makes durable what was written. 0 when it has. NULL: `write` does.
    pub sync: Option<unsafe extern "C-unwind" fn(context: *mut c_void) -> c_int>,
    /// Called when the region is gone, and nothing else is called any more. May be NULL.
    pub destroy: Option<unsafe extern "C-unwind" fn(context: *mut c_void)>,
    /// The first argument of all.
    pub context: *mut c_void,
}

/// What accesses a page lets through.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// None.
    None = 0,
    /// Reads.
    Read = 1,
    /// Reads and writes.
    ReadWrite = 2,
    /// Reads and instruction fetches.
    ReadExecute = 3,
}

/// What has been counted of a region.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RegionCounts {
    /// Faults that were served.
    pub faults: u64,
    /// Pages that were filled.
    pub pages: u64,
    /// Pages that were given back.
    pub given_back: u64,
    /// Pages that were written to the source.
    pub written_back: u64,
    /// Faults that ended in a failure.
    pub failures: u64,
    /// Attempts to write pages back that failed, to keep a bound.
    pub write_back_failures: u64,
    /// Bytes that are present now.
    pub resident: u64,
}

/// What is behind a [`RegionHandle`].
pub(crate) struct RegionData {
    region: RwLock<Region>,
    /// Which it is; see [`inside`].
    number: usize,
    pins: AtomicUsize,
    /// Dropped after the region.
    _hook: Option<Arc<Hook>>,
}

struct BoundData(Bound);

/// What is behind a [`PinHandle`].
struct PinData {
    /// Borrows the region.
    pin: Pin<'static>,
    region: &'static RegionData,
}

impl Object for RegionData {
    const KIND: Kind = Kind::Region;
    type Handle = RegionHandle;
}

impl Object for BoundData {
    const KIND: Kind = Kind::Bound;
    type Handle = BoundHandle;
}

impl Object for PinData {
    const KIND: Kind = Kind::Pin;
    type Handle = PinHandle;
}

impl RegionData {
    fn region(&self) -> RwLockReadGuard<'_, Region> {
        self.region.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what would wait for the function of this region that calls it.
    fn check_outside(&self) -> Result<(), Status> {
        if thread::with(|thread| thread.region.get()) == self.number {
            return Err(fail(Status::BusyOwn, &"called in a function of the region's"));
        }
        Ok(())
    }
}

/// A number for a region.
fn number() -> usize {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    // RELAXED: a number that no other gets.
    LAST.fetch_add(1, Relaxed) + 1
}

/// Runs `call`, which calls a function that the caller has given to a region.
fn inside<R>(region: usize, call: impl FnOnce() -> R) -> R {
    let outer = thread::with(|thread| thread.region.replace(region));
    let returned = callback(call);
    thread::with(|thread| thread.region.set(outer));
    returned
}

/// A source of the caller's functions, and the number of its region.
pub(crate) struct Callbacks(SourceCallbacks, usize);

// SAFETY: the header says that the functions are called by several threads at once.
unsafe impl Send for Callbacks {}
// SAFETY: as for `Send`.
unsafe impl Sync for Callbacks {}
// SAFETY: the header says that `read` is async-signal-safe where it is called in a handler. The
// others of a source are: `zeros` and `bytes` are constants.
unsafe impl SignalSafe for Callbacks {}

impl Callbacks {
    /// Has `map` map a source of the caller's, which stays the caller's if that fails.
    pub(crate) fn lend<R>(
        source: SourceCallbacks,
        map: impl FnOnce(Arc<Self>) -> Result<R, Status>,
    ) -> Result<R, Status> {
        if source.read.is_none() {
            return Err(fail(Status::Invalid, &"the source has no read"));
        }
        let mut source = Arc::new(Self(source, number()));
        let mapped = map(Arc::clone(&source));
        if mapped.is_err()
            && let Some(source) = Arc::get_mut(&mut source)
        {
            source.0.destroy = None;
        }
        mapped
    }
}

impl Source for Callbacks {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let SourceCallbacks { read, context, .. } = self.0;
        let read = read.ok_or(ReadFailed)?;
        let (buffer, len) = (buf.as_mut_ptr().cast(), buf.len());
        // SAFETY: a function of the caller's, called as its type says.
        let failed = inside(self.1, || unsafe { read(context, offset, buffer, len) });
        if failed == 0 { Ok(()) } else { Err(ReadFailed) }
    }

    fn is_writable(&self) -> bool {
        self.0.write.is_some()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let SourceCallbacks { write, context, .. } = self.0;
        let write = write.ok_or(io::ErrorKind::Unsupported)?;
        let (buffer, len) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: a function of the caller's, called as its type says.
        done("write", inside(self.1, || unsafe { write(context, offset, buffer, len) }))
    }

    fn sync(&self) -> io::Result<()> {
        let Some(sync) = self.0.sync else { return Ok(()) };
        // SAFETY: a function of the caller's, called as its type says.
        done("sync", inside(self.1, || unsafe { sync(self.0.context) }))
    }
}

fn done(function: &str, failed: c_int) -> io::Result<()> {
    if failed == 0 {
        return Ok(());
    }
    Err(io::Error::other(format!("the source's {function} returned {failed}")))
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        if let Some(destroy) = self.0.destroy {
            // SAFETY: a function of the caller's, called as its type says.
            callback(|| unsafe { destroy(self.0.context) });
        }
    }
}

/// Memory of the caller's.
struct CallersMemory(NonNull<[u8]>);

// SAFETY: the header says that it is not written as long as the region lives.
unsafe impl Send for CallersMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for CallersMemory {}
// SAFETY: it is only read, which locks and allocates nothing.
unsafe impl SignalSafe for CallersMemory {}

impl CallersMemory {
    fn get(&self) -> &[u8] {
        // SAFETY: the header says that it can be read, and stays, as long as the region lives.
        unsafe { self.0.as_ref() }
    }
}

impl Source for CallersMemory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let bytes = self.get().get(offset as usize..).and_then(|bytes| bytes.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(ReadFailed)?);
        Ok(())
    }

    fn bytes(&self) -> Option<&[u8]> {
        Some(self.get())
    }
}

/// The caller's function for failures. Lives as long as its region, whose handlers use it.
struct Hook {
    on_failure: unsafe extern "C-unwind" fn(*mut c_void, *const FailureInfo) -> c_int,
    context: *mut c_void,
}

// SAFETY: the header says that the function is called in any thread that touches the region.
unsafe impl Send for Hook {}
// SAFETY: as for `Send`; nothing of it changes.
unsafe impl Sync for Hook {}

/// Calls the caller's function, in a signal handler. It leaves nothing behind if that jumps.
unsafe fn on_failure(failure: &Failure) -> Response {
    let hook = std::ptr::with_exposed_provenance::<Hook>(failure.tag());
    // SAFETY: the tag is the address of the region's hook, which lives as long.
    let Hook { on_failure, context } = unsafe { &*hook };
    let info =
        FailureInfo { addr: failure.addr(), offset: failure.offset(), ucontext: failure.context() };
    // SAFETY: a function of the caller's, called as its type says.
    let resumes = unsafe { on_failure(*context, &raw const info) };
    if resumes == 0 { Response::PassOn } else { Response::Resume }
}

/// A context that is only handed to its function.
struct Context(*mut c_void);

// SAFETY: the header says that the function is called on threads of the region.
unsafe impl Send for Context {}
// SAFETY: as for `Send`.
unsafe impl Sync for Context {}

impl RegionOptions {
    const DEFAULT: Self = Self {
        granule: 0,
        capacity: 0,
        resident: 0,
        bound: std::ptr::null_mut(),
        handler_threads: 0,
        writable: 0,
        huge_pages: 0,
        on_failure: None,
        failure_context: std::ptr::null_mut(),
        exit_message: std::ptr::null(),
        exit_code: 0,
        on_write_back_failure: None,
        write_back_context: std::ptr::null_mut(),
        reserved: [0; 4],
    };

    fn on_failure(&self, hook: Option<&Hook>) -> Result<OnFailure, Status> {
        if let Some(hook) = hook {
            let tag = std::ptr::from_ref(hook).expose_provenance();
            // SAFETY: the header says that the function is async-signal-safe, and how it may leave.
            return Ok(unsafe { OnFailure::call(on_failure, tag) });
        }
        if self.exit_message.is_null() {
            return Ok(OnFailure::pass_on());
        }
        // SAFETY: the caller's string.
        let message = unsafe { CStr::from_ptr(self.exit_message) }.to_str();
        let message = message.map_err(|_| fail(Status::Invalid, &"the message is not UTF-8"))?;
        Ok(OnFailure::exit(self.exit_code, Box::leak(Box::from(message))))
    }

    /// Maps a source, as the region of this number.
    fn map<S>(&self, source: S, number: usize) -> Result<RegionData, Status>
    where
        S: Source + 'static,
        InSignal: Serves<S>,
    {
        if self.reserved != [0; 4] {
            return Err(fail(Status::Invalid, &"what is reserved is not zero"));
        }
        let hook = |on_failure| Arc::new(Hook { on_failure, context: self.failure_context });
        let hook = self.on_failure.map(hook);
        let on_failure = self.on_failure(hook.as_deref())?;
        let mut options = Options::new().on_failure(on_failure).capacity(self.capacity);
        if self.granule != 0 {
            options = options.granule(self.granule);
        }
        if self.resident != 0 {
            options = options.resident(self.resident);
        }
        if self.writable != 0 {
            options = options.writable();
        }
        if self.huge_pages != 0 {
            options = options.huge_pages();
        }
        if !self.bound.is_null() {
            // SAFETY: the caller's handle.
            options = options.bound(&unsafe { get::<BoundData>(self.bound) }?.0);
        }
        if let Some(function) = self.on_write_back_failure {
            let context = Context(self.write_back_context);
            options = options.on_write_back_failure(move |failure: &WriteBackFailure| {
                let Context(context) = &context;
                let mut reason = failure.error().to_string().into_bytes();
                reason.push(0);
                let Range { start, end } = failure.range();
                let text = reason.as_ptr().cast();
                // SAFETY: a function of the caller's, called as its type says.
                inside(number, || unsafe { function(*context, start, end, text) });
            });
        }
        let region = match self.handler_threads {
            0 => options.map(source),
            threads => options.handler_threads(threads).map(source),
        };
        let region = RwLock::new(region.map_err(failed)?);
        Ok(RegionData { region, number, pins: AtomicUsize::new(0), _hook: hook })
    }
}

/// # Safety
///
/// Unless it is null or unaligned, `options` may be read.
unsafe fn options<'a>(options: *const RegionOptions) -> Result<&'a RegionOptions, Status> {
    if options.is_null() {
        return Ok(&RegionOptions::DEFAULT);
    }
    // SAFETY: as the caller says.
    unsafe { given(options) }
}

/// Refuses what is no memory: it would be longer than any, or go on at address 0.
fn check_bytes(start: *const u8, len: usize) -> Result<(), Status> {
    if isize::try_from(len).is_ok() && start.addr().checked_add(len).is_some() {
        return Ok(());
    }
    Err(fail(Status::Overflow, &"there is no memory of such a length"))
}

/// Maps a file. The first region of a process installs a handler of SIGBUS.
///
/// @param fd       open for reading, and for writing if the region is written; duplicated
/// @param offset   the first byte of the file that belongs to the region
/// @param len      so many bytes of it. 0: all up to its end
/// @param options  copied; NULL: the defaults
/// @param out      receives the region; destroyed by pervma_region_destroy
/// @return PERVMA_OK; PERVMA_EINVALID when options do not go together, or the file is none that can
///         be mapped; PERVMA_ESYSTEM, _ESOURCE, _ENO_MEMORY, _EHANDLE of the bound, _EIN_HANDLER.
///         pervma_last_error says what to look at
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_map_file(
    fd: c_int,
    offset: u64,
    len: u64,
    options: *const RegionOptions,
    out: *mut *mut RegionHandle,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointers.
        let (options, out) = (unsafe { self::options(options) }?, unsafe { Out::new(out) }?);
        if fd < 0 {
            return Err(fail(Status::Invalid, &"the file descriptor is negative"));
        }
        // SAFETY: the caller's descriptor, which is open during the call; -1 it is not.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let file = fd.try_clone_to_owned().map_err(|error| fail(Status::Invalid, &error))?;
        let mut source = FileSource::new(file.into()).map_err(failed)?;
        if offset != 0 || len != 0 {
            let all = source.size();
            let end = if len == 0 { Some(all) } else { offset.checked_add(len) };
            let end = end.ok_or_else(|| fail(Status::Overflow, &"the part of the file is none"))?;
            source = source.part(offset..end).map_err(failed)?;
        }
        out.set(make(options.map(source, number())?));
        Ok(())
    })
}

/// Maps memory of the caller's, which must stay, and stay as it is, until the region is destroyed.
///
/// @param memory  its first byte
/// @param len     in bytes
/// @return as pervma_region_map_file; PERVMA_EOVERFLOW
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_map_memory(
    memory: *const c_void,
    len: size_t,
    options: *const RegionOptions,
    out: *mut *mut RegionHandle,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointers.
        let (options, out) = (unsafe { self::options(options) }?, unsafe { Out::new(out) }?);
        let memory = NonNull::new(memory.cast_mut().cast::<u8>());
        let memory = memory.ok_or_else(|| fail(Status::Invalid, &"the memory is NULL"))?;
        check_bytes(memory.as_ptr(), len)?;
        let memory = NonNull::slice_from_raw_parts(memory, len);
        out.set(make(options.map(CallersMemory(memory), number())?));
        Ok(())
    })
}

/// Maps what functions of the caller's read.
///
/// @param source  copied; its `destroy` is not called if this fails
/// @return as pervma_region_map_file
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_map_source(
    source: *const SourceCallbacks,
    options: *const RegionOptions,
    out: *mut *mut RegionHandle,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointers.
        let (options, out) = (unsafe { self::options(options) }?, unsafe { Out::new(out) }?);
        // SAFETY: the caller's pointer.
        let source = *unsafe { given(source) }?;
        let map = |source: Arc<Callbacks>| {
            let number = source.1;
            options.map(source, number)
        };
        out.set(make(Callbacks::lend(source, map)?));
        Ok(())
    })
}

/// Destroys a region: unmaps its memory, after reads of the source that are under way. What was
/// written and not written back is lost. No other call on it may be under way.
///
/// @return PERVMA_OK; PERVMA_EIN_USE when it has pins, or a call on it is under way after all;
///         PERVMA_EBUSY_OWN in a function of its source, or its `on_write_back_failure`;
///         PERVMA_EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_destroy(region: *mut RegionHandle) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle, which no other call uses.
        let data = unsafe { get::<RegionData>(region) }?;
        data.check_outside()?;
        // RELAXED: a number that no other thread changes now.
        if data.pins.load(Relaxed) != 0 {
            return Err(fail(Status::InUse, &"the region has pins"));
        }
        if matches!(data.region.try_write(), Err(TryLockError::WouldBlock)) {
            return Err(fail(Status::InUse, &"a call on the region is under way"));
        }
        // SAFETY: as above.
        unsafe { take::<RegionData>(region) }.map(drop)
    })
}

/// The region's first byte; NULL for a handle that is not a live one. The addresses are the
/// region's until it is moved (pervma_region_relocate, or _resize beyond its capacity) or
/// destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_memory(region: *const RegionHandle) -> *mut c_void {
    // SAFETY: the caller's handle.
    let data = unsafe { get::<RegionData>(region) };
    data.map_or(std::ptr::null_mut(), |data| data.region().as_ptr().cast())
}

/// Its length in bytes; 0 for a handle that is not a live one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_len(region: *const RegionHandle) -> size_t {
    // SAFETY: the caller's handle.
    unsafe { get::<RegionData>(region) }.map_or(0, |data| data.region().len())
}

/// The size of its pages in bytes, of which ranges are multiples; 0 for a handle that is not a live
/// one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_page_size(region: *const RegionHandle) -> size_t {
    // SAFETY: the caller's handle.
    unsafe { get::<RegionData>(region) }.map_or(0, |data| data.region().page_size())
}

/// Non-zero if system calls that touch missing pages are served too: in thread mode, if the kernel
/// grants it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_serves_system_calls(region: *const RegionHandle) -> c_int {
    // SAFETY: the caller's handle.
    let data = unsafe { get::<RegionData>(region) };
    data.map_or(0, |data| data.region().serves_system_calls().into())
}

fn accessed(result: Result<(), AccessError>, done: Option<&Out<usize>>, len: usize) -> Status {
    let (status, came) = match result {
        Ok(()) => (Status::Ok, len),
        Err(error) => (failed(pervma_pager::Error::from(error)), error.done()),
    };
    if let Some(done) = done {
        done.set(came);
    }
    status
}

/// Copies bytes out of a region: an error in place of a signal where a page cannot be had.
///
/// @param offset  from the start of the region
/// @param done    receives how many bytes came; may be NULL
/// @return PERVMA_OK; PERVMA_ENOT_MAPPED, _EPROTECTED, _EUNAVAILABLE, _EBOUND, _EBUSY_OWN in a
///         function of its source; PERVMA_EOVERFLOW when the buffer would be longer than any
///         memory; PERVMA_EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_read(
    region: *const RegionHandle,
    offset: size_t,
    buffer: *mut c_void,
    len: size_t,
    done: *mut size_t,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointers.
        let (buffer, done) = (unsafe { Out::new(buffer) }?, unsafe { Out::optional(done) }?);
        // SAFETY: the caller's handle.
        let data = unsafe { get::<RegionData>(region) }?;
        check_bytes(buffer.as_ptr().cast(), len)?;
        // SAFETY: the caller's buffer, of so many bytes.
        let bytes = unsafe { slice::from_raw_parts_mut(buffer.as_ptr().cast::<u8>(), len) };
        accessed(data.region().read_checked(offset, bytes), done.as_ref(), len).as_result()
    })
}

/// Copies bytes into a region that is writable, otherwise as pervma_region_read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_write(
    region: *mut RegionHandle,
    offset: size_t,
    bytes: *const c_void,
    len: size_t,
    done: *mut size_t,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointers.
        let (bytes, done) = (unsafe { given(bytes) }?, unsafe { Out::optional(done) }?);
        // SAFETY: the caller's handle.
        let data = unsafe { get::<RegionData>(region) }?;
        let bytes = (&raw const *bytes).cast::<u8>();
        check_bytes(bytes, len)?;
        // SAFETY: the caller's bytes, so many.
        let bytes = unsafe { slice::from_raw_parts(bytes, len) };
        accessed(data.region().write_checked(offset, bytes), done.as_ref(), len).as_result()
    })
}

/// Runs an operation on a range of a region.
///
/// # Safety
///
/// As for [`get`].
unsafe fn on_range<R>(
    region: *const RegionHandle,
    range: Range<usize>,
    operation: impl FnOnce(&Region, Range<usize>) -> Result<R, pervma_pager::Error>,
) -> Result<R, Status> {
    // SAFETY: as the caller says.
    let data = unsafe { get::<RegionData>(region) }?;
    data.check_outside()?;
    operation(&data.region(), range).map_err(failed)
}

/// As [`on_range`], of an operation that says how far it has come, which goes to `out` unless that
/// is null.
///
/// # Safety
///
/// As for [`get`] and [`Out::optional`].
unsafe fn count_on_range(
    region: *const RegionHandle,
    range: Range<usize>,
    out: *mut size_t,
    operation: impl FnOnce(&Region, Range<usize>) -> Result<usize, pervma_pager::Error>,
) -> Result<(), Status> {
    // SAFETY: as the caller says.
    let out = unsafe { Out::optional(out) }?;
    // SAFETY: as the caller says.
    let count = unsafe { on_range(region, range, operation) }?;
    out.inspect(|out| out.set(count));
    Ok(())
}

/// Gives pages back: the next access to each is filled from the source again. What was written
/// there and not written back is lost. As MADV_DONTNEED.
///
/// @param start, end  offsets in the region, whole pages, but for the region's end
/// @return PERVMA_OK; PERVMA_EUNALIGNED when the range is not whole pages in the region;
///         PERVMA_ENOT_MAPPED, _EPINNED, _EBUSY, _EBUSY_OWN, _ENO_MEMORY, _ESYSTEM, _EIN_HANDLER,
///         _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_discard(
    region: *mut RegionHandle,
    start: size_t,
    end: size_t,
) -> Status {
    // SAFETY: the caller's handle.
    waiting_call(|| unsafe { on_range(region, start..end, Region::discard) })
}

/// Says what accesses pages let through. What they do not is SIGSEGV. As mprotect.
///
/// @param protection  a pervma_protection
/// @return as pervma_region_discard; PERVMA_EPROTECTED when the region is not writable
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_protect(
    region: *mut RegionHandle,
    start: size_t,
    end: size_t,
    protection: c_int,
) -> Status {
    waiting_call(|| {
        const KINDS: [(Protection, Access); 4] = [
            (Protection::None, Access::None),
            (Protection::Read, Access::Read),
            (Protection::ReadWrite, Access::ReadWrite),
            (Protection::ReadExecute, Access::ReadExecute),
        ];
        let kind = KINDS.iter().find(|(kind, _)| *kind as c_int == protection);
        let (_, access) = kind.ok_or_else(|| fail(Status::Invalid, &"no such protection"))?;
        // SAFETY: the caller's handle.
        unsafe { on_range(region, start..end, |region, range| region.protect(range, *access)) }
    })
}

/// Unmaps pages: accesses are SIGSEGV from now on. The addresses stay the region's.
///
/// @return as pervma_region_discard
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_unmap(
    region: *mut RegionHandle,
    start: size_t,
    end: size_t,
) -> Status {
    // SAFETY: the caller's handle.
    waiting_call(|| unsafe { on_range(region, start..end, Region::unmap) })
}

/// Maps pages again that were unmapped.
///
/// @return as pervma_region_discard; PERVMA_EOVERLAP when some of it is mapped
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_map(
    region: *mut RegionHandle,
    start: size_t,
    end: size_t,
) -> Status {
    // SAFETY: the caller's handle.
    waiting_call(|| unsafe { on_range(region, start..end, Region::map) })
}

/// Writes the pages of a range that were written to the source. Threads that write to such a page
/// meanwhile wait.
///
/// @param bytes  receives how many bytes that were; may be NULL
/// @return as pervma_region_discard; PERVMA_ESOURCE when the source fails, PERVMA_EPROTECTED
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_write_back(
    region: *mut RegionHandle,
    start: size_t,
    end: size_t,
    bytes: *mut size_t,
) -> Status {
    // SAFETY: the caller's handle and pointer.
    waiting_call(|| unsafe { count_on_range(region, start..end, bytes, Region::write_back) })
}

/// As pervma_region_write_back, and waits until all is durable that was written to the range. As
/// msync and fsync.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_sync(
    region: *mut RegionHandle,
    start: size_t,
    end: size_t,
    bytes: *mut size_t,
) -> Status {
    // SAFETY: the caller's handle and pointer.
    waiting_call(|| unsafe { count_on_range(region, start..end, bytes, Region::sync_range) })
}

/// Why pages that had to go to keep a bound could not be written to the source: the last failure,
/// as long as any of them is still to be written. Its text is pervma_last_error.
///
/// @param start, end  receive the pages, as offsets; may be NULL
/// @return PERVMA_OK when there is none; PERVMA_ESOURCE when there is; PERVMA_EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_write_back_failure(
    region: *const RegionHandle,
    start: *mut size_t,
    end: *mut size_t,
) -> Status {
    call(|| {
        // SAFETY: the caller's pointers.
        let (start, end) = (unsafe { Out::optional(start) }?, unsafe { Out::optional(end) }?);
        // SAFETY: the caller's handle.
        let data = unsafe { get::<RegionData>(region) }?;
        let Some(failure) = data.region().write_back_failure() else { return Ok(()) };
        start.inspect(|out| out.set(failure.range().start));
        end.inspect(|out| out.set(failure.range().end));
        Err(fail(Status::Source, &failure))
    })
}

/// Fills pages before they are touched.
///
/// @param reached  receives the offset up to which pages are present; may be NULL
/// @return PERVMA_OK, also when a bound has ended it early: see `reached`; as pervma_region_read
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_prefetch(
    region: *mut RegionHandle,
    start: size_t,
    end: size_t,
    reached: *mut size_t,
) -> Status {
    let fetch = |region: &Region, range| Ok(region.prefetch(range)?.end);
    // SAFETY: the caller's handle and pointer.
    waiting_call(|| unsafe { count_on_range(region, start..end, reached, fetch) })
}

/// Makes pages present, and keeps them so until pervma_unpin: for system calls and devices. Pins
/// count.
///
/// @param for_writes  non-zero: they may be written, and count as written from now on
/// @param out         receives the pin
/// @return as pervma_region_read; PERVMA_EUNALIGNED; PERVMA_EBOUND when it is more than a bound
///         lets stay
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_pin(
    region: *mut RegionHandle,
    start: size_t,
    end: size_t,
    for_writes: c_int,
    out: *mut *mut PinHandle,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<RegionData>(region) }?;
        data.check_outside()?;
        let region = data.region();
        // SAFETY: the region stays where it is, and is neither changed as a whole nor destroyed
        // before `pins` is 0 again.
        let kept: &'static Region =
            unsafe { std::mem::transmute::<&Region, &'static Region>(&region) };
        let pin =
            if for_writes == 0 { kept.pin(start..end) } else { kept.pin_for_writes(start..end) };
        let pin = pin.map_err(failed)?;
        // RELAXED: a number; who needs it to be 0 holds the lock for writing.
        data.pins.fetch_add(1, Relaxed);
        drop(region);
        out.set(make(PinData { pin, region: data }));
        Ok(())
    })
}

/// Ends a pin.
///
/// @return PERVMA_OK; PERVMA_EBUSY_OWN, _EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_unpin(pin: *mut PinHandle) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let PinData { pin, region } = unsafe { take::<PinData>(pin) }?;
        drop(pin);
        // RELAXED: as where it was counted.
        region.pins.fetch_sub(1, Relaxed);
        Ok(())
    })
}

/// Makes a region shorter or longer. Beyond its capacity it moves. Other calls on it wait.
///
/// @return PERVMA_OK; PERVMA_EPINNED when it has pins; PERVMA_EINVALID when the source is shorter,
///         or the length 0; PERVMA_ESOURCE, _ENO_MEMORY, _ESYSTEM, _EIN_HANDLER, _EHANDLE
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_resize(region: *mut RegionHandle, len: size_t) -> Status {
    // SAFETY: the caller's handle.
    waiting_call(|| unsafe { whole(region, |region| region.resize(len)) })
}

/// Moves a region to other addresses, with room for `capacity` bytes. Other calls on it wait.
/// Accesses to the old addresses are SIGSEGV.
///
/// @return as pervma_region_resize
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_relocate(
    region: *mut RegionHandle,
    capacity: size_t,
) -> Status {
    // SAFETY: the caller's handle.
    waiting_call(|| unsafe { whole(region, |region| region.relocate(capacity)) })
}

/// Runs an operation on a region as a whole.
///
/// # Safety
///
/// As for [`get`].
unsafe fn whole(
    region: *mut RegionHandle,
    operation: impl FnOnce(&mut Region) -> Result<(), pervma_pager::Error>,
) -> Result<(), Status> {
    // SAFETY: as the caller says.
    let data = unsafe { get::<RegionData>(region) }?;
    data.check_outside()?;
    let mut region = data.region.write().unwrap_or_else(PoisonError::into_inner);
    // RELAXED: pins are made under the lock.
    if data.pins.load(Relaxed) != 0 {
        return Err(fail(Status::Pinned, &"the region has pins"));
    }
    operation(&mut region).map_err(failed)
}

/// What has been counted of a region so far.
///
/// @return PERVMA_OK; PERVMA_EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_region_stats(
    region: *const RegionHandle,
    out: *mut RegionCounts,
) -> Status {
    call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let stats = unsafe { get::<RegionData>(region) }?.region().stats();
        out.set(RegionCounts {
            faults: stats.faults,
            pages: stats.pages,
            given_back: stats.given_back,
            written_back: stats.written_back,
            failures: stats.failures,
            write_back_failures: stats.write_back_failures,
            resident: stats.resident,
        });
        Ok(())
    })
}

/// Makes a bound for regions (pervma_region_options.bound).
///
/// @param bytes      how many may be present, of all regions that have it
/// @param low, high  watermarks: pages begin to go when more than `high` bytes are present, and go
///                   until `low` are. Both 0: usual ones
/// @param out        receives the bound
/// @return PERVMA_OK; PERVMA_EINVALID when that is too little, or the watermarks are none;
///         PERVMA_ESYSTEM, _EBUSY_OWN, _EIN_HANDLER
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_bound_create(
    bytes: size_t,
    low: size_t,
    high: size_t,
    out: *mut *mut BoundHandle,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        let bound = if (low, high) == (0, 0) {
            Bound::new(bytes)
        } else {
            Bound::with_watermarks(bytes, low, high)
        };
        out.set(make(BoundData(bound.map_err(failed)?)));
        Ok(())
    })
}

/// The bytes that are present now, of all regions that have a bound; 0 for a handle that is not a
/// live one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_bound_resident(bound: *const BoundHandle) -> size_t {
    // SAFETY: the caller's handle.
    unsafe { get::<BoundData>(bound) }.map_or(0, |bound| bound.0.resident())
}

/// Destroys a handle of a bound. Regions that have the bound keep it.
///
/// @return PERVMA_OK; PERVMA_EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_bound_destroy(bound: *mut BoundHandle) -> Status {
    // SAFETY: the caller's handle, which no other call uses.
    waiting_call(|| unsafe { take::<BoundData>(bound) }.map(drop))
}

/// Installs the handler of SIGBUS again, after another has taken its place. The first region
/// installs it by itself.
///
/// @return PERVMA_OK; PERVMA_ESYSTEM
#[unsafe(no_mangle)]
pub extern "C" fn pervma_install_sigbus() -> Status {
    call(|| pervma_pager::install_handler().map_err(failed))
}

/// Serves a SIGBUS, for a program with a handler of its own, which was installed with SA_SIGINFO
/// and all signals in its mask, and passes on its arguments. Non-zero if it was a region's: return
/// from the handler then. 0: the signal is the program's.
///
/// SAFE IN SIGNAL HANDLERS; made for them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_serve_sigbus(
    signal: c_int,
    info: *mut c_void,
    context: *mut c_void,
) -> c_int {
    // SAFETY: the caller's arguments are those of its handler.
    unsafe { pervma_pager::serve_sigbus(signal, info, context) }.into()
}
