//! Compiles core's source against the model checker.

fn main() {
    println!("cargo::rustc-cfg=pervma_model");
    println!("cargo::rerun-if-changed=build.rs");
}
