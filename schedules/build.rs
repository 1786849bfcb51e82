//! Compiles core's source against the scheduler.

fn main() {
    println!("cargo::rustc-cfg=pervma_model");
    println!("cargo::rustc-cfg=pervma_shuttle");
    println!("cargo::rerun-if-changed=build.rs");
}
