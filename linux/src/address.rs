//! The addresses of a program's parts: `prctl(PR_SET_MM)`.

use pervma::Platform;

use crate::abi::*;
use crate::backing::Backing;
use crate::call::{HEAP_END, Scope};
use crate::config::Layout;
use crate::errno::Errno;
use crate::mm::{Change, Mm};

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Moves one of the addresses that a program has from its start, as those of its heap
    /// (`prctl(PR_SET_MM)`). `option` says which: `PR_SET_MM_BRK` and its like.
    ///
    /// Nothing is mapped or unmapped by it. The next [`brk`](Self::brk) begins where this says that
    /// the heap ends, and unmaps what lies between there and the new end, whatever it is.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config { may_set_addresses: true, ..Config::default() });
    /// let heap = mm.brk(0);
    /// mm.set_address(PR_SET_MM_BRK, heap + 0x8000)?;
    /// assert_eq!(mm.brk(heap + 0x9000), heap + 0x9000);
    /// assert!(mm.lookup(heap)?.is_none() && mm.lookup(heap + 0x8000)?.is_some());
    /// assert_eq!(mm.set_address(PR_SET_MM_START_BRK, heap + 0xa000), Err(Errno::EINVAL));
    /// # Ok::<(), Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call; `EINVAL` also for its options that set something else
    /// (`PR_SET_MM_AUXV`, `PR_SET_MM_EXE_FILE`) or all addresses at once.
    #[doc(alias = "prctl_set_mm")]
    pub fn set_address(&self, option: i32, addr: usize) -> Result<(), Errno> {
        self.change(&Scope::new(HEAP_END), |change| change.set_address(option, addr))
    }

    /// Moves all of these addresses at once (`prctl(PR_SET_MM)` with `PR_SET_MM_MAP`), for which no
    /// capability is needed.
    ///
    /// ```
    /// use pervma_linux::{Config, Layout, Mm, NoBacking};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let layout = mm.config().layout;
    /// let heap = 0x1000_0000;
    /// mm.set_addresses(Layout { start_brk: heap, brk: heap, ..layout })?;
    /// assert_eq!(mm.brk(heap + 0x1000), heap + 0x1000);
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call; `EINVAL` also if something else of the layout is another.
    #[doc(alias("PR_SET_MM_MAP", "prctl_set_mm_map"))]
    pub fn set_addresses(&self, layout: Layout) -> Result<(), Errno> {
        self.change(&Scope::new(HEAP_END), |change| {
            let Layout { task_size, mmap_base, mmap_legacy_base, stack_guard_gap, .. } =
                change.state.config.layout;
            let fixed =
                Layout { task_size, mmap_base, mmap_legacy_base, stack_guard_gap, ..layout };
            if fixed != layout || !change.is_valid(&layout) {
                return Err(Errno::EINVAL);
            }
            change.state.config.layout = layout;
            Ok(())
        })
    }
}

impl<P: Platform> Change<'_, P> {
    fn set_address(&mut self, option: i32, addr: usize) -> Result<(), Errno> {
        if !self.state.config.may_set_addresses {
            return Err(Errno::EPERM);
        }
        let mut layout = self.state.config.layout;
        let (set, must_be_below_a_mapping) = match option {
            PR_SET_MM_START_CODE => (&mut layout.start_code, false),
            PR_SET_MM_END_CODE => (&mut layout.end_code, false),
            PR_SET_MM_START_DATA => (&mut layout.start_data, false),
            PR_SET_MM_END_DATA => (&mut layout.end_data, false),
            PR_SET_MM_START_BRK => (&mut layout.start_brk, false),
            PR_SET_MM_BRK => (&mut layout.brk, false),
            PR_SET_MM_START_STACK => (&mut layout.start_stack, true),
            PR_SET_MM_ARG_START => (&mut layout.arg_start, true),
            PR_SET_MM_ARG_END => (&mut layout.arg_end, true),
            PR_SET_MM_ENV_START => (&mut layout.env_start, true),
            PR_SET_MM_ENV_END => (&mut layout.env_end, true),
            _ => return Err(Errno::EINVAL),
        };
        *set = addr;
        if !self.is_valid(&layout) {
            return Err(Errno::EINVAL);
        }
        if must_be_below_a_mapping && self.first_from(addr).is_none() {
            return Err(Errno::EFAULT);
        }
        self.state.config.layout = layout;
        Ok(())
    }

    /// Whether a program's parts may lie so.
    #[doc(alias = "validate_prctl_map_addr")]
    fn is_valid(&self, layout: &Layout) -> bool {
        let pairs = [
            (layout.start_code, layout.end_code),
            (layout.start_data, layout.end_data),
            (layout.start_brk, layout.brk),
            (layout.arg_start, layout.arg_end),
            (layout.env_start, layout.env_end),
            (layout.start_stack, layout.start_stack),
        ];
        let bounds = self.state.config.lowest_choice..layout.task_size;
        let ordered = |(start, end): (usize, usize)| {
            bounds.contains(&start) && bounds.contains(&end) && start <= end
        };
        layout.start_code < layout.end_code
            && pairs.into_iter().all(ordered)
            && self.may_hold_data(layout)
    }
}
