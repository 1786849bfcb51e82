//! What must not compile, each with a twin that does: only what the case is about differs.

/// A value of `$setup` that neither moves to another thread nor is shared with one.
macro_rules! stays_on_its_thread {
    ($($case:ident: $setup:literal, $value:literal;)+) => {$(
        mod $case {
            stays_on_its_thread!(@twins Moved, $setup, $value);
            stays_on_its_thread!(@twins Shared, $setup, concat!("&", $value));
        }
    )+};
    (@twins $name:ident, $setup:literal, $value:expr) => {
        #[doc = concat!(
            "```compile_fail,E0277\nfn to_another_thread<V: Send>(_: V) {}\n",
            stays_on_its_thread!(@body $setup, $value),
        )]
        #[doc = concat!(
            "```no_run\nfn to_another_thread<V>(_: V) {}\n",
            stays_on_its_thread!(@body $setup, $value),
        )]
        pub struct $name;
    };
    (@body $setup:literal, $value:expr) => {
        concat!(
            "let space = pervma::AddressSpace::<u32>::new(4096);\n",
            $setup,
            "\nto_another_thread(",
            $value,
            ");\n# Ok::<(), Box<dyn std::error::Error>>(())\n```\n",
        )
    };
}

stays_on_its_thread! {
    read_guard: "", "space.try_read(0)?";
    reader: "let reader = space.register()?;", "reader";
    reader_guard: "let reader = space.register()?;", "reader.try_read(0)?";
    reader_cursor: "let reader = space.register()?;", "reader.cursor()";
    edit: "let edit = space.edit()?;", "edit";
    edit_iter: "let edit = space.edit()?;", "edit.iter()";
    edit_overlapping: "let edit = space.edit()?;", "edit.overlapping(0..4096)";
    view: "let view = space.view()?;", "view";
    view_iter: "let view = space.view()?;", "view.iter()";
    view_overlapping: "let view = space.view()?;", "view.overlapping(0..4096)";
    exclusion: "let exclusion = space.exclude(0..4096)?;", "exclusion";
    exclusion_iter: "let exclusion = space.exclude(0..4096)?;", "exclusion.iter()";
    handler_scope: "let scope = pervma::HandlerScope::<pervma::StdPlatform>::enter();", "scope";
}

/// A platform reads a word of the lock, and has no way to store to it in safe code: the word has no
/// such method, and it is no smart pointer to an atomic that has.
///
/// ```compile_fail,E0599
/// fn wait(word: &pervma::WaitWord) -> u32 {
///     word.store(0)
/// }
/// ```
/// ```compile_fail,E0614
/// fn wait(word: &pervma::WaitWord) -> u32 {
///     (**word).value()
/// }
/// ```
/// ```
/// fn wait(word: &pervma::WaitWord) -> u32 {
///     (*word).value()
/// }
/// ```
pub struct WaitWordIsReadOnly;
