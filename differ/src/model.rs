//! The side of the model.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pervma_linux::{
    Access, Backing, Config, Counts, Errno, File, Limits, Mm, Part, Refusal, Source, Vma, abi,
};

use crate::child::{Born, CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_RAWIO, CODE};
use crate::files;
use crate::op::{Op, Which};
use crate::outcome::Outcome;

/// What steps are made on, to be compared with the kernel.
pub trait Subject {
    /// Makes a step.
    fn step(&mut self, op: &Op) -> Outcome;

    /// The map in the words of `/proc/PID/maps`.
    fn maps(&self) -> String;

    /// The flags of each mapping, in order of address.
    fn flags(&self) -> Vec<String>;

    /// What is counted.
    fn counts(&self) -> Counts;

    /// The mappings, for whoever makes steps up.
    fn vmas(&self) -> Vec<(Range<usize>, Vma)>;

    /// The map of the child that was last looked at and has ended.
    fn ended_child(&self) -> &str;
}

/// `Mm`, with files that end and with guard pages.
#[derive(Debug)]
pub struct Model {
    mm: Mm<Pages, pervma_linux::StdPlatform>,
    files: Vec<Arc<File>>,
    ended_child: String,
}

/// The pages that cannot be had.
#[derive(Debug, Default)]
struct Pages {
    guards: Mutex<BTreeSet<usize>>,
}

impl Pages {
    fn with<R>(&self, look: impl FnOnce(&mut BTreeSet<usize>) -> R) -> R {
        look(&mut self.guards.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self, range: Range<usize>) -> Vec<usize> {
        self.with(|guards| {
            let taken: Vec<usize> = guards.range(range).copied().collect();
            taken.iter().for_each(|page| _ = guards.remove(page));
            taken
        })
    }
}

impl Backing for Pages {
    fn fault(&self, part: Part<'_>, _access: Access) -> Result<(), Refusal> {
        let pages = (part.range.end - part.range.start) / abi::PAGE;
        let size = match &part.vma.source {
            Source::Anonymous => usize::MAX,
            Source::SharedAnonymous(object) => object.size / abi::PAGE,
            Source::File(file) => files::pages(file),
        };
        let first = usize::try_from(part.page_offset).unwrap_or(usize::MAX);
        // A guard page is met before the file is asked.
        if let Some(addr) = self.with(|guards| guards.range(part.range).next().copied()) {
            Err(Refusal::Guard { addr })
        } else if pages > size.saturating_sub(first) && !part.vma.is_anonymous() {
            Err(Refusal::Bus)
        } else {
            Ok(())
        }
    }

    fn unmap(&self, range: Range<usize>) {
        self.take(range);
    }

    fn relocate(&self, from: Range<usize>, to: usize) {
        let start = from.start;
        let moved = self.take(from);
        self.with(|guards| guards.extend(moved.iter().map(|page| page - start + to)));
    }

    fn copy(&self, part: Part<'_>, child: &Self) {
        let copied: Vec<usize> = self.with(|guards| guards.range(part.range).copied().collect());
        child.with(|guards| guards.extend(copied));
    }

    fn advise(&self, part: Part<'_>, advice: i32) -> Result<(), Errno> {
        match advice {
            abi::MADV_GUARD_INSTALL => {
                self.with(|guards| guards.extend(part.range.step_by(abi::PAGE)));
            }
            abi::MADV_GUARD_REMOVE => _ = self.take(part.range),
            _ => {}
        }
        Ok(())
    }
}

impl Model {
    /// The model of a process that has just been born.
    #[must_use]
    pub fn new(config: &Config, files: &[Arc<File>]) -> Self {
        let mm = Mm::new(Pages::default(), config.clone());
        let mut model = Self { mm, files: files.to_vec(), ended_child: String::new() };
        let flags = abi::MAP_PRIVATE | abi::MAP_ANONYMOUS | abi::MAP_FIXED;
        let all = abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC;
        let prot = abi::PROT_READ | abi::PROT_EXEC;
        let code = Op::Mmap { addr: CODE, len: abi::PAGE, prot: all, flags, file: None, offset: 0 };
        for op in [
            code,
            Op::Touch { addr: CODE, access: Access::Write },
            Op::Mprotect { addr: CODE, len: abi::PAGE, prot },
        ] {
            model.step(&op);
        }
        model
    }

    /// The call alone.
    fn call(&self, op: &Op) -> Result<usize, Errno> {
        let mm = &self.mm;
        let done = |result: Result<(), Errno>| result.map(|()| 0);
        match *op {
            Op::Mmap { addr, len, prot, flags, file, offset } => {
                let file = file.and_then(|file| self.files.get(file));
                mm.mmap(addr, len, prot, flags, file, offset)
            }
            Op::Munmap { addr, len } => done(mm.munmap(addr, len)),
            Op::Mprotect { addr, len, prot } => done(mm.mprotect(addr, len, prot)),
            Op::PkeyMprotect { addr, len, prot, key } => {
                done(mm.pkey_mprotect(addr, len, prot, key))
            }
            Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
                mm.mremap(addr, old_len, new_len, flags, new_addr)
            }
            Op::Madvise { addr, len, advice } => done(mm.madvise(addr, len, advice)),
            Op::Mlock { addr, len } => done(mm.mlock(addr, len)),
            Op::Mlock2 { addr, len, flags } => done(mm.mlock2(addr, len, flags)),
            Op::Munlock { addr, len } => done(mm.munlock(addr, len)),
            Op::Mlockall { flags } => done(mm.mlockall(flags)),
            Op::Munlockall => done(mm.munlockall()),
            Op::Brk { addr } => Ok(mm.brk(addr)),
            Op::Mseal { addr, len, flags } => done(mm.mseal(addr, len, flags)),
            Op::Msync { addr, len, flags } => done(mm.msync(addr, len, flags)),
            Op::Mincore { addr, len, vector } => done(mm.mincore(addr, len, vector)),
            Op::Unname { addr, len } => done(mm.set_anon_name(addr, len, None)),
            Op::Touch { .. } | Op::Fork { .. } | Op::Limit { .. } => Ok(0),
        }
    }

    fn fork(&mut self, child_goes_on: bool) -> Result<usize, Errno> {
        let child = self.mm.fork(Pages::default())?;
        if child_goes_on {
            self.mm = child;
        } else {
            self.ended_child = child.maps();
        }
        Ok(0)
    }
}

impl Subject for Model {
    fn step(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Touch { addr, access } => Outcome::Touched(self.mm.fault(addr, access)),
            Op::Fork { child_goes_on } => match self.fork(child_goes_on) {
                Ok(_) => Outcome::Done,
                Err(error) => Outcome::of(Err(error)),
            },
            Op::Limit { which, bytes } => {
                let limits = self.mm.limits();
                self.mm.set_limits(match which {
                    Which::AddressSpace => Limits { address_space: bytes, ..limits },
                    Which::Data => Limits { data: bytes, ..limits },
                    Which::DataMax => {
                        Limits { data: limits.data.min(bytes), data_max: bytes, ..limits }
                    }
                    Which::Locked => Limits { locked: bytes, ..limits },
                    Which::Stack => Limits { stack: bytes, ..limits },
                });
                Outcome::Done
            }
            _ => Outcome::of(self.call(op)),
        }
    }

    fn maps(&self) -> String {
        self.mm.maps()
    }

    fn flags(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.mm.for_each(|_, vma| all.push(vma.flags.to_string()));
        all
    }

    fn counts(&self) -> Counts {
        self.mm.counts()
    }

    fn vmas(&self) -> Vec<(Range<usize>, Vma)> {
        let mut all = Vec::new();
        self.mm.for_each(|range, vma| all.push((range, vma.clone())));
        all
    }

    fn ended_child(&self) -> &str {
        &self.ended_child
    }
}

/// What calls of a new process are made on, on this machine.
pub fn config(born: &Born, machine: &crate::machine::Machine) -> Config {
    Config {
        layout: born.layout,
        limits: born.limits,
        max_map_count: machine.max_map_count,
        commit_limit: machine.commit_limit,
        may_lock: born.has(CAP_IPC_LOCK),
        may_map_low: born.has(CAP_SYS_RAWIO),
        may_poison: born.has(CAP_SYS_ADMIN),
        anon_names: machine.anon_names,
        huge_pages: machine.huge_pages,
        memory_failure: machine.memory_failure,
        marks_guards: born.marks_guards,
        ..Config::default()
    }
}
