//! Error numbers.

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
        /// assert_eq!(Errno::new(12), Some(Errno::ENOMEM));
        /// assert_eq!(Errno::new(0), None);
        /// ```
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct Errno(u16);

        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// The name, if it is one that calls are known to return.
            ///
            /// ```
            /// assert_eq!(pervma_linux::Errno::EPERM.name(), Some("EPERM"));
            /// ```
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errno! {
    /// It is sealed, or a capability is missing.
    EPERM = 1,
    /// The memory can be neither read nor written, not even by force.
    EIO = 5,
    /// The file is not open.
    EBADF = 9,
    /// It may succeed later.
    EAGAIN = 11,
    /// There is no memory or no gap, a limit is reached, or nothing is mapped there.
    ENOMEM = 12,
    /// The mode of the file or of the mapping does not allow it.
    EACCES = 13,
    /// The address is not mapped as it would have to be.
    EFAULT = 14,
    /// Locked pages cannot be invalidated.
    EBUSY = 16,
    /// Something is mapped there already.
    EEXIST = 17,
    /// The file is of a kind that cannot be mapped.
    ENODEV = 19,
    /// An argument is not valid.
    EINVAL = 22,
    /// The offset in the file is too large.
    EOVERFLOW = 75,
    /// A flag is not supported for this kind of mapping.
    EOPNOTSUPP = 95,
}

impl Errno {
    /// The highest error number.
    const LAST: u16 = 4095;

    /// Returns the error with this number. Calls may also return one that has no name here.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking, abi::*};
    ///
    /// // Linux takes an address in the last page for the error with that number.
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    /// assert_eq!(mm.mmap(usize::MAX - 1, 4096, 0, fixed, None, 0).err(), Errno::new(2));
    /// ```
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if 1 <= number && number <= Self::LAST { Some(Self(number)) } else { None }
    }

    /// The error that Linux takes an address in the last page for.
    #[doc(alias = "IS_ERR_VALUE")]
    pub(crate) fn of_address(addr: usize) -> Option<Self> {
        u16::try_from(addr.wrapping_neg()).ok().and_then(Self::new)
    }

    /// Returns the number, which a system call returns negated.
    ///
    /// ```
    /// assert_eq!(pervma_linux::Errno::EINVAL.number(), 22);
    /// ```
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0 as i32
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl core::error::Error for Errno {}
