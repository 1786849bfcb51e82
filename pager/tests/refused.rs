//! A kernel that refuses userfaultfd, as containers have it, played by a seccomp filter.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::refuse;
use pervma_pager::sys::{Errno, OpenError};
use pervma_pager::{Error, MemorySource, Region};

#[test]
fn the_error_says_what_to_do() {
    for errno in [Errno::PERM, Errno::NOSYS] {
        let thread = std::thread::spawn(move || {
            refuse(libc::SYS_userfaultfd, errno);
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
