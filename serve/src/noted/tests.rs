//! A process dies behind each of its stores; the next one takes what is left, and dies behind each
//! of its own; what the third one has must be right. So must be what is left of a client of which
//! something cannot be noted, or is damaged.

use std::collections::BTreeSet;
use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::state::Extent;
use crate::state::deaths::{Image, Step, alone, closes, count, earlier, opens, steps, tell};
use crate::state::descriptors::{Descriptors, close_forgotten};
use crate::state::record::twice;

/// What the kernel tells of a client.
#[derive(Clone, Copy, Debug)]
enum Told {
    Fault,
    Remove(usize, usize),
    Unmap(usize, usize),
    Remap(usize, usize, usize),
    Fork,
}

use Told::{Fault, Fork, Remap, Remove, Unmap};

impl Told {
    fn is_change(self) -> bool {
        !matches!(self, Fault)
    }

    fn record(self) -> Option<Record> {
        let time = Time::now();
        match self {
            Fault | Fork => None,
            Remove(start, end) => Some(Record::Remove(start..end)),
            Unmap(start, end) => Some(Record::Unmap(start..end, time)),
            Remap(from, to, len) => Some(Record::Remap { from, to, len, time }),
        }
    }

    /// `struct uffd_msg`, and the descriptor that it brings.
    fn message(self) -> ([u64; 4], Option<i32>) {
        let event = |event: u8| u64::from_ne_bytes([event, 0, 0, 0, 0, 0, 0, 0]);
        let word = |word: usize| word as u64;
        match self {
            Fault => ([event(0x12), 0, 0x1000, 0], None),
            Fork => {
                // The message owns it.
                let descriptor = opens().into_raw_fd();
                let [a, b, c, d] = descriptor.to_ne_bytes();
                let half = u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
                ([event(0x13), half, 0, 0], Some(descriptor))
            }
            Remap(from, to, len) => ([event(0x14), word(from), word(to), word(len)], None),
            Remove(start, end) => ([event(0x15), word(start), word(end), 0], None),
            Unmap(start, end) => ([event(0x16), word(start), word(end), 0], None),
        }
    }
}

// Why what a process has is not right.
const HALF: &str = "an entry that is not whole is taken for one";
const OTHER_BATCH: &str = "a batch does not say whose it is";
const DAMAGED: &str = "a journal cannot be used";
const GONE: &str = "a client that is noted is not there";
const WHOSE: &str = "a batch is of a client that is not there";
const FAILED: &str = "what was left cannot be noted";
const TWICE: &str = "a number was given twice";
const EVENTS: &str = "events were lost, or noted twice";
const ORDER: &str = "the map is not what was told";
const CHILDREN: &str = "a child was lost, or noted twice";

/// What is done by the first process, before it dies.
#[derive(Clone, Copy)]
enum Act {
    /// A client comes: one of the scenario's.
    Add(usize),
    /// This ring reads so many of its messages.
    Read { ring: usize, client: usize, count: usize },
    /// It has gone.
    Free(usize),
}

struct Scenario {
    /// What the kernel tells of each client: all of it is told in the end.
    clients: &'static [&'static [Told]],
    acts: &'static [Act],
    /// So many of them are done without dying.
    safe: usize,
    /// Changes that were noted of each client before, so that its journal is almost full.
    before: usize,
}

/// Two clients and their children; a third one that takes the place of the second. Here and below
/// nothing moves to where something is: what comes of that depends on the time that has passed.
const THREE: Scenario = Scenario {
    clients: &[
        &[
            Fault,
            Remove(0x2000, 0x4000),
            Remap(0x1000, 0x20_0000, 0x4000),
            Fork,
            Unmap(0x1000, 0x5000),
            Fault,
            Fault,
            Remap(0x20_0000, 0x30_0000, 0x4000),
            Unmap(0x20_0000, 0x20_4000),
            Fork,
            Remove(0x30_0000, 0x30_1000),
        ],
        &[Remap(0x5000, 0x40_0000, 0x2000), Unmap(0x5000, 0x7000), Remove(0x40_0000, 0x40_1000)],
        &[Remove(0x1000, 0x2000), Remap(0x1000, 0x50_0000, 0x1000), Unmap(0x1000, 0x2000)],
    ],
    acts: &[
        Act::Add(0),
        Act::Add(1),
        Act::Read { ring: 0, client: 0, count: 5 },
        Act::Read { ring: 0, client: 1, count: 2 },
        Act::Free(1),
        Act::Add(2),
        Act::Read { ring: 1, client: 0, count: 5 },
        Act::Read { ring: 0, client: 2, count: 2 },
    ],
    safe: 0,
    before: 0,
};

/// A client whose journal is written anew.
const FULL: Scenario = Scenario {
    clients: &[&[
        Remap(0x1000, 0x20_0000, 0x4000),
        Unmap(0x1000, 0x5000),
        Fork,
        Remap(0x20_0000, 0x30_0000, 0x4000),
        Fork,
        Unmap(0x20_0000, 0x20_4000),
    ]],
    acts: &[
        Act::Add(0),
        Act::Read { ring: 0, client: 0, count: 3 },
        Act::Read { ring: 1, client: 0, count: 2 },
    ],
    safe: 1,
    before: 92,
};

/// What was added, and what began to go, beside what is told of clients.
const ADDED: u64 = 100;
const FREED: u64 = 200;

fn extent(start: u64, len: u64, offset: u64) -> Extent {
    Extent { start, len, offset, page_size: 4096, content: Extent::SOURCE }
}

fn huge(start: u64, len: u64) -> Extent {
    Extent { page_size: 2 << 20, ..extent(start, len, 0x100_0000) }
}

fn entry(number: u64, descriptor: i32, owner: u64) -> Entry {
    let (parent, source) = (0, 0);
    let (pid, uid, gid, pidfd) = (0, 0, 0, -1);
    let (kind, is_sparse) = (Kind::Client, false);
    Entry { number, kind, descriptor, pidfd, parent, owner, source, pid, uid, gid, is_sparse }
}

fn memory(client: usize) -> Map {
    let offset = client as u64 * 0x100_0000;
    Map::new(&[extent(0x1000, 0x8000, offset), extent(0x10_0000, 0x4000, offset + 0x8000)]).unwrap()
}

/// A process that serves.
struct Process {
    rings: Vec<Ring>,
    clients: Vec<Client>,
    /// How much of each of the scenario's clients was told.
    told: Vec<usize>,
}

struct Client {
    parts: Parts,
    userfaultfd: OwnedFd,
}

impl Client {
    fn noted(&mut self) -> Noted<'_> {
        let Parts { slot, entry, map, journal } = &mut self.parts;
        Noted { slot, entry, map, journal }
    }

    fn number(&self) -> u64 {
        self.parts.entry.number
    }

    /// Which one of the scenario's it is.
    fn is(&self, client: usize) -> bool {
        self.parts.entry.parent == 0 && self.parts.entry.owner == client as u64
    }
}

impl From<ForkedChild> for Client {
    fn from(ForkedChild { parts, userfaultfd }: ForkedChild) -> Self {
        Self { parts, userfaultfd }
    }
}

impl Process {
    /// The next process takes what was left.
    fn next(table: &Arc<Table>, image: &Image, scenario: &Scenario) -> Result<Self, &'static str> {
        let mut descriptors = image.descriptors(Some(table.memory()));
        let took = Self::take(table, &mut descriptors);
        drop(descriptors.rest());
        let (rings, clients) = took?;
        let told = (0..scenario.clients.len()).map(|client| image.told(client as u64)).collect();
        let process = Self { rings, clients, told };
        for client in 0..scenario.clients.len() as u64 {
            let is_there = image.told(ADDED + client) > image.told(FREED + client);
            if is_there && !process.clients.iter().any(|other| other.is(client as usize)) {
                return Err(GONE);
            }
        }
        Ok(process)
    }

    fn take(
        table: &Arc<Table>,
        descriptors: &mut Descriptors,
    ) -> Result<(Vec<Ring>, Vec<Client>), &'static str> {
        let mut clients = Vec::new();
        for (slot, entry) in table.left() {
            let entry = entry.map_err(|_| HALF)?;
            let file = descriptors.take(slot.file());
            let userfaultfd = descriptors.take(entry.descriptor).ok_or(HALF)?;
            let parts = Parts::left(slot, entry, file).unwrap();
            if parts.slot.failure().is_some() {
                return Err(DAMAGED);
            }
            clients.push(Client { parts, userfaultfd });
        }
        let mut rings = Ring::all(table);
        for ring in &mut rings {
            let Some(batch) = ring.left().map_err(|_| OTHER_BATCH)? else { continue };
            let entries: Vec<_> = clients.iter().map(|client| client.parts.entry.clone()).collect();
            let child_with = |descriptor: i32| {
                let is_it =
                    |entry: &&Entry| entry.parent == batch.client && entry.descriptor == descriptor;
                match entries.iter().find(is_it) {
                    Some(child) => LeftChild::Noted(child.number),
                    None => descriptors.take(descriptor).map_or(LeftChild::Gone, LeftChild::New),
                }
            };
            let client = clients.iter_mut().find(|client| client.number() == batch.client);
            let mut noted = client.ok_or(WHOSE)?.noted();
            let mut children = Vec::new();
            noted.read_left(ring, batch.changes, &mut children, child_with).map_err(|_| FAILED)?;
            clients.extend(children.into_iter().map(Client::from));
        }
        Ok((rings, clients))
    }

    fn act(&mut self, table: &Arc<Table>, scenario: &Scenario, act: Act) {
        match act {
            Act::Add(client) => {
                let number = client as u64;
                let userfaultfd = tell(ADDED + 50, 1, || {
                    let descriptor = opens();
                    let number = descriptor.as_raw_fd();
                    (descriptor, vec![number])
                });
                let entry = entry(table.new_number(Kind::Client), userfaultfd.as_raw_fd(), number);
                let parts = Parts::new(table, entry, memory(client), None).unwrap();
                let mut client = Client { parts, userfaultfd };
                for _ in 0..scenario.before {
                    client.noted().note(&Record::Remove(0x9000..0xA000)).unwrap();
                }
                self.clients.push(client);
                tell(ADDED + number, 1, || ((), vec![]));
            }
            Act::Read { ring, client, count } => self.read(scenario, ring, client, count),
            Act::Free(client) => {
                tell(FREED + client as u64, 1, || ((), vec![]));
                let at = self.clients.iter().position(|other| other.is(client)).unwrap();
                let Client { parts, userfaultfd } = self.clients.remove(at);
                parts.slot.free();
                drop(parts);
                closes(userfaultfd);
            }
        }
    }

    fn read(&mut self, scenario: &Scenario, ring: usize, client: usize, count: usize) {
        assert_eq!(self.try_read(scenario, ring, client, count), Ok(count));
    }

    fn try_read(
        &mut self,
        scenario: &Scenario,
        ring: usize,
        client: usize,
        count: usize,
    ) -> Result<usize, Failure> {
        let told = &mut self.told[client];
        let messages = &scenario.clients[client][*told..][..count];
        *told += count;
        let at = self.clients.iter().position(|other| other.is(client)).unwrap();
        let read = |ring: &mut Ring| {
            for (number, message) in messages.iter().enumerate() {
                tell(client as u64, 1, || {
                    let (words, descriptor) = message.message();
                    ring.write(number, words);
                    ((), descriptor.into_iter().collect())
                });
            }
            Ok(count)
        };
        let (mut faults, mut children) = (Vec::new(), Vec::new());
        let mut noted = self.clients[at].noted();
        let read = noted.read(&mut self.rings[ring], read, &mut faults, &mut children);
        assert_eq!(faults.len(), messages.iter().filter(|told| !told.is_change()).count());
        self.clients.extend(children.into_iter().map(Client::from));
        read
    }

    /// The rest of what the kernel tells of those that are there.
    fn read_rest(&mut self, scenario: &Scenario) {
        for (client, told) in scenario.clients.iter().enumerate() {
            let rest = told.len() - self.told[client];
            if rest > 0 && self.clients.iter().any(|other| other.is(client)) {
                self.read(scenario, client % self.rings.len(), client, rest);
            }
        }
    }

    /// All was noted, once and in its order.
    fn check(&self, scenario: &Scenario) -> Result<(), &'static str> {
        let numbers: BTreeSet<_> = self.clients.iter().map(Client::number).collect();
        if numbers.len() != self.clients.len() {
            return Err(TWICE);
        }
        for client in self.clients.iter().filter(|client| client.parts.entry.parent == 0) {
            let which = client.parts.entry.owner as usize;
            let (map, mut children) = (memory(which), self.children(client.number()));
            let told = scenario.clients[which];
            let changes = scenario.before + told.iter().filter(|told| told.is_change()).count();
            if client.parts.journal.changes() != changes as u64 {
                return Err(EVENTS);
            }
            for told in told {
                match told.record() {
                    Some(record) => map.apply(&record).unwrap(),
                    None if told.is_change() => {
                        let child = children.next().ok_or(CHILDREN)?;
                        if child.parts.map.records() != map.fork().unwrap().records() {
                            return Err(ORDER);
                        }
                    }
                    None => {}
                }
            }
            if children.next().is_some() {
                return Err(CHILDREN);
            }
            if client.parts.map.records() != map.records() {
                return Err(ORDER);
            }
        }
        Ok(())
    }

    /// The children of a client, the first one first.
    fn children(&self, parent: u64) -> std::vec::IntoIter<&Client> {
        let is_child = |client: &&Client| client.parts.entry.parent == parent;
        let mut children: Vec<_> = self.clients.iter().filter(is_child).collect();
        children.sort_by_key(|child| child.number());
        children.into_iter()
    }
}

/// What the first process of a scenario does, from where it may die on.
struct First {
    table: Arc<Table>,
    image: Image,
    acts: Vec<Vec<Step>>,
}

impl First {
    fn of(scenario: &Scenario) -> Self {
        let mut image = Image::default();
        let (table, made) = steps(|| Table::new(2, true).unwrap());
        let told = vec![0; scenario.clients.len()];
        let mut process = Process { rings: Ring::all(&table), clients: Vec::new(), told };
        let acts = scenario.acts.iter();
        let mut acts: Vec<_> =
            acts.map(|&act| steps(|| process.act(&table, scenario, act)).1).collect();
        for step in acts.drain(..scenario.safe).fold(made, |all, act| [all, act].concat()) {
            image.apply(&step);
        }
        Self { table, image, acts }
    }

    /// A process dies behind each of these steps, and behind each that the next one does about
    /// that, and so on, so many `times` in all; how often.
    fn die(
        &self,
        scenario: &Scenario,
        mut image: Image,
        steps: &[Step],
        times: usize,
    ) -> Result<usize, &'static str> {
        let mut deaths = 0;
        let mut changes = true;
        for step in steps.iter().map(Some).chain([None]) {
            // Behind a step that changes nothing the same is left as before it.
            if changes {
                deaths += 1;
                let next = || -> Result<usize, &'static str> {
                    let mut process = Process::next(&self.table, &image, scenario)?;
                    let took = count();
                    process.read_rest(scenario);
                    process.check(scenario)?;
                    Ok(took)
                };
                if times > 1 {
                    let (took, mut steps) = self::steps(next);
                    // What it does later is what the first one does.
                    steps.truncate(took?);
                    deaths += self.die(scenario, image.clone(), &steps, times - 1)?;
                } else {
                    next()?;
                }
            }
            changes = step.is_some_and(|step| image.apply(step));
        }
        Ok(deaths)
    }

    /// Two threads do this at the same time, of which each has come as far as it may when the
    /// process dies. They store other words, so it does not depend on who was faster.
    fn die_beside(
        &self,
        scenario: &Scenario,
        one: &[Step],
        other: &[Step],
    ) -> Result<usize, &'static str> {
        let (mut image, mut deaths, mut changes) = (self.image.clone(), 0, true);
        for step in one.iter().map(Some).chain([None]) {
            if changes {
                deaths += self.die(scenario, image.clone(), other, 1)?;
            }
            changes = step.is_some_and(|step| image.apply(step));
        }
        Ok(deaths)
    }
}

/// Every death of the first process, and of the second one in what it does about that.
fn expect_right(scenario: &Scenario) {
    let _alone = alone();
    let first = First::of(scenario);
    let deaths = first.die(scenario, first.image.clone(), &first.acts.concat(), 2).unwrap();
    println!("{deaths} deaths");
}

#[test]
fn whatever_store_a_process_dies_behind_the_next_one_goes_on() {
    expect_right(&THREE);
}

#[test]
fn a_journal_is_written_anew_or_is_not() {
    expect_right(&FULL);
}

#[test]
fn a_client_whose_journal_is_damaged_fails_whatever_store_the_next_process_dies_behind() {
    let _alone = alone();
    let First { table, mut image, .. } = First::of(&FULL);
    let journal = image.files().find(|file| *file != table.memory().descriptor()).unwrap();
    image.apply(&Step::Stored(journal, 4, 0));
    let next = |image: &Image| Process::next(&table, image, &FULL).err();
    let (found, steps) = steps(|| next(&image));
    assert_eq!(found, Some(DAMAGED));
    for step in steps {
        image.apply(&step);
        assert_eq!(next(&image), Some(DAMAGED), "behind {step:?}");
    }
}

#[test]
fn a_client_of_which_an_event_could_not_be_noted_fails_or_goes_on_with_all_of_them() {
    const FORKS: Scenario = Scenario {
        clients: &[&[
            Remap(0x1000, 0x20_0000, 0x4000),
            Fork,
            Remap(0x20_0000, 0x1000, 0x4000),
            Remap(0x1000, 0x20_0000, 0x4000),
        ]],
        acts: &[Act::Add(0)],
        safe: 1,
        before: 0,
    };
    let _alone = alone();
    let First { table, mut image, .. } = First::of(&FORKS);
    let mut process = Process::next(&table, &image, &FORKS).unwrap();
    table.fill();
    let (failure, steps) = steps(|| process.try_read(&FORKS, 0, 0, 4).err());
    assert!(matches!(failure, Some(Failure::NotNoted(_))), "{failure:?}");
    drop(process);
    let opened = steps.iter().filter_map(|step| match step {
        Step::Told { opened, .. } => opened.first(),
        _ => None,
    });
    opened.for_each(|&number| close_forgotten(number));
    let mut failed = 0;
    for step in [None].into_iter().chain(steps.iter().map(Some)) {
        step.into_iter().for_each(|step| _ = image.apply(step));
        match Process::next(&table, &image, &FORKS) {
            // It fails.
            Err(error) => assert_eq!(error, DAMAGED),
            Ok(_) if failed > 0 => panic!("it does not fail any more, behind {step:?}"),
            Ok(mut process) => {
                process.read_rest(&FORKS);
                assert_eq!(process.check(&FORKS), Ok(()), "behind {step:?}");
                continue;
            }
        }
        failed += 1;
    }
    assert!(failed > 0);
}

/// Changes of a client's memory, as they are told: what was unmapped late, and in any order.
struct Changes {
    rng: StdRng,
    /// Not told yet.
    unmapped: Vec<Range<usize>>,
    time: u32,
}

impl Changes {
    fn range(&mut self) -> Range<usize> {
        // Few places, so that they meet.
        let (start, len) = (self.rng.random_range(0..8), self.rng.random_range(1..=4));
        0x10_000 + start * 0x2000..0x10_000 + start * 0x2000 + len * 0x1000
    }

    fn next(&mut self) -> Record {
        self.time = self.time.wrapping_add([0, 1, 400, 1500][self.rng.random_range(0..4)]);
        let (range, time) = (self.range(), Time::at(self.time));
        match self.rng.random_range(0..12) {
            0 | 1 => Record::Remove(range),
            2 => Record::Unmap(range, time),
            3 => Record::Poison(range.start..range.start + 0x1000),
            4 => Record::Filled(range),
            5 => Record::Fork(1),
            6..9 if !self.unmapped.is_empty() => {
                let at = self.rng.random_range(0..self.unmapped.len());
                Record::Unmap(self.unmapped.swap_remove(at), time)
            }
            _ => {
                let (from, len) = (range.start, range.len());
                let to = loop {
                    let to = self.range().start;
                    // Nothing moves to where it is.
                    if to.abs_diff(from) >= len {
                        break to;
                    }
                };
                self.unmapped.push(range);
                Record::Remap { from, to, len, time }
            }
        }
    }
}

#[test]
fn what_is_noted_says_all_that_the_map_says() {
    let table = Table::new(1, true).unwrap();
    let (mut displaced, mut anew) = (0, 0);
    for seed in 0..30 {
        let map = || Map::new(&[extent(0x10_000, 0x8000, 0), huge(0x18_000, 0xC000)]).unwrap();
        let mut parts = Parts::new(&table, entry(seed, -1, 0), map(), None).unwrap();
        let mut changes = Changes {
            rng: StdRng::seed_from_u64(seed),
            unmapped: Vec::new(),
            // The clock begins anew.
            time: u32::MAX - 20_000,
        };
        // What the next process knows, which goes on with it.
        let mut next = map();
        for count in 0..200 {
            let record = changes.next();
            let Parts { slot, entry, map, journal } = &mut parts;
            let file = slot.file();
            Noted { slot, entry, map, journal }.note(&record).unwrap();
            next.apply(&record).unwrap();
            assert_eq!(next.records(), map.records(), "seed {seed}, behind {count}: {record:?}");
            displaced += map
                .records()
                .iter()
                .filter(|record| matches!(record, Record::Displaced(..)))
                .count();
            anew += usize::from(slot.file() != file);
            assert_eq!(journal.changes(), count + 1);
            if changes.rng.random_ratio(1, 8) {
                next = Map::noted(&journal.left()).unwrap();
                assert_eq!(next.records(), map.records(), "seed {seed}, behind {count}");
                next = Map::noted(&map.records()).unwrap();
                assert_eq!(next.records(), map.records(), "seed {seed}, behind {count}");
            }
        }
    }
    println!("{displaced} displaced, {anew} journals anew");
    assert!(displaced > 100 && anew > 10, "it is not what this is about");
}

/// Two threads, each of which reads what its client tells.
const TWO: Scenario = Scenario {
    clients: &[
        &[Remap(0x1000, 0x20_0000, 0x4000), Fork, Unmap(0x1000, 0x5000)],
        &[Remap(0x5000, 0x40_0000, 0x2000), Unmap(0x5000, 0x7000)],
    ],
    acts: &[
        Act::Add(0),
        Act::Add(1),
        Act::Read { ring: 0, client: 0, count: 2 },
        Act::Read { ring: 1, client: 1, count: 2 },
    ],
    safe: 2,
    before: 0,
};

#[test]
fn batches_of_two_threads_are_not_mixed_up() {
    let _alone = alone();
    let first = First::of(&TWO);
    let deaths = first.die_beside(&TWO, &first.acts[0], &first.acts[1]).unwrap();
    println!("{deaths} deaths");
}

#[test]
fn batches_of_one_client_are_to_be_read_one_after_the_other() {
    let _alone = alone();
    let scenario = Scenario { safe: 1, ..FULL };
    let first = First::of(&scenario);
    let beside = first.die_beside(&scenario, &first.acts[0], &first.acts[1]);
    assert_eq!(beside, Err(EVENTS), "two threads at the same time would not be found out");
}

/// Which file a step is about, and which word.
struct Of<'s> {
    table: i32,
    step: &'s Step,
}

impl Of<'_> {
    /// What is stored to a word of a ring; words as in the ring's module.
    fn ring(&self, word: usize) -> Option<u64> {
        let of = |at: usize| (1..3).contains(&(at / WORDS)) && at % WORDS == word;
        match *self.step {
            Step::Stored(file, at, value) if file == self.table && of(at) => Some(value),
            _ => None,
        }
    }

    /// What is stored to a word of an entry, as above.
    fn entry(&self, word: usize) -> Option<u64> {
        match *self.step {
            // Behind the head and 1024 rings.
            Step::Stored(file, at, value) if file == self.table && at >= 1025 * WORDS => {
                (at % 64 == word).then_some(value)
            }
            _ => None,
        }
    }

    /// Whether it is a word of a journal.
    fn journal(&self, words: impl Fn(usize) -> bool) -> bool {
        matches!(*self.step, Step::Stored(file, at, _) if file != self.table && words(at))
    }

    fn is_message(&self) -> bool {
        matches!(self.step, Step::Told { words, .. } if !words.is_empty())
    }
}

/// Words of a page.
const WORDS: usize = 512;

/// A weaker order of what is stored.
struct Weaker {
    name: &'static str,
    scenario: &'static Scenario,
    /// What is done too early.
    early: fn(&Of<'_>) -> bool,
    /// The last one of these before it is done behind it.
    late: fn(&Of<'_>) -> bool,
    /// By which of the checks this is found.
    found_by: &'static str,
}

const WEAKER: &[Weaker] = &[
    Weaker {
        name: "the ring says whose messages it has before it says how many changes were noted",
        scenario: &THREE,
        early: |of| of.ring(0).is_some_and(|client| client > 0),
        late: |of| of.ring(1).is_some(),
        found_by: OTHER_BATCH,
    },
    Weaker {
        name: "messages are read before the ring says whose they are",
        scenario: &THREE,
        early: |of| of.is_message(),
        late: |of| of.ring(0).is_some_and(|client| client > 0),
        found_by: EVENTS,
    },
    Weaker {
        name: "messages are read before the ring says how many changes were noted",
        scenario: &ONE_RING,
        early: |of| of.is_message() || of.ring(0).is_some_and(|client| client > 0),
        late: |of| of.ring(1).is_some(),
        found_by: OTHER_BATCH,
    },
    Weaker {
        name: "the ring is empty before the last event is noted",
        scenario: &THREE,
        early: |of| of.ring(0) == Some(0),
        late: |of| of.journal(|word| word == 5),
        found_by: EVENTS,
    },
    Weaker {
        name: "the journal has one record more before that is there",
        scenario: &THREE,
        early: |of| of.journal(|word| word == 5),
        late: |of| of.journal(|word| word >= 8 && word % 4 == 0),
        found_by: DAMAGED,
    },
    Weaker {
        name: "an entry is used before it is whole",
        scenario: &THREE,
        early: |of| of.entry(0).is_some_and(|number| number > 0),
        late: |of| of.entry(1).is_some(),
        found_by: HALF,
    },
    Weaker {
        name: "an entry is used before it says where the journal is",
        scenario: &THREE,
        early: |of| of.entry(0).is_some_and(|number| number > 0),
        late: |of| of.entry(10).is_some_and(|file| file > 0),
        found_by: DAMAGED,
    },
    Weaker {
        name: "a journal is closed before the entry says where the next one is",
        scenario: &FULL,
        early: |of| matches!(of.step, Step::Closed(_)),
        late: |of| of.entry(10).is_some(),
        found_by: DAMAGED,
    },
    Weaker {
        name: "the entry says where the next journal is before that is whole",
        scenario: &FULL,
        early: |of| of.entry(10).is_some_and(|file| file > 0),
        late: |of| of.journal(|word| word == 4),
        found_by: DAMAGED,
    },
    Weaker {
        name: "a fork is noted before the child is",
        scenario: &ONE_RING,
        // The third change, behind two extents.
        early: |of| {
            of.journal(|word| (8 + 4 * 4..8 + 5 * 4).contains(&word))
                || matches!(*of.step, Step::Stored(file, 5, count)
                    if file != of.table && count == twice(5))
        },
        late: |of| of.entry(0).is_some_and(|number| number > 0),
        found_by: CHILDREN,
    },
    Weaker {
        name: "a client has gone when its entry is still used",
        scenario: &THREE,
        early: |of| matches!(of.step, Step::Closed(_)),
        late: |of| of.entry(0) == Some(0),
        found_by: DAMAGED,
    },
];

/// A client that is read by one thread.
const ONE_RING: Scenario = Scenario {
    clients: &[&[Remap(0x1000, 0x20_0000, 0x4000), Unmap(0x1000, 0x5000), Fork]],
    acts: &[
        Act::Add(0),
        Act::Read { ring: 0, client: 0, count: 1 },
        Act::Read { ring: 0, client: 0, count: 2 },
    ],
    safe: 0,
    before: 0,
};

#[test]
fn a_weaker_order_is_found() {
    let _alone = alone();
    for weaker in WEAKER {
        let first = First::of(weaker.scenario);
        let table = first.table.memory().descriptor();
        let is = |of: fn(&Of<'_>) -> bool| move |step: &Step| of(&Of { table, step });
        let steps = earlier(first.acts.concat(), is(weaker.early), is(weaker.late));
        let found = first.die(weaker.scenario, first.image.clone(), &steps, 1);
        println!("{}: {found:?}", weaker.name);
        assert_eq!(found.err(), Some(weaker.found_by), "{}", weaker.name);
    }
}
