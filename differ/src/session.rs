//! The process and the model, compared step by step.

use std::fmt;
use std::io;

use pervma_linux::Config;

use crate::child::{Child, FIRST_FD, InitialState, Privileges};
use crate::compare::{self, Objects};
use crate::files::{self, Files, OpenFiles};
use crate::machine::Machine;
use crate::model::{self, Subject};
use crate::op::{Op, Which};
use crate::outcome::Outcome;
use crate::probe::Calls;
use crate::syscall::system_call;

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
            Op::Adopt => {
                // What has no number in the process gets new ones in the model.
                self.objects = Objects::default();
                return Ok(Outcome::Done);
            }
            Op::Open { at } => {
                let Some(name) = self.child.map_file(at)? else { return Ok(Outcome::Done) };
                let number = FIRST_FD + files::AGAIN as i32;
                let opened = self.child.open_map_file(&name, number)?;
                if opened != 0 {
                    return Ok(Outcome::Returned(opened));
                }
                self.files.open_again(&self.child.path_of_map_file(&name))?;
                return Ok(Outcome::Done);
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
            Op::Capability { which, has } => {
                let done = self.child.set_capability(which.number(), has)?;
                return Ok(Outcome::Returned(done));
            }
            Op::SetAddress { option, addr, by_map: true } => {
                return self.child.set_addresses(option, addr).map(Outcome::Returned);
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
