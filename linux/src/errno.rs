//! Why a call failed.

use core::fmt;

macro_rules! errno {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// An error number, with Linux's name and value.
        ///
        /// ```
        /// use pervma_linux::Errno;
        ///
        /// assert_eq!(Errno::ENOMEM.number(), 12);
        /// assert_eq!(Errno::ENOMEM.to_string(), "ENOMEM");
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Errno {
            $($(#[$doc])* $name = $number,)*
        }

        impl fmt::Display for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => stringify!($name),)*
                })
            }
        }
    };
}

errno! {
    /// Not allowed: sealed, or a capability is missing.
    EPERM = 1,
    /// The file is not open.
    EBADF = 9,
    /// Try again.
    EAGAIN = 11,
    /// No memory, no room, a limit, or nothing is mapped there.
    ENOMEM = 12,
    /// The file's mode or the mapping's does not allow it.
    EACCES = 13,
    /// Bad address.
    EFAULT = 14,
    /// Locked pages cannot be invalidated.
    EBUSY = 16,
    /// Something is mapped there.
    EEXIST = 17,
    /// The file cannot be mapped.
    ENODEV = 19,
    /// An argument makes no sense.
    EINVAL = 22,
    /// The file offset does not fit.
    EOVERFLOW = 75,
    /// A flag is not supported for this kind of mapping.
    EOPNOTSUPP = 95,
}

impl Errno {
    /// The number that a system call returns, negated.
    ///
    /// ```
    /// assert_eq!(pervma_linux::Errno::EINVAL.number(), 22);
    /// ```
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }
}

impl core::error::Error for Errno {}
