//! A kernel that refuses userfaultfd, as containers have it, played by a seccomp filter.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use pervma_pager::sys::{Errno, OpenError};
use pervma_pager::{Error, MemorySource, Region};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Makes userfaultfd fail with `errno` in this thread.
fn refuse_userfaultfd(errno: Errno) {
    let filter = SeccompFilter::new(
        [(libc::SYS_userfaultfd, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.raw_os_error().cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn the_error_says_what_to_do() {
    for errno in [Errno::PERM, Errno::NOSYS] {
        let thread = std::thread::spawn(move || {
            refuse_userfaultfd(errno);
            Region::map(MemorySource::new(vec![1])).unwrap_err()
        });
        let error = thread.join().unwrap();
        assert!(matches!(error, Error::Userfaultfd(OpenError::Refused(found)) if found == errno));
        let text = error.to_string();
        for word in ["5.11", "seccomp", "vm.unprivileged_userfaultfd", "os error"] {
            assert!(text.contains(word), "{word} is missing in: {text}");
        }
        assert_eq!(text.lines().count(), 1);
    }
}
