//! Bad input: exit code 2, one line that says what is wrong, nothing on standard output.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{pervma, run};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Runs a command, and checks the form of its error, which has all the words.
fn refused(command: Command, words: &[&str]) {
    let shown = format!("{command:?}");
    let ended = run(command);
    assert_eq!(ended.exit, Some(2), "{shown}: {}", ended.stderr);
    assert_eq!(ended.stdout, "", "{shown}");
    assert_eq!(ended.stderr.lines().count(), 1, "{shown}: {}", ended.stderr);
    assert!(ended.stderr.starts_with("pervma: ") && ended.stderr.ends_with('\n'), "{shown}");
    for word in words {
        assert!(ended.stderr.contains(word), "{shown}: {word} is missing in: {}", ended.stderr);
    }
}

fn page(file: &Path) -> Command {
    pervma([OsStr::new("page"), file.as_os_str()])
}

#[test]
fn files_that_cannot_be_paged() {
    let directory = tempfile::tempdir().unwrap();
    let within = |name| directory.path().join(name);
    refused(page(&within("missing")), &["missing", "No such file", "check the path"]);
    refused(page(directory.path()), &["is a directory", "give a regular file"]);
    fs::write(within("empty"), b"").unwrap();
    refused(page(&within("empty")), &["is empty", "at least one byte"]);
    for device in ["/dev/null", "/dev/zero"] {
        refused(page(Path::new(device)), &[device, "is a device", "give a regular file"]);
    }
    refused(page(Path::new("")), &["a value is required", "FILE"]);
    refused(page(&within("two\nlines")), &["two\\nlines"]);
    refused(page(&within("empty").join("below")), &["Not a directory"]);
}

#[test]
fn a_fifo_is_refused_without_waiting_for_its_writer() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    refused(page(&fifo), &["is a FIFO", "give a regular file"]);
}

#[test]
fn a_file_that_may_not_be_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), b"secret").unwrap();
    fs::set_permissions(file.path(), Permissions::from_mode(0o000)).unwrap();
    if File::open(file.path()).is_ok() {
        return println!("NOT RUN: this user (root?) may read every file");
    }
    refused(page(file.path()), &["Permission denied", "a file that you may read"]);
}

#[test]
fn a_file_whose_size_is_not_that_of_its_content() {
    let file = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    if !file.exists() {
        return println!("NOT RUN: no {}", file.display());
    }
    refused(page(file), &["ends before the 4096 bytes", "copy its content"]);
}

#[test]
fn a_bound_that_does_not_fit_in_memory() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // A hole, of 1 TiB.
    file.as_file().set_len(1 << 40).unwrap();
    let mut command = page(file.path());
    command.args(["--resident", "9999G"]);
    refused(command, &["1099511627776 bytes", "of memory", "give a smaller --resident"]);
}

#[test]
fn a_bound_that_is_too_small() {
    for (resident, granule, least) in
        [("0", "4K", "16384"), ("16383", "4K", "16384"), ("4M", "2M", "8388608")]
    {
        let command = pervma(["page", "--resident", resident, "--granule", granule]);
        refused(command, &["--resident", "--granule", least]);
    }
    refused(pervma(["page", "--resident", "much"]), &["--resident", "such as"]);
}

#[test]
fn a_file_of_the_kernels_that_says_it_is_empty() {
    refused(page(Path::new("/proc/self/status")), &["says that it has none", "copy its content"]);
}

#[test]
fn a_picture_that_cannot_be_written() {
    refused(
        pervma(["page", "--svg", "/nowhere/x.svg"]),
        &["--svg /nowhere/x.svg", "can be written"],
    );
}

#[test]
fn thread_counts_that_make_no_sense() {
    for count in ["0", "1025", "-1", "many", "", "99999999999999999999"] {
        let command = pervma(["page", &format!("--threads={count}")]);
        refused(command, &["--threads", "give a number from 1 to 1024", "--help"]);
    }
    refused(pervma(["page", "--threads"]), &["--threads", "--help"]);
}

#[test]
fn commands_and_options_that_do_not_exist() {
    refused(pervma(["page", "--frobnicate"]), &["--frobnicate", "--help"]);
    refused(pervma(["pag"]), &["pag", "--help"]);
    refused(pervma(["page", "one", "two"]), &["two", "--help"]);
    refused(pervma::<&str>([]), &["command", "--help"]);
}

/// The command under `ulimit -v`, in KiB.
fn with_address_space(kib: u32, arguments: &str) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("ulimit -v {kib} && exec \"$0\" {arguments}");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_pervma")]).stdin(Stdio::null());
    shell
}

#[test]
fn threads_that_cannot_be_started() {
    // Enough for the program and its file, but not for a thousand stacks of 2 MiB.
    let command = with_address_space(1 << 20, "page --threads 1024");
    refused(command, &["could not be started", "give a smaller --threads"]);
}

#[test]
fn address_space_that_does_not_suffice() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hole");
    File::create(&file).unwrap().set_len(100 << 20).unwrap();
    let page = format!("page '{}' --threads 1", file.display());
    let command = with_address_space(80 << 10, &page);
    refused(command, &["mapping 104857600 bytes", "ulimit -v"]);
    // There is no copy of it.
    assert_eq!(run(with_address_space(190 << 10, &page)).exit, Some(0));
}

#[test]
fn a_kernel_that_refuses_userfaultfd() {
    // `/dev/userfaultfd` would do as well, for a user who may open it.
    const NEW: u64 = 0xaa00;
    let is_new = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, NEW).unwrap();
    let by_device = vec![SeccompRule::new(vec![is_new]).unwrap()];
    let filter = SeccompFilter::new(
        [(libc::SYS_userfaultfd, vec![]), (libc::SYS_ioctl, by_device)].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    // A filter is the thread's, and its children's.
    let thread = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).unwrap();
        refused(pervma(["page"]), &["userfaultfd was refused", "5.11", "seccomp"]);
    });
    thread.join().unwrap();
}
