//! The process and the model, compared step by step.

use std::fmt;
use std::io;

use libc::c_long;
use pervma_linux::Config;

use crate::child::{Child, FIRST_FD, InitialState, Privileges, name_at};
use crate::compare::{self, Objects};
use crate::files::{Files, OpenFiles};
use crate::machine::Machine;
use crate::model::{self, Subject};
use crate::op::{Op, Which};
use crate::outcome::Outcome;

/// The number of `mseal`, which `libc` does not have on all targets.
const SYS_MSEAL: c_long = 462;
/// `PR_SET_VMA`, which is used with `PR_SET_VMA_ANON_NAME`, which is 0.
const PR_SET_VMA: u64 = 0x5356_4d41;
/// Steps after which flags and counts are compared, which are slow to read.
const SLOW_LOOKS: usize = 32;

/// A process, and a model that must do the same.
pub(crate) struct Session<S> {
    child: Child,
    subject: S,
    objects: Objects,
    steps: usize,
    /// The map of the last child that was looked at and has ended.
    ended_child: Option<String>,
    files: Files,
    initial: InitialState,
}

/// A difference between the two sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The part that differs: the result, the map, flags or counts.
    pub what: &'static str,
    /// The kernel's.
    pub kernel: String,
    /// The model's.
    pub model: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, kernel, model } = self;
        if kernel.contains('\n') || model.contains('\n') {
            write!(f, "{what}: the kernel has\n{kernel}and the model has\n{model}")
        } else {
            write!(f, "{what}: the kernel says {kernel}, the model says {model}")
        }
    }
}

impl<S: Subject> Session<S> {
    /// Starts a process, and makes a model of it with `make`.
    pub(crate) fn begin(
        machine: &Machine,
        privileges: Privileges,
        make: impl FnOnce(&Config, &OpenFiles) -> S,
    ) -> io::Result<Self> {
        let files = Files::new()?;
        let (child, initial) = Child::spawn(files.descriptors(), privileges)?;
        let mut subject = make(&model::config(&initial, machine), files.opened());
        initial.special.iter().for_each(|special| subject.adopt(special));
        let objects = Objects::default();
        Ok(Self { child, subject, objects, steps: 0, ended_child: None, files, initial })
    }

    /// The state of the process before its first call.
    pub(crate) fn initial(&self) -> &InitialState {
        &self.initial
    }

    /// The files as the model has them, by their numbers in steps.
    pub(crate) fn files(&self) -> &OpenFiles {
        self.files.opened()
    }

    /// The model.
    pub(crate) fn subject(&self) -> &S {
        &self.subject
    }

    /// Makes a step on both sides, and compares results and maps.
    pub(crate) fn step(&mut self, op: &Op) -> io::Result<(Outcome, Option<Difference>)> {
        match self.step_alone(op)? {
            (outcome, None) => Ok((outcome, self.compare()?)),
            differing => Ok(differing),
        }
    }

    /// Makes a step on both sides, and compares only the results.
    pub(crate) fn step_alone(&mut self, op: &Op) -> io::Result<(Outcome, Option<Difference>)> {
        let kernel = self.on_kernel(op)?;
        let model = self.subject.step(op);
        self.steps += 1;
        let difference = (kernel != model).then(|| Difference {
            what: "result",
            kernel: kernel.to_string(),
            model: model.to_string(),
        });
        Ok((kernel, difference))
    }

    /// Compares the maps, and at intervals flags and counts.
    pub(crate) fn compare(&mut self) -> io::Result<Option<Difference>> {
        let maps = self.subject.maps();
        let bytes = self.child.maps()?;
        let kernel = String::from_utf8_lossy(bytes);
        if !self.objects.same_maps(&kernel, &maps) {
            let kernel = kernel.into_owned();
            return Ok(Some(Difference { what: "map", kernel, model: maps }));
        }
        if let Some(kernel) = self.ended_child.take() {
            let model = self.subject.ended_child();
            if !self.objects.same_maps(&kernel, model) {
                let model = model.to_owned();
                return Ok(Some(Difference { what: "map of the fork's child", kernel, model }));
            }
        }
        if !self.steps.is_multiple_of(SLOW_LOOKS) {
            return Ok(None);
        }
        self.compare_slow()
    }

    /// Compares flags and counts.
    pub(crate) fn compare_slow(&mut self) -> io::Result<Option<Difference>> {
        let flags = compare::flags_of_smaps(&self.child.file("smaps")?);
        let model = self.subject.flags();
        if flags != model {
            let lines = |flags: Vec<String>| flags.into_iter().map(|line| line + "\n").collect();
            let (kernel, model) = (lines(flags), lines(model));
            return Ok(Some(Difference { what: "flags", kernel, model }));
        }
        let counts = compare::counts_of_status(&self.child.file("status")?);
        let model = compare::counts_in_kib(self.subject.counts());
        Ok((counts != model).then(|| Difference {
            what: "counts",
            kernel: format!("{counts:?}"),
            model: format!("{model:?}"),
        }))
    }

    fn on_kernel(&mut self, op: &Op) -> io::Result<Outcome> {
        let (number, arguments) = match *op {
            Op::Touch { addr, access } => {
                return self.child.touch(addr, access).map(Outcome::Touched);
            }
            Op::Force { addr, access } => {
                let done = self.child.force(addr, access)?;
                // One byte, or an error.
                return Ok(Outcome::Returned(done.min(0)));
            }
            Op::AddSeals { file, seals } => return Ok(self.files.add_seals(file, seals)),
            Op::Truncate { file, pages } => return Ok(self.files.truncate(file, pages)),
            Op::Rename { file, name } => return Ok(self.files.rename(file, Some(name))),
            Op::Unlink { file } => return Ok(self.files.rename(file, None)),
            Op::Fork { child_goes_on } => {
                let mut child = match self.child.fork()? {
                    Ok(child) => child,
                    Err(error) => return Ok(Outcome::Returned(error)),
                };
                if child_goes_on {
                    self.child = child;
                } else {
                    let maps = String::from_utf8_lossy(child.maps()?).into_owned();
                    self.ended_child = Some(maps);
                }
                return Ok(Outcome::Done);
            }
            Op::Limit { which, bytes } => {
                let old = self.child.limit(resource(which))?;
                let new = match which {
                    Which::DataMax => {
                        libc::rlimit { rlim_cur: old.rlim_cur.min(bytes), rlim_max: bytes }
                    }
                    _ => libc::rlimit { rlim_cur: bytes, ..old },
                };
                return Ok(match self.child.set_limit(resource(which), new) {
                    Ok(()) => Outcome::Done,
                    error => Outcome::of_io(error),
                });
            }
            ref call => system_call(call),
        };
        self.child.call(number, arguments).map(Outcome::Returned)
    }
}

fn resource(which: Which) -> libc::__rlimit_resource_t {
    match which {
        Which::AddressSpace => libc::RLIMIT_AS,
        Which::Data | Which::DataMax => libc::RLIMIT_DATA,
        Which::Locked => libc::RLIMIT_MEMLOCK,
        Which::Stack => libc::RLIMIT_STACK,
    }
}

/// The number of the system call, and its arguments.
fn system_call(op: &Op) -> (c_long, [u64; 6]) {
    let word = |word: usize| word as u64;
    let int = |int: i32| i64::from(int).cast_unsigned();
    let three = |addr, len, third| [word(addr), word(len), third, 0, 0, 0];
    match *op {
        Op::Mmap { addr, len, prot, flags, file, offset } => {
            // What is not in the list is not open.
            let index = file.and_then(|file| i32::try_from(file).ok());
            let file = int(index.map_or(-1, |index| FIRST_FD + index));
            (libc::SYS_mmap, [word(addr), word(len), prot, flags, file, offset])
        }
        Op::Munmap { addr, len } => (libc::SYS_munmap, three(addr, len, 0)),
        Op::Mprotect { addr, len, prot } => (libc::SYS_mprotect, three(addr, len, prot)),
        Op::PkeyMprotect { addr, len, prot, key } => {
            (libc::SYS_pkey_mprotect, [word(addr), word(len), prot, int(key), 0, 0])
        }
        Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
            let new = word(new_addr);
            (libc::SYS_mremap, [word(addr), word(old_len), word(new_len), flags, new, 0])
        }
        Op::Madvise { addr, len, advice } => (libc::SYS_madvise, three(addr, len, int(advice))),
        Op::Mlock { addr, len } => (libc::SYS_mlock, three(addr, len, 0)),
        Op::Mlock2 { addr, len, flags } => (libc::SYS_mlock2, three(addr, len, int(flags))),
        Op::Munlock { addr, len } => (libc::SYS_munlock, three(addr, len, 0)),
        Op::Mlockall { flags } => (libc::SYS_mlockall, [int(flags), 0, 0, 0, 0, 0]),
        Op::Munlockall => (libc::SYS_munlockall, [0; 6]),
        Op::Brk { addr } => (libc::SYS_brk, [word(addr), 0, 0, 0, 0, 0]),
        Op::Mseal { addr, len, flags } => (SYS_MSEAL, three(addr, len, flags)),
        Op::Msync { addr, len, flags } => (libc::SYS_msync, three(addr, len, int(flags))),
        Op::Mincore { addr, len, vector } => (libc::SYS_mincore, three(addr, len, word(vector))),
        Op::Name { addr, len, name } => {
            let name = name.map_or(0, |name| word(name_at(name)));
            (libc::SYS_prctl, [PR_SET_VMA, 0, word(addr), word(len), name, 0])
        }
        // These are no system calls of the process.
        Op::Touch { .. }
        | Op::Force { .. }
        | Op::Fork { .. }
        | Op::Limit { .. }
        | Op::AddSeals { .. }
        | Op::Truncate { .. }
        | Op::Rename { .. }
        | Op::Unlink { .. } => (libc::SYS_getpid, [0; 6]),
    }
}
