//! The threads of a program, and whose turn it is.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libc::{c_int, pid_t};
use pervma_linux::{Config, File, Limits, abi};

use crate::machine::Machine;
use crate::mirror::ask::file_of;
use crate::mirror::call::{Call, Kind};
use crate::mirror::fact::Fact;
use crate::mirror::held::{Held, HeldFiles};
use crate::mirror::record::Named;
use crate::mirror::space::Space;
use crate::mirror::tracee::{self, Event, FOREIGN};
use crate::mirror::{Command, Divergence, Ended, MirrorError, Report};
use crate::op::Op;
use crate::outcome::Outcome;
use crate::ptrace::Traced;
use crate::run::Tally;
use crate::session::Difference;

/// Calls in an address space after which flags and counts are compared, which are slow to read.
const SLOW_LOOKS: u64 = 64;
/// How long the end of what was killed is waited for: the kernel may be unable to end it.
const LONGEST_END: Duration = Duration::from_secs(30);
/// Divergences that are described.
const MOST_SHOWN: usize = 10;

/// Runs a program, and compares each of its mapping calls. The thread that calls it may trace
/// nothing else, and have no children. The limit of open files is raised as far as it may be.
///
/// # Errors
///
/// See [`MirrorError`].
pub fn mirror(machine: &Machine, command: &Command) -> Result<Report, MirrorError> {
    let started = tracee::start(&command.program, &command.arguments, command.output_to_errors);
    let root = started.map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS) => MirrorError::Trace(error),
        _ => MirrorError::Start(command.program.clone(), error),
    })?;
    let mut mirror = Mirror::new(machine, command, root);
    let alarm = command.limit.map(tracee::alarm).transpose();
    let done = alarm.map_err(MirrorError::from).and_then(|alarm| {
        let done = mirror.run(alarm);
        alarm.into_iter().for_each(tracee::kill);
        done
    });
    mirror.end()?;
    done.map(|()| mirror.report())
}

/// A traced thread.
#[derive(Debug)]
struct Task {
    /// The process that it is a thread of.
    process: pid_t,
    /// The number of its address space.
    space: usize,
    /// What it is doing.
    doing: Doing,
}

#[derive(Debug)]
enum Doing {
    /// It has not run yet.
    Starting,
    /// It runs.
    Running,
    /// It is stopped before a call, until it is its turn.
    Waiting(Call),
    /// The kernel makes its call.
    Calling(Call, Option<Arc<Held>>),
    /// It starts a thread or a process that shares its memory.
    Sharing(Sharing),
}

impl Task {
    /// Whether there may be a thread or a process that it has started, and has not said so yet.
    fn is_starter(&self) -> bool {
        match &self.doing {
            Doing::Calling(call, _) => matches!(call.kind, Kind::Fork),
            Doing::Sharing(_) => true,
            Doing::Starting | Doing::Running | Doing::Waiting(_) => false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Sharing {
    is_thread: bool,
    /// The name of the call.
    name: &'static str,
}

/// A thread that has stopped before it was known who it is.
#[derive(Debug)]
struct Early {
    /// Those that may have started it, and have not said so yet.
    starters: Vec<pid_t>,
    /// Whether it is about to end.
    is_exiting: bool,
}

struct Mirror<'a> {
    command: &'a Command,
    /// What results depend on beside the process.
    config: Config,
    root: pid_t,
    tasks: HashMap<pid_t, Task>,
    spaces: HashMap<usize, Space>,
    /// Limits of processes.
    limits: HashMap<pid_t, Limits>,
    files: HeldFiles,
    /// Threads that have stopped before it was known who they are.
    early: HashMap<pid_t, Early>,
    next_space: usize,
    begin: Instant,
    report: Report,
}

impl<'a> Mirror<'a> {
    fn new(machine: &Machine, command: &'a Command, root: pid_t) -> Self {
        let config = Config {
            max_map_count: machine.max_map_count,
            commit_limit: machine.commit_limit,
            anon_names: machine.anon_names,
            huge_pages: machine.huge_pages,
            memory_failure: machine.memory_failure,
            ..Config::default()
        };
        let report = Report {
            ended: Ended::Killed(libc::SIGKILL),
            limited: false,
            calls: 0,
            divergences: 0,
            resyncs: 0,
            threads: 0,
            forks: 0,
            waited: 0,
            by_call: Default::default(),
            facts: Default::default(),
            shown: Vec::new(),
            elapsed: Duration::ZERO,
            worked: Duration::ZERO,
            record: Default::default(),
        };
        let first = Task { process: root, space: usize::MAX, doing: Doing::Starting };
        Self {
            command,
            config,
            root,
            tasks: HashMap::from([(root, first)]),
            spaces: HashMap::new(),
            limits: HashMap::new(),
            files: HeldFiles::default(),
            early: HashMap::new(),
            next_space: 0,
            begin: Instant::now(),
            report,
        }
    }

    /// Handles events until the last thread has ended, or the time is over.
    fn run(&mut self, alarm: Option<pid_t>) -> Result<(), MirrorError> {
        while !self.tasks.is_empty() {
            let Some(event) = tracee::wait()? else { break };
            if Some(event.tid) == alarm {
                self.report.limited = true;
                break;
            }
            let begin = Instant::now();
            match self.handle(event) {
                // It was killed meanwhile, of which another event tells.
                Err(MirrorError::Io(error)) if is_gone(&error) => {}
                handled => handled?,
            }
            self.let_orphans_go()?;
            self.report.worked += begin.elapsed();
        }
        Ok(())
    }

    /// Kills what still runs, and waits for its end.
    fn end(&mut self) -> io::Result<()> {
        self.report.elapsed = self.begin.elapsed();
        let left: Vec<usize> = self.spaces.keys().copied().collect();
        for space in left {
            self.report.record.end(space, self.report.elapsed);
        }
        let kill = |tid| {
            tracee::kill(tid);
            // The signal does not wake a thread that stands at its exit. One that runs refuses.
            let _ = Traced(tid).request(libc::PTRACE_CONT, 0, 0);
        };
        self.tasks.keys().chain(self.early.keys()).for_each(|tid| kill(*tid));
        let end = Instant::now() + LONGEST_END;
        while let Some(Event { tid, status }) = tracee::wait_until(end)? {
            if libc::WIFSTOPPED(status) {
                // A child of which nothing was known yet, or a stop on the way to the end.
                kill(tid);
            } else if tid == self.root {
                self.report.ended = ended(status);
            }
        }
        Ok(())
    }

    fn report(self) -> Report {
        self.report
    }

    fn handle(&mut self, Event { tid, status }: Event) -> Result<(), MirrorError> {
        if !libc::WIFSTOPPED(status) {
            if tid == self.root {
                self.report.ended = ended(status);
            }
            return self.gone(tid);
        }
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            libc::PTRACE_EVENT_SECCOMP => self.enter(tid),
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                self.started(tid, status >> 16)
            }
            libc::PTRACE_EVENT_EXEC => self.replaced(tid),
            libc::PTRACE_EVENT_EXIT => self.exiting(tid),
            libc::PTRACE_EVENT_STOP => self.stopped(tid, signal),
            _ if signal == libc::SIGTRAP | 0x80 => self.leave(tid),
            // A signal, which is delivered.
            _ => go_on(tid, libc::PTRACE_CONT, signal),
        }
    }

    /// A thread has stopped for the first time, or because its process was stopped by a signal.
    fn stopped(&mut self, tid: pid_t, signal: c_int) -> Result<(), MirrorError> {
        match self.tasks.get_mut(&tid) {
            None => self.note_early(tid, false),
            Some(task) if matches!(task.doing, Doing::Starting) => {
                task.doing = Doing::Running;
                go_on(tid, libc::PTRACE_CONT, 0)?;
            }
            Some(_) => {
                let stays =
                    matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
                go_on(tid, if stays { libc::PTRACE_LISTEN } else { libc::PTRACE_CONT }, 0)?;
            }
        }
        Ok(())
    }

    fn note_early(&mut self, tid: pid_t, is_exiting: bool) {
        let starters = self.tasks.iter().filter(|(_, task)| task.is_starter());
        let starters = starters.map(|(starter, _)| *starter).collect();
        self.early
            .entry(tid)
            .and_modify(|early| early.is_exiting |= is_exiting)
            .or_insert(Early { starters, is_exiting });
    }

    /// Lets early threads go of which no other thread can say any more that it has started them. A
    /// thread is killed together with the one that has started it; of a process that lives on it
    /// would have to be known whose memory it has.
    fn let_orphans_go(&mut self) -> Result<(), MirrorError> {
        let Self { early, tasks, .. } = self;
        let is_starter = |tid: &pid_t| tasks.get(tid).is_some_and(Task::is_starter);
        let orphans = early.extract_if(|_, early| !early.starters.iter().any(is_starter));
        for (tid, Early { is_exiting, .. }) in orphans {
            if !is_exiting && number_in_status(tid, "Tgid:") == Some(tid) {
                let program = file_of(tid, "comm").unwrap_or_default().trim().to_owned();
                let reason = io::Error::other("it is not known which thread has started it");
                // It is killed with the others.
                self.early.insert(tid, Early { starters: Vec::new(), is_exiting });
                return Err(MirrorError::Begin { program, reason });
            }
            go_on(tid, libc::PTRACE_CONT, 0)?;
        }
        Ok(())
    }

    /// A thread is about to make a call.
    fn enter(&mut self, tid: pid_t) -> Result<(), MirrorError> {
        let call = Call::of(tid, &Traced(tid).registers()?);
        let Some(task) = self.tasks.get_mut(&tid) else { return go_on(tid, libc::PTRACE_CONT, 0) };
        let Some(space) = self.spaces.get_mut(&task.space) else {
            return go_on(tid, libc::PTRACE_CONT, 0);
        };
        if Traced(tid).message_of(libc::PTRACE_EVENT_SECCOMP)? == FOREIGN {
            let (program, call) = (space.program.clone(), "a 32-bit system call".to_owned());
            return Err(MirrorError::Unknown { program, call });
        }
        if !call.takes_turns() {
            let Kind::Share { is_thread } = call.kind else {
                task.doing = Doing::Running;
                return go_on(tid, libc::PTRACE_CONT, 0);
            };
            task.doing = Doing::Sharing(Sharing { is_thread, name: call.name });
            // If it fails, its end says so.
            return go_on(tid, libc::PTRACE_SYSCALL, 0);
        }
        if space.turn.is_some() {
            self.report.waited += 1;
            space.queue.push_back(tid);
            task.doing = Doing::Waiting(call);
            return Ok(());
        }
        self.let_through(tid, call)
    }

    /// Sets the limits of a thread's process in the model: others that share the memory may have
    /// other ones.
    fn limit(&self, tid: pid_t) {
        let Some(Task { process, space, .. }) = self.tasks.get(&tid) else { return };
        if let (Some(limits), Some(space)) = (self.limits.get(process), self.spaces.get(space)) {
            space.mm().set_limits(*limits);
        }
    }

    /// It is the turn of a thread: the kernel makes its call.
    fn let_through(&mut self, tid: pid_t, call: Call) -> Result<(), MirrorError> {
        self.limit(tid);
        let Self { tasks, spaces, report, files, .. } = self;
        let Some(task) = tasks.get_mut(&tid) else { return Ok(()) };
        let Some(space) = spaces.get_mut(&task.space) else { return Ok(()) };
        space.turn = Some(tid);
        let mut note = |fact| *report.facts.entry(fact).or_default() += 1;
        space.catch_up(&call.ranges(space.mm().brk(0)), &mut note)?;
        let file = match call.kind {
            Kind::Op(Op::Mmap { flags, .. }, Some(fd)) if flags & abi::MAP_ANONYMOUS == 0 => {
                files.of_descriptor(tid, fd)?
            }
            _ => None,
        };
        task.doing = Doing::Calling(call, file);
        go_on(tid, libc::PTRACE_SYSCALL, 0)
    }

    /// A call is over.
    fn leave(&mut self, tid: pid_t) -> Result<(), MirrorError> {
        let Some(task) = self.tasks.get_mut(&tid) else { return go_on(tid, libc::PTRACE_CONT, 0) };
        // If it was killed meanwhile, its result is seen when it exits.
        let kernel = Outcome::Returned(Traced(tid).registers()?.rax.cast_signed());
        let doing = std::mem::replace(&mut task.doing, Doing::Running);
        let Doing::Calling(call, file) = doing else { return go_on(tid, libc::PTRACE_CONT, 0) };
        let compared = self.compare(tid, &call, file, kernel);
        go_on(tid, libc::PTRACE_CONT, 0)?;
        compared?;
        self.pass_turn(tid)
    }

    /// Lets the next thread through.
    fn pass_turn(&mut self, tid: pid_t) -> Result<(), MirrorError> {
        let Some(task) = self.tasks.get(&tid) else { return Ok(()) };
        let number = task.space;
        self.pass_turn_in(number, tid)
    }

    fn pass_turn_in(&mut self, number: usize, tid: pid_t) -> Result<(), MirrorError> {
        let Some(space) = self.spaces.get_mut(&number).filter(|space| space.turn == Some(tid))
        else {
            return Ok(());
        };
        space.turn = None;
        while let Some(next) = space.queue.pop_front() {
            let Some(task) = self.tasks.get_mut(&next) else { continue };
            if let Doing::Waiting(call) = std::mem::replace(&mut task.doing, Doing::Running) {
                return match self.let_through(next, call) {
                    Err(MirrorError::Io(error)) if is_gone(&error) => self.pass_turn(next),
                    through => through,
                };
            }
        }
        Ok(())
    }

    /// Makes a call on the model, and compares.
    fn compare(
        &mut self,
        tid: pid_t,
        call: &Call,
        file: Option<Arc<Held>>,
        kernel: Outcome,
    ) -> Result<(), MirrorError> {
        let tally = self.report.by_call.entry(call.name).or_insert_with(none);
        if kernel.is_success() {
            tally.succeeded += 1;
        } else {
            tally.failed += 1;
        }
        self.limit(tid);
        let Some(Task { process, space, .. }) = self.tasks.get(&tid) else { return Ok(()) };
        let (process, number) = (*process, *space);
        let Self { tasks, spaces, report, limits, .. } = self;
        let Some(space) = spaces.get_mut(&number) else { return Ok(()) };
        let mut note = |fact| *report.facts.entry(fact).or_default() += 1;
        let result = match kernel {
            Outcome::Returned(value) if kernel.is_success() => usize::try_from(value).ok(),
            _ => None,
        };
        let mapped = result.and_then(|result| call.mapped(result));
        space.catch_up_late(&call.written_by_others(), mapped.as_ref(), &mut note)?;
        let as_file = |held: &Arc<Held>| Arc::clone(held) as Arc<dyn File>;
        let is_driver = file.as_ref().is_some_and(|file| file.is_driver);
        let file = file.as_ref().map(as_file);
        let mut again = None;
        let model = match &call.kind {
            Kind::Op(Op::Mmap { flags, .. }, _)
                if is_driver
                    || flags & (abi::MAP_HUGETLB | abi::MAP_ANONYMOUS)
                        == abi::MAP_HUGETLB | abi::MAP_ANONYMOUS =>
            {
                note(Fact::Driver);
                if let Some(addr) = result {
                    space.take_over(tid, addr, file)?;
                }
                None
            }
            Kind::Op(op, _) => {
                let mut op = op.clone();
                if let (Op::Mmap { addr, flags, .. }, Some(at)) = (&mut op, result)
                    && space.is_random(*flags)
                {
                    note(Fact::RandomAddress);
                    (*addr, *flags) = (at, *flags | abi::MAP_FIXED_NOREPLACE);
                }
                let outcome = space.make_told(&op, file.as_ref(), kernel);
                again = Some((op, file));
                outcome
            }
            Kind::Name { addr, len, name } => {
                Some(Outcome::done(space.mm().set_anon_name(*addr, *len, name.as_deref())))
            }
            Kind::ProcessMadvise { process: fd, ranges, advice } => {
                is_own(tid, process, *fd).then(|| match ranges {
                    Ok(ranges) => process_madvise(space, ranges, *advice, kernel),
                    Err(error) => Outcome::error(*error),
                })
            }
            Kind::Limit { process: target, which, new } => {
                // Any thread stands for its process.
                let target = match *target {
                    0 => process,
                    number => tasks.get(&number).map_or(number, |task| task.process),
                };
                if let (Some(_), Some(new), Some(limits)) = (result, new, limits.get_mut(&target)) {
                    set_limit(limits, *which, *new);
                }
                None
            }
            Kind::Privileges => {
                if result.is_some() && space.has_privileges(tid)? {
                    note(Fact::Privileges);
                }
                None
            }
            Kind::Attach => {
                if let Some(addr) = result {
                    note(Fact::SystemV);
                    space.take_over(tid, addr, None)?;
                }
                None
            }
            Kind::Detach(addr) => {
                if result.is_some() {
                    note(Fact::SystemV);
                    space.detach(*addr)?;
                }
                None
            }
            Kind::Ring(pointer) => {
                if result.is_some() {
                    note(Fact::AsyncRing);
                    let [ring] = tracee::read_words(tid, *pointer)?;
                    let ring = usize::try_from(ring).map_err(io::Error::other)?;
                    space.take_over(tid, ring, None)?;
                }
                None
            }
            Kind::RingEnds(addr) => {
                if result.is_some() {
                    note(Fact::AsyncRing);
                    space.unmap_at(*addr)?;
                }
                None
            }
            Kind::Unknown(what) if result.is_some() => {
                let (program, call) = (space.program.clone(), (*what).to_owned());
                return Err(MirrorError::Unknown { program, call });
            }
            Kind::Unknown(_) | Kind::Fork | Kind::Share { .. } | Kind::Other => None,
        };
        report.calls += u64::from(model.is_some());
        let mut difference = difference(kernel, model);
        if difference.is_none() {
            difference = space.compare(&mut note)?;
            while let (Some(_), Some((op, file))) = (&difference, &again)
                && let Some(outcome) = space.make_again(op, file.as_ref(), &mut note)?
            {
                if outcome == kernel {
                    difference = space.compare(&mut note)?;
                }
            }
        }
        space.compared += 1;
        if difference.is_none() && space.compared.is_multiple_of(SLOW_LOOKS) {
            difference = space.compare_slow(tid)?;
        }
        if let Some(difference) = difference {
            let call = format!("{} = {kernel}", describe(call));
            let program = space.program.clone();
            let divergence = Divergence { program, tid, call, difference };
            self.diverged(tid, number, divergence)?;
        }
        self.note_call(tid, number, call, mapped);
        Ok(())
    }

    fn diverged(
        &mut self,
        tid: pid_t,
        number: usize,
        divergence: Divergence,
    ) -> Result<(), MirrorError> {
        self.report.divergences += 1;
        self.report.resyncs += 1;
        if self.report.shown.len() < MOST_SHOWN {
            self.report.shown.push(divergence);
        }
        match self.spaces.get_mut(&number) {
            Some(space) => Ok(space.resync(tid)?),
            None => Ok(()),
        }
    }

    /// Notes a call for the picture.
    fn note_call(&mut self, tid: pid_t, number: usize, call: &Call, mapped: Option<Range<usize>>) {
        if !self.command.record {
            return;
        }
        let Some(space) = self.spaces.get(&number) else { return };
        let at = self.begin.elapsed();
        let new = mapped.as_ref().map(|range| [range.start, range.end]);
        let new = new.as_ref().map_or(&[][..], |new| new);
        let merged = self.report.record.map(number, space.mm(), at, new);
        let addr = mapped.map(|range| range.start).or_else(|| {
            let brk = space.mm().brk(0);
            let known = call.ranges(brk).into_iter().next().map(|range| range.start);
            known.filter(|addr| *addr != 0)
        });
        let moment =
            crate::mirror::Moment { space: number, tid, at, name: call.name, addr, merged };
        self.report.record.moments.push(moment);
    }

    fn note_space(&mut self, tid: pid_t, number: usize) {
        if !self.command.record {
            return;
        }
        if let Some(space) = self.spaces.get(&number) {
            let name = format!("{} ({tid})", space.program);
            self.report.record.spaces.push(Named { space: number, name });
            self.report.record.map(number, space.mm(), self.begin.elapsed(), &[]);
        }
    }

    /// A thread has started a thread or a process, which has not run yet.
    fn started(&mut self, tid: pid_t, event: c_int) -> Result<(), MirrorError> {
        let new = pid_t::try_from(Traced(tid).message_of(event)?).map_err(io::Error::other)?;
        let added = self.add(tid, new);
        go_on(tid, libc::PTRACE_CONT, 0)?;
        added?;
        self.pass_turn(tid)
    }

    /// Adds a thread or a process that a thread has started.
    fn add(&mut self, tid: pid_t, new: pid_t) -> Result<(), MirrorError> {
        let Some(task) = self.tasks.get_mut(&tid) else { return Ok(()) };
        let (process, number) = (task.process, task.space);
        let doing = std::mem::replace(&mut task.doing, Doing::Running);
        let (is_thread, space, is_fork) = match doing {
            Doing::Sharing(sharing) => (sharing.is_thread, number, false),
            _ => (false, self.next_space, true),
        };
        let name = match &doing {
            Doing::Calling(call, _) => call.name,
            Doing::Sharing(Sharing { name, .. }) => name,
            _ => "clone",
        };
        self.report.by_call.entry(name).or_insert_with(none).succeeded += 1;
        if is_thread {
            self.report.threads += 1;
        } else {
            self.report.forks += 1;
            if let Some(limits) = self.limits.get(&process).copied() {
                self.limits.insert(new, limits);
            }
        }
        let mut forked = Ok(());
        if is_fork {
            self.next_space += 1;
            forked = self.forked(tid, number, new, space);
        } else if let Some(space) = self.spaces.get_mut(&number) {
            space.users += 1;
        }
        let process = if is_thread { process } else { new };
        let mut task = Task { process, space, doing: Doing::Starting };
        if self.early.remove(&new).is_some() {
            task.doing = Doing::Running;
            go_on(new, libc::PTRACE_CONT, 0)?;
        }
        self.tasks.insert(new, task);
        forked
    }

    /// The memory of a process was copied.
    fn forked(
        &mut self,
        tid: pid_t,
        number: usize,
        child: pid_t,
        child_number: usize,
    ) -> Result<(), MirrorError> {
        self.limit(tid);
        let Self { spaces, report, .. } = self;
        let mut note = |fact| *report.facts.entry(fact).or_default() += 1;
        let Some(parent) = spaces.get_mut(&number) else { return Ok(()) };
        let mut space = parent.fork_after(child, &mut note)?;
        report.calls += 1;
        let program = space.program.clone();
        let mut differences = Vec::new();
        for (of, space, tid) in [(number, parent, tid), (child_number, &mut space, child)] {
            let mut difference = space.compare(&mut note)?;
            if difference.is_none() {
                difference = space.compare_slow(tid)?;
            }
            differences.extend(difference.map(|difference| (of, tid, difference)));
        }
        spaces.insert(child_number, space);
        for (of, tid, difference) in differences {
            let (program, call) = (program.clone(), "fork".to_owned());
            self.diverged(tid, of, Divergence { program, tid, call, difference })?;
        }
        self.note_space(child, child_number);
        Ok(())
    }

    /// A process has become another program.
    fn replaced(&mut self, tid: pid_t) -> Result<(), MirrorError> {
        // All other threads of the process have ended, and this one has its number.
        let others: Vec<pid_t> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.process == tid)
            .map(|(other, _)| *other)
            .collect();
        for other in others {
            self.gone(other)?;
        }
        let number = self.next_space;
        self.next_space += 1;
        let task = Task { process: tid, space: number, doing: Doing::Running };
        self.tasks.insert(tid, task);
        let space = match Space::begin(tid, &self.config, self.command.rule) {
            Ok(space) => space,
            // It was killed, and its end may have been seen there.
            Err(error) if is_gone(&error) => return self.gone(tid),
            Err(reason) => {
                let program = file_of(tid, "comm").unwrap_or_default().trim().to_owned();
                return Err(MirrorError::Begin { program, reason });
            }
        };
        *self.report.facts.entry(Fact::Begin).or_default() += 1;
        self.limits.insert(tid, space.mm().limits());
        self.spaces.insert(number, space);
        self.note_space(tid, number);
        self.look_at(tid, number, "execve")?;
        go_on(tid, libc::PTRACE_CONT, 0)
    }

    /// Compares everything.
    fn look_at(&mut self, tid: pid_t, number: usize, call: &str) -> Result<(), MirrorError> {
        self.limit(tid);
        let Self { spaces, report, .. } = self;
        let Some(space) = spaces.get_mut(&number) else { return Ok(()) };
        let mut note = |fact| *report.facts.entry(fact).or_default() += 1;
        let mut difference = space.compare(&mut note)?;
        if difference.is_none() {
            difference = space.compare_slow(tid)?;
        }
        let Some(difference) = difference else { return Ok(()) };
        let (program, call) = (space.program.clone(), call.to_owned());
        self.diverged(tid, number, Divergence { program, tid, call, difference })
    }

    /// A thread is about to end, and still has its memory.
    fn exiting(&mut self, tid: pid_t) -> Result<(), MirrorError> {
        if !self.tasks.contains_key(&tid) {
            // Its memory stays until it is known whose it is.
            self.note_early(tid, true);
            return Ok(());
        }
        let looked = self.look_at_last(tid);
        go_on(tid, libc::PTRACE_CONT, 0)?;
        looked
    }

    fn look_at_last(&mut self, tid: pid_t) -> Result<(), MirrorError> {
        self.add_unsaid(tid)?;
        self.compare_unsaid(tid)?;
        let last = self.tasks.get(&tid).and_then(|task| {
            let space = self.spaces.get(&task.space)?;
            (space.users == 1 && space.turn.is_none()).then_some(task.space)
        });
        match last {
            Some(number) => self.look_at(tid, number, "exit"),
            None => Ok(()),
        }
    }

    /// Compares the call of a thread that was killed before it could say that the call is over.
    fn compare_unsaid(&mut self, tid: pid_t) -> Result<(), MirrorError> {
        let Some(task) = self.tasks.get_mut(&tid) else { return Ok(()) };
        let Doing::Calling(call, file) = std::mem::replace(&mut task.doing, Doing::Running) else {
            return Ok(());
        };
        let kernel = Outcome::Returned(Traced(tid).registers()?.rax.cast_signed());
        // Otherwise it was killed before the kernel made the call.
        if !matches!(kernel.errno(), Some(libc::ENOSYS | libc::EINTR | 512..)) {
            self.compare(tid, &call, file, kernel)?;
        }
        self.pass_turn(tid)
    }

    /// Adds the process that a thread has started, if the thread was killed before it could say so.
    fn add_unsaid(&mut self, tid: pid_t) -> Result<(), MirrorError> {
        let Some(task) = self.tasks.get_mut(&tid).filter(|task| task.is_starter()) else {
            return Ok(());
        };
        if matches!(task.doing, Doing::Sharing(Sharing { is_thread: true, .. })) {
            // Such a thread is killed with this one.
            task.doing = Doing::Running;
            return Ok(());
        }
        // Without the file it is as if there were no child: an orphan then.
        let children = file_of(tid, &format!("task/{tid}/children")).unwrap_or_default();
        let new =
            children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child| {
                let tracer = number_in_status(*child, "TracerPid:");
                !self.tasks.contains_key(child) && tracer.is_some_and(|tracer| tracer != 0)
            });
        if let Some(new) = new {
            self.add(tid, new)?;
            return self.pass_turn(tid);
        }
        if let Some(task) = self.tasks.get_mut(&tid) {
            task.doing = Doing::Running;
        }
        Ok(())
    }

    /// A thread is no more.
    fn gone(&mut self, tid: pid_t) -> Result<(), MirrorError> {
        self.early.remove(&tid);
        let Some(task) = self.tasks.remove(&tid) else { return Ok(()) };
        if task.process == tid {
            self.limits.remove(&tid);
        }
        let Some(space) = self.spaces.get_mut(&task.space) else { return Ok(()) };
        space.users -= 1;
        space.queue.retain(|other| *other != tid);
        if space.users == 0 {
            self.spaces.remove(&task.space);
            self.report.record.end(task.space, self.begin.elapsed());
            return Ok(());
        }
        self.pass_turn_in(task.space, tid)
    }
}

fn none() -> Tally {
    Tally { succeeded: 0, failed: 0 }
}

fn ended(status: c_int) -> Ended {
    if libc::WIFEXITED(status) {
        Ended::Exited(libc::WEXITSTATUS(status))
    } else {
        Ended::Killed(libc::WTERMSIG(status))
    }
}

fn set_limit(limits: &mut Limits, which: u64, [soft, hard]: [u64; 2]) {
    match u32::try_from(which) {
        Ok(libc::RLIMIT_AS) => limits.address_space = soft,
        Ok(libc::RLIMIT_DATA) => (limits.data, limits.data_max) = (soft, hard),
        Ok(libc::RLIMIT_MEMLOCK) => limits.locked = soft,
        Ok(libc::RLIMIT_STACK) => limits.stack = soft,
        _ => {}
    }
}

/// Whether it says that a thread is no more, or is about to end.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// A number in the `status` file of a thread.
fn number_in_status(tid: pid_t, name: &str) -> Option<pid_t> {
    let status = file_of(tid, "status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

fn go_on(tid: pid_t, how: libc::c_uint, signal: c_int) -> Result<(), MirrorError> {
    let signal = usize::try_from(signal).unwrap_or(0);
    match Traced(tid).request(how, 0, signal) {
        Err(error) if is_gone(&error) => Ok(()),
        done => Ok(done?),
    }
}

/// The difference between two results, if the model has one.
fn difference(kernel: Outcome, model: Option<Outcome>) -> Option<Difference> {
    let model = model.filter(|model| *model != kernel)?;
    Some(Difference { what: "result", kernel: kernel.to_string(), model: model.to_string() })
}

/// Whether a descriptor of a process is the process's own.
fn is_own(tid: pid_t, process: pid_t, fd: c_int) -> bool {
    /// `PIDFD_SELF_THREAD` and `PIDFD_SELF_THREAD_GROUP`.
    const SELF: [c_int; 2] = [-10_000, -10_001];
    let own = format!("Pid:\t{process}");
    SELF.contains(&fd)
        || file_of(tid, &format!("fdinfo/{fd}"))
            .is_ok_and(|info| info.lines().any(|line| line == own))
}

/// `process_madvise` of the caller's own memory: up to the first range that fails.
fn process_madvise(
    space: &mut Space,
    ranges: &[(usize, usize)],
    advice: i32,
    kernel: Outcome,
) -> Outcome {
    let mut done = 0;
    let is_empty = ranges.iter().all(|(_, len)| *len == 0);
    for (number, &(addr, len)) in ranges.iter().enumerate() {
        // An empty range is looked at only as the first of some that are not empty.
        if len == 0 && (is_empty || number > 0) {
            continue;
        }
        let op = Op::Madvise { addr, len, advice };
        match space.make_told(&op, None, kernel) {
            Some(Outcome::Returned(0)) => done += len,
            Some(failed) if done == 0 => return failed,
            _ => break,
        }
    }
    Outcome::of(Ok(done))
}

fn describe(call: &Call) -> String {
    match &call.kind {
        Kind::Op(op, Some(fd)) => format!("{op} of descriptor {fd}"),
        Kind::Op(op, None) => op.to_string(),
        Kind::Name { addr, len, name } => format!("prctl({addr:#x}, {len:#x}, {name:?})"),
        Kind::ProcessMadvise { ranges, advice, .. } => {
            let ranges: Vec<_> = ranges.iter().flatten().collect();
            format!("process_madvise({ranges:x?}, {advice})")
        }
        _ => call.name.to_owned(),
    }
}
