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

/// What the C++ has, in its order: two over pervma, and their peers.
type Compiled = [Functions; 4];

/// The implementations over pervma: the C++ that is linked with the shared library, and that which
/// is with the static one.
pub(crate) const OURS: [&str; 4] = [
    "pervma_lookup, libpervma.so",
    "pervma_read_begin and _end, libpervma.so",
    "pervma_lookup, libpervma.a",
    "pervma_read_begin and _end, libpervma.a",
];

/// Their peers.
pub(crate) const PEERS: [&str; 2] =
    ["std::map under pthread_rwlock_t", "std::map under std::shared_mutex"];

/// What was loaded; never unloaded.
#[derive(Clone, Copy)]
pub(crate) struct Loaded {
    shared: &'static Compiled,
    linked: &'static Compiled,
}

impl Loaded {
    /// Compiles and loads them; or why that cannot be done.
    pub(crate) fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let folder = folder.path();
        // By the name under which it is loaded.
        let version = |part: &str| part.split('.').take(2).collect::<Vec<_>>().join(".");
        let name = format!("libpervma.so.{}", version(env!("CARGO_PKG_VERSION")));
        let shared = folder.join(name);
        symlink(library("libpervma.so")?, &shared).map_err(|error| error.to_string())?;
        let run_path = format!("-Wl,-rpath,{}", folder.display());
        let shared = compile(&folder.join("shared.so"), |compiler| {
            compiler.arg(shared).arg(run_path);
        })?;
        let linked = library("libpervma.a")?;
        let linked = compile(&folder.join("linked.so"), |compiler| {
            // Called as from a program that it is linked into.
            compiler.arg("-Wl,--exclude-libs,ALL").arg(linked);
            compiler.args(["-lgcc_s", "-lutil", "-lrt", "-lm", "-ldl"]);
        })?;
        Ok(Self { shared, linked })
    }

    /// A map of an implementation, by its place in [`OURS`], with these VMAs.
    pub(crate) fn ours(self, number: usize, vmas: &[layout::Vma]) -> Map {
        let compiled = if number < 2 { self.shared } else { self.linked };
        Map::of(&compiled[number % 2], vmas)
    }

    /// A map of one of [`PEERS`], by its place there, with these VMAs.
    pub(crate) fn peer(self, number: usize, vmas: &[layout::Vma]) -> Map {
        Map::of(&self.shared[2 + number], vmas)
    }
}

/// Compiles the C++, linked by `link`, and loads it.
fn compile(to: &Path, link: impl FnOnce(&mut Command)) -> Result<&'static Compiled, String> {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = Command::new("c++");
    compiler.args(["-O2", "-std=c++17", "-fPIC", "-shared", "-pthread"]);
    compiler.arg("-I").arg(bench.join("../capi/include")).arg(bench.join("src/foreign.cpp"));
    link(&mut compiler);
    let said = compiler.arg("-o").arg(to).output();
    let said = said.map_err(|error| format!("there is no c++: {error}"))?;
    if !said.status.success() {
        return Err(String::from_utf8_lossy(&said.stderr).into_owned());
    }
    let path = CString::new(to.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
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
    Ok(unsafe { &*table.cast() })
}

/// A library for C, beside this program.
fn library(name: &str) -> Result<PathBuf, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    // A test is one folder below.
    let found = program.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let mut found = found.filter(|library| library.exists());
    found.next().ok_or_else(|| format!("no {name}: cargo build --release -p pervma-capi"))
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
    fn of(functions: &'static Functions, vmas: &[layout::Vma]) -> Self {
        let vmas: Vec<Vma> = vmas.iter().cloned().map(Vma::from).collect();
        // SAFETY: it reads so many.
        let map = unsafe { (functions.make)(vmas.as_ptr(), vmas.len()) };
        Self { functions, map }
    }

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
