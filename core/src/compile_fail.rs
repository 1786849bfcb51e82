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
    reader_iter: "let reader = space.register()?;", "reader.iter()";
    reader_read_all: "let reader = space.register()?;", "reader.read_all()";
    mapped_read_guard: "", "pervma::ReadGuard::map(space.try_read(0)?, |payload| payload)";
    read_all: "", "space.read_all()";
    vma_or_hole: "", "space.try_read_or_hole(0)?";
    cursor: "", "space.cursor()";
    iter: "", "space.iter()";
    edit: "let edit = space.edit()?;", "edit";
    edit_iter: "let edit = space.edit()?;", "edit.iter()";
    edit_overlapping: "let edit = space.edit()?;", "edit.overlapping(0..4096)";
    view: "let view = space.view()?;", "view";
    view_iter: "let view = space.view()?;", "view.iter()";
    view_overlapping: "let view = space.view()?;", "view.overlapping(0..4096)";
    exclusion: "let exclusion = space.exclude(0..4096)?;", "exclusion";
    exclusion_iter: "let exclusion = space.exclude(0..4096)?;", "exclusion.iter()";
    exclusion_waits_for: "let exclusion = space.exclude(0..4096)?;", "exclusion.waits_for()";
    prepared_fork: "", "space.prepare_fork()?";
    handler_scope: "let scope = pervma::HandlerScope::<pervma::StdPlatform>::enter();", "scope";
}

/// A type that moves to another thread, and is shared with one, only if its payload does both: what
/// one thread shares, another can take out.
macro_rules! as_its_payload {
    ($($case:ident: $before:literal, $after:literal;)+) => {$(
        mod $case {
            as_its_payload!(@twins MovedIfShared, "Send", "std::cell::Cell<u32>", $before, $after);
            as_its_payload!(@twins SharedIfShared, "Sync", "std::cell::Cell<u32>", $before, $after);
            as_its_payload!(
                @twins MovedIfMoved, "Send", "std::sync::MutexGuard<'static, u32>", $before, $after
            );
            as_its_payload!(
                @twins SharedIfMoved, "Sync", "std::sync::MutexGuard<'static, u32>", $before, $after
            );
        }
    )+};
    (@twins $name:ident, $bound:literal, $payload:literal, $before:literal, $after:literal) => {
        #[doc = concat!(
            "```compile_fail,E0277\n", as_its_payload!(@body $bound, $payload, $before, $after),
        )]
        #[doc = concat!("```no_run\n", as_its_payload!(@body $bound, "u32", $before, $after))]
        pub struct $name;
    };
    (@body $bound:literal, $payload:expr, $before:literal, $after:literal) => {
        concat!(
            "fn check<V: ", $bound, ">() {}\ncheck::<pervma::", $before, $payload, $after,
            ">();\n```\n",
        )
    };
}

as_its_payload! {
    of_space: "AddressSpace<", ">";
    of_slab: "Slab<", ">";
    of_owned_read_guard: "OwnedReadGuard<", ">";
    of_owned_mapped_read_guard: "OwnedMappedReadGuard<", ", u32>";
    of_reservation: "Reservation<'static, ", ">";
    of_vma_mut: "VmaMut<'static, ", ">";
}

/// A value of `$setup` that is gone before what it borrows is changed or ends, with the compiler's
/// error where it is not.
macro_rules! ends_before {
    ($($case:ident: $setup:literal, $value:literal, $change:literal, $error:literal;)+) => {$(
        #[doc = concat!(
            "```compile_fail,", $error, "\n",
            ends_before!(@body $setup, $value, $change, "drop(value);"),
        )]
        #[doc = concat!("```no_run\n", ends_before!(@body $setup, $value, "drop(value);", $change))]
        pub mod $case {}
    )+};
    (@body $setup:literal, $value:literal, $then:literal, $last:literal) => {
        concat!(
            "# use std::sync::Arc;\n",
            "let space = Arc::new(pervma::AddressSpace::<u32>::new(4096));\n",
            $setup, "\nlet value = ", $value, ";\n", $then, "\n", $last, "\n",
            "# Ok::<(), Box<dyn std::error::Error>>(())\n```\n",
        )
    };
}

ends_before! {
    guard_of_space: "", "space.try_read(0)?", "drop(space);", "E0505";
    guard_of_next: "", "space.try_read_at_or_after(0)?", "drop(space);", "E0505";
    cursors_guard_of_space: "", "space.cursor().try_read(0)?", "drop(space);", "E0505";
    iter_of_space: "", "space.iter()", "drop(space);", "E0505";
    read_all_of_space: "", "space.read_all()", "drop(space);", "E0505";
    guard_of_read_all: "let mut vmas = space.read_all();", "vmas.next()?", "vmas.next()?;",
        "E0499";
    part_of_guard: "let vma = pervma::ReadGuard::map(space.try_read(0)?, |payload| payload);",
        "&*vma", "drop(vma);", "E0505";
    mapped_guard_of_space: "", "pervma::ReadGuard::map(space.try_read(0)?, |payload| payload)",
        "drop(space);", "E0505";
    reader_of_space: "", "space.register()?", "drop(space);", "E0505";
    edit_of_space: "", "space.edit()?", "drop(space);", "E0505";
    view_of_space: "", "space.view()?", "drop(space);", "E0505";
    exclusion_of_space: "", "space.exclude(0..4096)?", "drop(space);", "E0505";
    prepared_fork_of_space: "", "space.prepare_fork()?", "drop(space);", "E0505";
    reservation_of_space: "", "space.reserve(0..4096)?", "drop(space);", "E0505";
    reservation_of_edit: "", "space.edit()?.reserve(0..4096)?", "drop(space);", "E0505";
    slab_of_space: "", "space.slab()", "drop(space);", "E0505";
    payload_of_guard: "let vma = space.try_read(0)?;", "&*vma", "drop(vma);", "E0505";
    payload_of_owned_guard: "let vma = space.try_read_owned(0)?;", "&*vma", "drop(vma);", "E0505";
    guard_of_reader: "let reader = space.register()?;", "reader.try_read(0)?", "drop(reader);",
        "E0505";
    cursor_of_reader: "let reader = space.register()?;", "reader.cursor()", "drop(reader);",
        "E0505";
    cursors_guard_of_reader: "let reader = space.register()?;", "reader.cursor().try_read(0)?",
        "drop(reader);", "E0505";
    payload_of_view: "let view = space.view()?;", "view.get(0)", "drop(view);", "E0505";
    payload_of_exclusion: "let exclusion = space.exclude(0..4096)?;", "exclusion.iter().next()",
        "exclusion.remove()?;", "E0505";
    readers_of_exclusion: "let exclusion = space.exclude(0..4096)?;", "exclusion.waits_for()",
        "drop(exclusion);", "E0505";
    payload_of_edit: "let mut edit = space.edit()?;", "edit.get(0)", "edit.write(0)?;", "E0502";
    payload_by_id_of_edit:
        "let mut edit = space.edit()?; let id = edit.id(0).expect(\"mapped\");",
        "edit.get_by_id(id)", "edit.remove(0..4096)?;", "E0502";
    payload_of_downgraded_edit: "let edit = space.edit()?;", "edit.get(0)",
        "drop(edit.downgrade());", "E0505";
    iter_of_edit: "let mut edit = space.edit()?;", "edit.iter()", "edit.insert(0..4096, 1)?;",
        "E0502";
    write_lock_of_edit: "let mut edit = space.edit()?;", "edit.write(0)?", "drop(edit);", "E0505";
    write_lock_of_vma: "let mut edit = space.edit()?;", "edit.write(0)?", "edit.try_write(0)?;",
        "E0499";
    write_lock_and_payload: "let mut edit = space.edit()?;", "edit.write(0)?", "edit.get(0);",
        "E0502";
    write_lock_and_copy: "let mut edit = space.edit()?;", "edit.write(0)?",
        "drop(edit.fork(|_, payload| Some(*payload))?);", "E0499";
}

/// A type that gives its payload out, and takes it in, with exactly the lifetime that it has.
macro_rules! keeps_the_lifetime {
    ($($case:ident: $before:literal;)+) => {$(
        #[doc = concat!(
            "```compile_fail\n", keeps_the_lifetime!(@body $before, "&'static str", "&'a str"),
        )]
        #[doc = concat!("```\n", keeps_the_lifetime!(@body $before, "&'a str", "&'a str"))]
        pub mod $case {}
    )+};
    (@body $before:literal, $long:literal, $short:literal) => {
        concat!(
            "fn shorten<'a>(it: &'a pervma::", $before, $long, ">) -> &'a pervma::", $before,
            $short, "> { it }\n```\n",
        )
    };
}

keeps_the_lifetime! {
    in_space: "AddressSpace<";
    in_slab: "Slab<";
    in_edit: "Edit<'a, ";
    in_view: "View<'a, ";
    in_vmas: "Vmas<'a, ";
    in_vma_mut: "VmaMut<'a, ";
    in_exclusion: "Exclusion<'a, ";
    in_reservation: "Reservation<'a, ";
}

/// What another thread reads of a payload may be shared.
///
/// ```compile_fail,E0277
/// fn to_another_thread<V: Send>() {}
/// to_another_thread::<pervma::OwnedMappedReadGuard<u32, std::cell::Cell<u32>>>();
/// ```
/// ```
/// fn to_another_thread<V: Send>() {}
/// to_another_thread::<pervma::OwnedMappedReadGuard<u32, std::sync::MutexGuard<'static, u32>>>();
/// ```
pub struct PartsAreShared;

/// A part of a payload is one for as long as the payload is there, and no longer.
///
/// ```compile_fail
/// use pervma::ReadGuard;
/// fn part<'a>(vma: ReadGuard<'a, String>, kept: &mut Option<&'a str>) {
///     drop(ReadGuard::map(vma, |text| {
///         *kept = Some(text);
///         text
///     }));
/// }
/// ```
/// ```
/// use pervma::ReadGuard;
/// fn part<'a>(vma: ReadGuard<'a, String>, kept: &mut Option<String>) {
///     drop(ReadGuard::map(vma, |text| {
///         *kept = Some(text.clone());
///         text
///     }));
/// }
/// ```
pub struct PartsGoWithTheGuard;

/// What would be too large for the stack is no payload.
///
/// ```compile_fail,E0080
/// let space = pervma::AddressSpace::<[u8; (16 << 10) + 1]>::new(4096);
/// ```
/// ```compile_fail,E0080
/// let slab = pervma::Slab::<[u8; (16 << 10) + 1]>::new();
/// ```
/// ```
/// let space = pervma::AddressSpace::<[u8; 16 << 10]>::new(4096);
/// let slab = pervma::Slab::<[u8; 16 << 10]>::new();
/// ```
pub struct PayloadsAreSmall;

/// What payloads borrow is there as long as the space, whose end drops them.
///
/// ```compile_fail,E0597
/// let space = pervma::AddressSpace::new(4096);
/// let text = String::from("text");
/// assert!(space.insert(0..4096, &*text).is_ok());
/// ```
/// ```
/// let text = String::from("text");
/// let space = pervma::AddressSpace::new(4096);
/// assert!(space.insert(0..4096, &*text).is_ok());
/// ```
pub struct PayloadsOutliveTheSpace;

/// What an owned guard reads may be read at any time.
///
/// ```compile_fail
/// use pervma::AddressSpace;
/// fn read<'a>(space: &std::sync::Arc<AddressSpace<&'a str>>) {
///     drop(space.try_read_owned(0));
/// }
/// ```
/// ```
/// use pervma::AddressSpace;
/// fn read<'a>(space: &'a std::sync::Arc<AddressSpace<&'static str>>) {
///     drop(space.try_read_owned(0));
/// }
/// ```
pub struct OwnedGuardsReadForever;

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
