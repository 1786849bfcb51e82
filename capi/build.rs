//! Names the shared library as it is linked against: before 1.0 each minor version is another.

fn main() {
    let version = |part| std::env::var(part).unwrap_or_default();
    let (major, minor) = (version("CARGO_PKG_VERSION_MAJOR"), version("CARGO_PKG_VERSION_MINOR"));
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libpervma.so.{major}.{minor}");
    println!("cargo::rerun-if-changed=build.rs");
}
