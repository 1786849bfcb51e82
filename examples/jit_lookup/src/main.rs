//! Which function is this? A profiler's signal handler asks the map of a JIT's code, while other
//! threads load and unload code without pause.
//!
//! A JIT knows where each of its functions lies. A profiler interrupts threads at any instruction
//! and wants the name that belongs to the program counter. Its handler may have interrupted
//! anything, also the thread that is changing that very map: it must not wait for a lock, must not
//! allocate, and must not drop what it was the last to hold. That is what
//! [`AddressSpace::try_read`] is for.
//!
//! Four threads run for a second, each interrupted 5000 times a second:
//!
//! - two *runners* call functions, which keeps these from being unloaded meanwhile;
//! - two *compilers* load new functions where old ones have been unloaded, so the same address
//!   belongs to another function every few microseconds.
//!
//! How can the handler know that the map's answer is right? The functions are real machine code
//! (`code.rs`) that carries its own name: a number, in an instruction and while it runs in a
//! register. So there are witnesses for each answer, and any contradiction fails the program.
#![expect(clippy::disallowed_types, reason = "counters, and a flag that only says: stop")]

mod code;
mod sampling;

use std::collections::VecDeque;
use std::error::Error;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use pervma::{AddressSpace, GapSearch, Payload, ReadError};

use crate::code::CodeMemory;
use crate::sampling::{Sample, Timer};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The map: where code lies, to the byte. A handler finds it because it is a `static`.
static CODE: AddressSpace<Function> = AddressSpace::new(1);

/// The memory that the map describes.
static MEMORY: OnceLock<CodeMemory> = OnceLock::new();

/// What the map holds for a range of code.
struct Function {
    id: u32,
    /// Owns memory, so the handler must not drop it. It cannot, since what is removed from the map
    /// comes back to the thread that removed it.
    name: String,
    kind: usize,
    /// Readers share a payload, so what they change in it is atomic.
    samples: AtomicU64,
}

/// A function is loaded and unloaded as a whole: its VMA is neither split nor merged.
impl Payload for Function {}

/// Kinds of functions and how long they run, in turns of a loop.
const KINDS: [(&str, u32); 3] = [("parse", 8_000), ("eval", 16_000), ("collect", 32_000)];

/// Counts of how lookups of the handler ended.
struct Counts {
    hit: AtomicU64,
    not_mapped: AtomicU64,
    /// Not known at the moment: a sample is lost.
    locked: AtomicU64,
    /// The map and the code contradict each other.
    wrong: AtomicU64,
}

impl Counts {
    const fn new() -> Self {
        const fn zero() -> AtomicU64 {
            AtomicU64::new(0)
        }
        Self { hit: zero(), not_mapped: zero(), locked: zero(), wrong: zero() }
    }

    fn values(&self) -> [u64; 4] {
        [&self.hit, &self.not_mapped, &self.locked, &self.wrong].map(|count| count.load(Relaxed))
    }
}

/// Of the instructions that were interrupted.
static PRESENT: Counts = Counts::new();

/// Of addresses that were recorded earlier.
static PAST: Counts = Counts::new();

// --- The handler: everything that this example is about ------------------------------------------

/// Is called by the signal handler, inside a `HandlerScope`.
fn on_sample(sample: Sample) {
    look_up(sample.pc, Some(sample.register), &PRESENT);
    // Processors also record addresses on their own and hand them over in batches, when the code
    // may be gone already. Here such a batch is made of random addresses.
    if let Some(memory) = MEMORY.get() {
        for _ in 0..16 {
            static RANDOM: AtomicU64 = AtomicU64::new(0);
            let random = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed) >> 32;
            look_up(memory.range().start + random as usize % memory.range().len(), None, &PAST);
        }
    }
}

/// Looks an address up and counts how that ends. `running` is the result's register, if the thread
/// that we have interrupted is just there.
fn look_up(addr: usize, running: Option<u32>, counts: &Counts) {
    let count = match CODE.try_read(addr) {
        // The guard is a read lock: until it is dropped, at the end of this arm, no thread unloads
        // the function, and a profiler would copy its name into a buffer.
        Ok(function) if is_right(&function, function.range(), addr, running) => {
            function.samples.fetch_add(running.is_some().into(), Relaxed);
            &counts.hit
        }
        // A thread edits the map, perhaps the very one that we have interrupted (`OwnEdit`); or it
        // is about to unload this function and waits for its readers (`OwnExclusion`). To wait for
        // it here could be to wait for ever, so the sample is given up.
        Err(
            ReadError::Locked { .. } | ReadError::OwnEdit { .. } | ReadError::OwnExclusion { .. },
        ) => &counts.locked,
        // "Nothing is mapped there" is said only if it is true. And it cannot be, where a thread
        // runs our code: it holds a guard of what it runs.
        Err(ReadError::NotMapped { .. }) if running.is_none() || !is_ours(addr) => {
            &counts.not_mapped
        }
        // The past may lie where a compiler is just writing.
        Err(ReadError::Reserved { .. }) if running.is_none() => &counts.not_mapped,
        _ => &counts.wrong,
    };
    count.fetch_add(1, Relaxed);
}

/// Whether three witnesses agree with the map: the address, the code, and the register.
fn is_right(function: &Function, range: Range<usize>, addr: usize, running: Option<u32>) -> bool {
    // SAFETY: we hold the function's guard, so its code is there: compilers write code before they
    // map it, and erase it when its readers have left.
    let in_code = unsafe { code::identity(range.start) };
    // The first instructions have yet to load the register.
    let running = running.filter(|_| addr >= range.start + code::PROLOGUE);
    range.contains(&addr) && in_code == function.id && running.is_none_or(|id| id == function.id)
}

fn is_ours(addr: usize) -> bool {
    MEMORY.get().is_some_and(|memory| memory.range().contains(&addr))
}

// --- Compilers: loading and unloading ------------------------------------------------------------

/// Loads a new function: finds a gap, writes the code, and only then maps it for others.
fn load(memory: &CodeMemory) -> Result<Range<usize>> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let id = NEXT.fetch_add(1, Relaxed);
    let kind = id as usize % KINDS.len();
    let (name, turns) = KINDS[kind];
    let code = code::assemble(id, turns);

    // The lowest gap: what was unloaded last is soon used again. Reserved, it is ours, and the
    // other compiler finds a gap elsewhere.
    let mut edit = CODE.edit()?;
    let search = GapSearch::new(code.len()).aligned(16).within(memory.range());
    let mut reservation = edit.reserve(edit.find_gap(&search)?)?;
    drop(edit);

    // No thread waits for us while we write.
    let range = reservation.range();
    // SAFETY: the range is reserved: no runner and no handler finds code there.
    unsafe { memory.write(range.start, &code)? };
    let name = format!("{name}#{id}");
    reservation.commit(Function { id, name, kind, samples: AtomicU64::new(0) })?;
    Ok(range)
}

/// Unloads a function: waits until no thread runs it, erases it, and only then frees its addresses.
///
/// In the order *remove, then erase*, the other compiler could load a new function there before the
/// old one is erased. Where nothing has to be done in between, [`AddressSpace::remove`] is enough.
fn unload(memory: &CodeMemory, range: Range<usize>) -> Result<Function> {
    let exclusion = CODE.exclude(range.clone())?; // no reader acquires it any more
    exclusion.wait(); // until the last one has released it
    // SAFETY: no thread runs or reads the function any more, and its addresses are still taken.
    unsafe { memory.erase(range)? };
    let removed = exclusion.remove()?;
    // The payload comes back to us, to be dropped where dropping is allowed.
    let removed = removed.into_iter().next().ok_or("the function was not there")?;
    Ok(removed.payload)
}

/// What became of functions of each kind: how many there were, and their samples.
type Profile = [(u64, u64); KINDS.len()];

fn note(profile: &mut Profile, function: &Function) {
    let (functions, samples) = &mut profile[function.kind];
    *functions += 1;
    *samples += function.samples.load(Relaxed);
}

fn compile(memory: &CodeMemory, stop: &AtomicBool) -> Result<Profile> {
    const KEPT: usize = 24;
    let _timer = Timer::start(PERIOD)?;
    let (mut loaded, mut profile) = (VecDeque::new(), Profile::default());
    while !stop.load(Relaxed) {
        loaded.push_back(load(memory)?);
        if loaded.len() > KEPT
            && let Some(range) = loaded.pop_front()
        {
            note(&mut profile, &unload(memory, range)?);
        }
    }
    Ok(profile)
}

// --- Runners -------------------------------------------------------------------------------------

/// Calls functions at random until it is told to stop, and returns how many it has called.
fn run(memory: &CodeMemory, mut random: usize, stop: &AtomicBool) -> Result<u64> {
    let _timer = Timer::start(PERIOD)?;
    let mut calls = 0;
    while !stop.load(Relaxed) {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let range = memory.range();
        // The first function at or above some address. Not in a handler, so waiting is fine.
        let addr = range.start + (random >> 32) % range.len();
        let Some(function) = CODE.read_at_or_after(addr)? else { continue };
        // SAFETY: a function's code is there, and stays while we hold the guard.
        let returned = unsafe { code::call(function.range().start) };
        if returned != function.id {
            return Err(format!("{} has run function {returned}", function.name).into());
        }
        calls += 1;
    }
    Ok(calls)
}

// --- The program ---------------------------------------------------------------------------------

const PERIOD: Duration = Duration::from_micros(200);
const DURATION: Duration = Duration::from_millis(1000);

fn main() -> ExitCode {
    match profile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("jit_lookup: {error}");
            ExitCode::FAILURE
        }
    }
}

fn profile() -> Result<()> {
    let mapped = CodeMemory::map(4096)?;
    let memory = MEMORY.get_or_init(|| mapped);
    sampling::install(on_sample)?;

    let stop = &AtomicBool::new(false);
    let (calls, mut profile) = thread::scope(|scope| -> Result<_> {
        let compilers = [(); 2].map(|()| scope.spawn(|| compile(memory, stop)));
        let runners = [1, 2].map(|seed| scope.spawn(move || run(memory, seed, stop)));
        thread::sleep(DURATION);
        stop.store(true, Relaxed);

        let (mut calls, mut profile) = (0, Profile::default());
        for runner in runners {
            calls += runner.join().map_err(|_| "a runner has panicked")??;
        }
        for compiler in compilers {
            let part = compiler.join().map_err(|_| "a compiler has panicked")??;
            for (sum, (functions, samples)) in profile.iter_mut().zip(part) {
                *sum = (sum.0 + functions, sum.1 + samples);
            }
        }
        Ok((calls, profile))
    })?;
    let unloaded: u64 = profile.iter().map(|(functions, _)| functions).sum();
    let left = CODE.remove(memory.range())?;
    left.iter().for_each(|removed| note(&mut profile, &removed.payload));

    let [hit, not_mapped, locked, wrong] = PRESENT.values();
    let [past_hit, past_not_mapped, past_locked, past_wrong] = PAST.values();
    println!("{calls} calls; {unloaded} functions unloaded under them, {} left", left.len());
    println!("what the handler was told in {DURATION:?}, of the present and of the past:");
    println!("{hit:>8} {past_hit:>8}  a function");
    for ((kind, _), (functions, samples)) in KINDS.iter().zip(profile) {
        println!("{samples:>8}             in {kind} ({functions} of them)");
    }
    println!("{not_mapped:>8} {past_not_mapped:>8}  not mapped");
    println!("{locked:>8} {past_locked:>8}  locked: not known");
    println!("{wrong:>8} {past_wrong:>8}  wrong");

    // Every hit was credited to a payload, and every payload came back to its owner.
    let credited: u64 = profile.iter().map(|(_, samples)| samples).sum();
    if wrong + past_wrong != 0 {
        return Err("the map and the code contradict each other".into());
    }
    if hit == 0 || past_hit == 0 || credited != hit {
        return Err(format!("of {hit} hits, {credited} were credited to functions").into());
    }
    println!("the code agrees with the map each time");
    Ok(())
}
