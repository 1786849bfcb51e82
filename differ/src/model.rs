//! The model that is compared with the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pervma_linux::{
    Access, Backing, Config, Counts, Errno, File, Layout, Limits, Mm, Object, Part, Refusal,
    Source, StdPlatform, VmFlags, Vma, abi,
};

use crate::child::{
    CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_RAWIO, CAP_SYS_RESOURCE, CODE, InitialState, Special,
};
use crate::files::{self, OpenFiles, Opened};
use crate::guards::Guards;
use crate::machine::Machine;
use crate::op::{Capability, NAMES, Op, Which};
use crate::outcome::Outcome;

/// A model that makes steps, to be compared with the kernel.
pub trait Subject {
    /// Takes over a mapping that the process has from the start.
    fn adopt(&mut self, special: &Special);

    /// Makes a step, and returns its outcome.
    fn step(&mut self, op: &Op) -> Outcome;

    /// Returns the map as `/proc/PID/maps` shows it.
    fn maps(&self) -> String;

    /// Returns the flags of each mapping, in order of address.
    fn flags(&self) -> Vec<String>;

    /// Returns the counts of pages.
    fn counts(&self) -> Counts;

    /// Returns the machine and the process as they are now.
    fn config(&self) -> Config;

    /// Returns the mappings, on which the next step is generated.
    fn vmas(&self) -> Vec<(Range<usize>, Vma)>;

    /// Returns the map of the last child that was looked at and has ended.
    fn ended_child(&self) -> &str;
}

/// An [`Mm`] with files that end and with guard pages.
#[derive(Debug)]
pub struct Model {
    mm: Mm<Pages, StdPlatform>,
    files: Vec<Option<Arc<Opened>>>,
    ended_child: String,
}

/// The guard pages, and those of the kernel's own mappings that are not there, by its name. What is
/// in an `Arc` is shared with the children of a fork.
#[derive(Debug, Default)]
struct Pages {
    guards: Guards,
    /// The shared anonymous memory that was opened, by its number.
    objects: Arc<Mutex<BTreeMap<u64, Opened>>>,
    absent: Arc<Mutex<BTreeMap<Arc<str>, BTreeSet<u64>>>>,
}

impl Pages {
    /// The file that shared anonymous memory is.
    fn object(&self, object: &Object) -> Opened {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.entry(object.number).or_insert_with(|| Opened::of_object(object)).clone()
    }

    /// The highest number of what was opened.
    fn last_object(&self) -> Option<u64> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.last_key_value().map(|(number, _)| *number)
    }

    /// One without guard pages, of the same process or of its child.
    fn child(&self) -> Self {
        let (objects, absent) = (Arc::clone(&self.objects), Arc::clone(&self.absent));
        Self { guards: Guards::default(), objects, absent }
    }
}

impl Backing for Pages {
    fn fault(&self, part: Part<'_>, _access: Access) -> Result<(), Refusal> {
        let pages = (part.range.end - part.range.start) / abi::PAGE;
        let size = match &part.vma.source {
            Source::SharedAnonymous(object) => self.object(object).pages(),
            _ => Opened::of(part.vma).map_or(usize::MAX, Opened::pages),
        };
        let first = usize::try_from(part.page_offset).unwrap_or(usize::MAX);
        let is_absent = match &part.vma.source {
            Source::Special(name) => {
                let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
                let touched = part.page_offset..part.page_offset + pages as u64;
                absent.get(name).is_some_and(|absent| absent.range(touched).next().is_some())
            }
            _ => false,
        };
        // A guard page is met before the file is asked.
        if let Some(addr) = self.guards.first(part.range) {
            Err(Refusal::Guard { addr })
        } else if is_absent || pages > size.saturating_sub(first) && !part.vma.is_anonymous() {
            Err(Refusal::Bus)
        } else {
            Ok(())
        }
    }

    fn sync(&self, part: Part<'_>) -> Result<(), Errno> {
        Opened::of(part.vma).map_or(Ok(()), Opened::sync)
    }

    fn unmap(&self, range: Range<usize>) {
        self.guards.take(range);
    }

    fn relocate(&self, from: Range<usize>, to: usize) {
        self.guards.relocate(from, to);
    }

    fn copy(&self, part: Part<'_>, child: &Self) {
        self.guards.copy(part.range, &child.guards);
    }

    fn advise(&self, part: Part<'_>, advice: i32) -> Result<(), Errno> {
        match advice {
            abi::MADV_GUARD_INSTALL => self.guards.install(part.range),
            abi::MADV_GUARD_REMOVE => _ = self.guards.take(part.range),
            // The process has no huge pages.
            abi::MADV_COLLAPSE => return Err(Errno::EINVAL),
            abi::MADV_REMOVE => {
                let pages = (part.range.end - part.range.start) / abi::PAGE;
                let end = part.page_offset.saturating_add(pages as u64);
                return Opened::of(part.vma).map_or(Ok(()), |file| file.punch(end));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Model {
    /// Makes the model of a process that has just been started.
    #[must_use]
    pub fn new(config: &Config, files: &OpenFiles) -> Self {
        let mm = Mm::new(Pages::default(), *config);
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

    /// The file with this number, if it is open.
    fn file(&self, number: usize) -> Result<&Arc<Opened>, Errno> {
        self.files.get(number).and_then(Option::as_ref).ok_or(Errno::EBADF)
    }

    fn fork(&mut self, child_goes_on: bool) -> Result<(), Errno> {
        let child = self.mm.fork(self.mm.backing().child())?;
        if child_goes_on {
            self.mm = child;
        } else {
            self.ended_child = child.maps()?;
        }
        Ok(())
    }

    /// Opens the memory that is mapped at an address.
    fn open(&mut self, at: usize) {
        let Ok(Some((_, vma))) = self.mm.lookup(at) else { return };
        let again = match &vma.source {
            Source::SharedAnonymous(object) => self.mm.backing().object(object).again(),
            _ => Opened::of(&vma).and_then(Opened::again),
        };
        if let Some(file) = again {
            self.files[files::AGAIN] = Some(Arc::new(file));
        }
    }

    /// Makes another map of what is mapped, by what anyone can know of this one.
    fn begin_anew(&mut self) -> Result<(), Errno> {
        let old = &self.mm;
        let new = Mm::new(old.backing().child(), old.config());
        // What is open and not mapped has a number too, which no other memory may get.
        if let Some(number) = old.backing().last_object() {
            let source = Source::SharedAnonymous(Arc::new(Object { number, size: 0 }));
            let flags = VmFlags::default();
            let vma = Vma { flags, page_offset: 0, source, anon: None, name: None };
            new.adopt(0..abi::PAGE, vma)?;
            new.munmap(0, abi::PAGE)?;
        }
        for (range, vma) in self.vmas() {
            new.adopt(range, vma)?;
        }
        new.adopt_counts(old.counts())?;
        old.backing().guards.move_all(&new.backing().guards);
        self.mm = new;
        Ok(())
    }

    fn set_limit(&self, which: Which, bytes: u64) {
        let limits = self.mm.limits();
        self.mm.set_limits(match which {
            Which::AddressSpace => Limits { address_space: bytes, ..limits },
            Which::Data => Limits { data: bytes, ..limits },
            Which::DataMax => Limits { data: limits.data.min(bytes), data_max: bytes, ..limits },
            Which::Locked => Limits { locked: bytes, ..limits },
            Which::Stack => Limits { stack: bytes, ..limits },
        });
    }
}

impl Subject for Model {
    fn adopt(&mut self, special: &Special) {
        let Special { range, flags, name, absent } = special;
        let source = Source::Special(Arc::clone(name));
        let vma = Vma { flags: *flags, page_offset: 0, source, anon: None, name: None };
        // It cannot fail; if it did, the map would be a difference.
        let _ = self.mm.adopt(range.clone(), vma);
        let all = &self.mm.backing().absent;
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(Arc::clone(name), absent.clone());
    }

    fn step(&mut self, op: &Op) -> Outcome {
        let file = match *op {
            Op::Mmap { file: Some(file), .. } => self.file(file).ok(),
            _ => None,
        };
        let file = file.map(|file| Arc::clone(file) as Arc<dyn File>);
        if let Some(outcome) = make(&self.mm, op, file.as_ref()) {
            return outcome;
        }
        Outcome::done(match *op {
            Op::Fork { child_goes_on } => match self.fork(child_goes_on) {
                Ok(()) => return Outcome::Done,
                Err(error) => Err(error),
            },
            Op::Limit { which, bytes } => {
                self.set_limit(which, bytes);
                return Outcome::Done;
            }
            Op::Capability { which, has } => self.mm.configure(|config| match which {
                Capability::Lock => config.may_lock = has,
                Capability::RawIo => config.may_map_low = has,
                Capability::Resource => config.may_set_addresses = has,
            }),
            Op::SetAddress { option, addr, by_map: false } => self.mm.set_address(option, addr),
            Op::SetAddress { option, addr, by_map: true } => {
                let mut layout = self.mm.config().layout;
                if let Some(part) = part(&mut layout, option) {
                    *part = addr;
                }
                self.mm.set_addresses(layout)
            }
            Op::Adopt => match self.begin_anew() {
                Ok(()) => return Outcome::Done,
                Err(error) => Err(error),
            },
            Op::Open { at } => {
                self.open(at);
                return Outcome::Done;
            }
            Op::AddSeals { file, seals } => {
                let vmas = self.vmas().into_iter().map(|(_, vma)| vma);
                self.file(file).and_then(|file| file.add_seals(seals, vmas))
            }
            Op::Truncate { file, pages } => self.file(file).and_then(|file| file.truncate(pages)),
            Op::Rename { file, name } => self.file(file).and_then(|file| file.rename(Some(name))),
            Op::Unlink { file } => self.file(file).and_then(|file| file.rename(None)),
            _ => Ok(()),
        })
    }

    fn maps(&self) -> String {
        // It cannot fail; if it did, the text would be a difference.
        self.mm.maps().unwrap_or_else(|error| error.to_string())
    }

    fn flags(&self) -> Vec<String> {
        self.vmas().iter().map(|(_, vma)| vma.flags.to_string()).collect()
    }

    fn counts(&self) -> Counts {
        self.mm.counts()
    }

    fn config(&self) -> Config {
        self.mm.config()
    }

    fn vmas(&self) -> Vec<(Range<usize>, Vma)> {
        let mut all = Vec::new();
        let seen = self.mm.for_each(|range, vma| all.push((range, vma.clone())));
        debug_assert_eq!(seen, Ok(()), "no call is under way");
        all
    }

    fn ended_child(&self) -> &str {
        &self.ended_child
    }
}

/// The address that an option of `prctl(PR_SET_MM)` is about.
fn part(layout: &mut Layout, option: i32) -> Option<&mut usize> {
    Some(match option {
        abi::PR_SET_MM_START_CODE => &mut layout.start_code,
        abi::PR_SET_MM_END_CODE => &mut layout.end_code,
        abi::PR_SET_MM_START_DATA => &mut layout.start_data,
        abi::PR_SET_MM_END_DATA => &mut layout.end_data,
        abi::PR_SET_MM_START_STACK => &mut layout.start_stack,
        abi::PR_SET_MM_START_BRK => &mut layout.start_brk,
        abi::PR_SET_MM_BRK => &mut layout.brk,
        abi::PR_SET_MM_ARG_START => &mut layout.arg_start,
        abi::PR_SET_MM_ARG_END => &mut layout.arg_end,
        abi::PR_SET_MM_ENV_START => &mut layout.env_start,
        abi::PR_SET_MM_ENV_END => &mut layout.env_end,
        _ => return None,
    })
}

/// Makes a step that is a call on the map or a touch, with the file that an `mmap` names; `None`
/// for all other steps.
pub(crate) fn make<B: Backing>(
    mm: &Mm<B, StdPlatform>,
    op: &Op,
    file: Option<&Arc<dyn File>>,
) -> Option<Outcome> {
    Some(Outcome::done(match *op {
        Op::Mmap { addr, len, prot, flags, offset, .. } => {
            return Some(Outcome::of(mm.mmap(addr, len, prot, flags, file, offset)));
        }
        Op::Munmap { addr, len } => mm.munmap(addr, len),
        Op::Mprotect { addr, len, prot } => mm.mprotect(addr, len, prot),
        Op::PkeyMprotect { addr, len, prot, key } => mm.pkey_mprotect(addr, len, prot, key),
        Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
            return Some(Outcome::of(mm.mremap(addr, old_len, new_len, flags, new_addr)));
        }
        Op::Madvise { addr, len, advice } => mm.madvise(addr, len, advice),
        Op::Mlock { addr, len } => mm.mlock(addr, len),
        Op::Mlock2 { addr, len, flags } => mm.mlock2(addr, len, flags),
        Op::Munlock { addr, len } => mm.munlock(addr, len),
        Op::Mlockall { flags } => mm.mlockall(flags),
        Op::Munlockall => mm.munlockall(),
        Op::Brk { addr } => return Some(Outcome::of(Ok(mm.brk(addr)))),
        Op::Mseal { addr, len, flags } => mm.mseal(addr, len, flags),
        Op::Msync { addr, len, flags } => mm.msync(addr, len, flags),
        Op::Mincore { addr, len, vector } => mm.mincore(addr, len, vector),
        Op::Name { addr, len, name } => {
            mm.set_anon_name(addr, len, name.and_then(|name| NAMES.get(name).copied()))
        }
        Op::Touch { addr, access } => return Some(Outcome::Touched(mm.fault(addr, access))),
        Op::Force { addr, access } => mm.access_forced(addr, access),
        Op::Fork { .. }
        | Op::Limit { .. }
        | Op::Capability { .. }
        | Op::SetAddress { .. }
        | Op::Adopt
        | Op::Open { .. }
        | Op::AddSeals { .. }
        | Op::Truncate { .. }
        | Op::Rename { .. }
        | Op::Unlink { .. } => return None,
    }))
}

/// The configuration of a new process on this machine.
pub(crate) fn config(initial: &InitialState, machine: &Machine) -> Config {
    Config {
        layout: initial.layout,
        limits: initial.limits,
        lowest_choice: initial.lowest_choice,
        mmap_min_addr: initial.mmap_min_addr,
        max_map_count: machine.max_map_count,
        commit_limit: machine.commit_limit,
        may_lock: initial.has(CAP_IPC_LOCK),
        may_map_low: initial.has(CAP_SYS_RAWIO),
        may_poison: initial.has(CAP_SYS_ADMIN),
        may_set_addresses: initial.has(CAP_SYS_RESOURCE),
        anon_names: machine.anon_names,
        huge_pages: machine.huge_pages,
        memory_failure: machine.memory_failure,
        marks_guards: initial.marks_guards,
        ..Config::default()
    }
}
