//! A library with this crate in it that is unloaded: its handler stays.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::{CString, c_int};
use std::mem::transmute;
use std::os::unix::ffi::OsStrExt;

use common::{child_case, run_child};

extern "C" fn leave(_: c_int) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(42) }
}

#[test]
fn a_library_that_is_unloaded_leaves_no_dangling_handler() {
    let name = "a_library_that_is_unloaded_leaves_no_dangling_handler";
    let program = std::env::current_exe().unwrap();
    let path = program.parent().unwrap().with_file_name("examples").join("libpager_plugin.so");
    if child_case().is_none() {
        if !path.exists() {
            return common::not_run("no library: cargo builds it for `cargo test` of all targets");
        }
        let ended = run_child(name, "");
        assert_eq!(ended.exit, Some(42), "{ended:?}");
        return;
    }
    let handler = leave as extern "C" fn(c_int) as usize;
    // SAFETY: a handler of this signature.
    unsafe { libc::signal(libc::SIGBUS, handler) };
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a library of this package, which does nothing when it is loaded.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null(), "{path:?}");
    // SAFETY: the library is loaded.
    let function = unsafe { libc::dlsym(library, c"paged_byte".as_ptr()) };
    assert!(!function.is_null());
    // SAFETY: the function is of this type (examples/plugin.rs).
    let paged_byte: extern "C" fn() -> u8 = unsafe { transmute(function) };
    // On a thread of its own: what it leaves for the end of the thread keeps the library too.
    assert_eq!(std::thread::spawn(move || paged_byte()).join().unwrap(), 7);
    // SAFETY: nothing of it is called any more by this program.
    unsafe { libc::dlclose(library) };
    // SAFETY: no condition. Its handler passes it on to the one before.
    unsafe { libc::raise(libc::SIGBUS) };
}
