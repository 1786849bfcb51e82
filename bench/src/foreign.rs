//! Maps in C++, compiled and loaded by this program: pervma's interface for C, and a `std::map`
//! under a lock.
#![expect(unsafe_code, reason = "loads functions, and calls them")]

use std::env;
use std::ffi::{CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::layout;

/// As the C++ has it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vma {
    start: usize,
    end: usize,
    payload: u64,
}

impl From<layout::Vma> for Vma {
    fn from(vma: layout::Vma) -> Self {
        Self { start: vma.range.start, end: vma.range.end, payload: vma.payload }
    }
}

/// As the C++ has it.
#[repr(C)]
struct Functions {
    make: unsafe extern "C" fn(vmas: *const Vma, count: usize) -> *mut c_void,
    drop: unsafe extern "C" fn(map: *mut c_void),
    read_all: unsafe extern "C" fn(map: *mut c_void, addresses: *const usize, count: usize) -> u64,
    insert_and_remove: unsafe extern "C" fn(map: *mut c_void, vmas: *const Vma, count: usize),
}

/// The implementations, in the order of the C++.
pub(crate) const NAMES: [&str; 4] = [
    "pervma in C, pervma_lookup",
    "pervma in C, pervma_read_begin and _end",
    "std::map under pthread_rwlock_t",
    "std::map under std::shared_mutex",
];

/// What was loaded; never unloaded.
#[derive(Clone, Copy)]
pub(crate) struct Loaded(&'static [Functions; NAMES.len()]);

impl Loaded {
    /// Compiles and loads them; or why that cannot be done.
    pub(crate) fn new() -> Result<Self, String> {
        let library = library()?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        // By the name under which it is loaded.
        let version = |part: &str| part.split('.').take(2).collect::<Vec<_>>().join(".");
        let name = format!("libpervma.so.{}", version(env!("CARGO_PKG_VERSION")));
        let linked = folder.path().join(name);
        symlink(library, &linked).map_err(|error| error.to_string())?;
        let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
        let loaded = folder.path().join("foreign.so");
        let mut compiler = Command::new("c++");
        compiler.args(["-O2", "-std=c++17", "-fPIC", "-shared", "-pthread"]);
        compiler.arg("-I").arg(bench.join("../capi/include")).arg(bench.join("src/foreign.cpp"));
        compiler.arg(&linked).arg(format!("-Wl,-rpath,{}", folder.path().display()));
        let said = compiler.arg("-o").arg(&loaded).output();
        let said = said.map_err(|error| format!("there is no c++: {error}"))?;
        if !said.status.success() {
            return Err(String::from_utf8_lossy(&said.stderr).into_owned());
        }
        let path =
            CString::new(loaded.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: a library of this program's own, whose beginning does nothing of note.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err("what was compiled cannot be loaded".to_owned());
        }
        // SAFETY: the library is loaded, and stays so.
        let table = unsafe { libc::dlsym(handle, c"bench_functions".as_ptr()) };
        if table.is_null() {
            return Err("what was loaded has no functions".to_owned());
        }
        // SAFETY: the C++ has a table of this type and length there, which does not change.
        Ok(Self(unsafe { &*table.cast() }))
    }

    /// An empty map of an implementation, by its place in [`NAMES`], with these VMAs.
    pub(crate) fn make(self, number: usize, vmas: &[layout::Vma]) -> Map {
        let functions = &self.0[number];
        let vmas: Vec<Vma> = vmas.iter().cloned().map(Vma::from).collect();
        // SAFETY: it reads so many.
        let map = unsafe { (functions.make)(vmas.as_ptr(), vmas.len()) };
        Map { functions, map }
    }
}

/// The library for C, beside this program.
fn library() -> Result<PathBuf, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    // A test is one folder below.
    let found = program.ancestors().skip(1).take(2).map(|folder| folder.join("libpervma.so"));
    let mut found = found.filter(|library| library.exists());
    found.next().ok_or_else(|| "no libpervma.so: cargo build --release -p pervma-capi".to_owned())
}

/// A map in C++.
pub(crate) struct Map {
    functions: &'static Functions,
    map: *mut c_void,
}

// SAFETY: all of them may be used, and dropped, by any thread.
unsafe impl Send for Map {}
// SAFETY: as for `Send`: they have locks.
unsafe impl Sync for Map {}

impl Map {
    /// Looks all addresses up; the sum of the payloads, each plus one.
    pub(crate) fn read_all(&self, addresses: &[usize]) -> u64 {
        // SAFETY: the map lives, and it reads so many.
        unsafe { (self.functions.read_all)(self.map, addresses.as_ptr(), addresses.len()) }
    }

    /// Inserts each, which is free, and removes it.
    pub(crate) fn insert_and_remove(&self, vmas: &[Vma]) {
        // SAFETY: the map lives, and it reads so many.
        unsafe { (self.functions.insert_and_remove)(self.map, vmas.as_ptr(), vmas.len()) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the map lives, and nobody uses it any more.
        unsafe { (self.functions.drop)(self.map) }
    }
}
