//! Reads of sources that are waited for, by threads that do nothing else: a fault that waits for a
//! device or a network takes no worker away from the others.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::client::{Client, ClientId};
use crate::threads::Threads;

/// A read that is to be done.
pub(crate) struct Task {
    pub(crate) client: Arc<Client>,
    /// The address that faulted, or that may.
    pub(crate) addr: usize,
    /// When the fault was read.
    pub(crate) since: Instant,
    /// No thread waits for it.
    pub(crate) is_ahead: bool,
}

/// Threads that wait for sources: as many as there are reads, up to a limit.
pub(crate) struct Reads {
    state: Mutex<State>,
    /// There is something to do, or it is time to end.
    todo: Condvar,
    per_client: usize,
    in_all: usize,
    threads: Threads,
    run: Box<Run>,
}

/// Does a task, with a buffer of its thread's.
type Run = dyn Fn(&Task, &mut Vec<u8>) + Send + Sync;

#[derive(Default)]
struct State {
    clients: BTreeMap<ClientId, Waiting>,
    /// Tasks that wait for a thread.
    waiting: usize,
    /// Tasks that threads of clients wait for.
    demand: usize,
    threads: usize,
    idle: usize,
    is_over: bool,
}

/// A client's reads.
#[derive(Default)]
struct Waiting {
    demand: VecDeque<Task>,
    ahead: VecDeque<Task>,
    /// So many threads read for it.
    running: usize,
}

/// A thread that has had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);
/// Of a thread that reads: the source's code runs on it.
const STACK: usize = 256 << 10;

impl Reads {
    /// `run` does a task, with a buffer that is its thread's.
    pub(crate) fn new(
        per_client: usize,
        in_all: usize,
        threads: Threads,
        run: impl Fn(&Task, &mut Vec<u8>) + Send + Sync + 'static,
    ) -> Self {
        let (state, todo) = (Mutex::default(), Condvar::new());
        Self {
            state,
            todo,
            per_client: per_client.max(1),
            in_all: in_all.max(1),
            threads,
            run: Box::new(run),
        }
    }

    /// Has a task done. A task for later is left out if its client has many of them.
    ///
    /// # Errors
    ///
    /// When there is no thread, and none can be had.
    pub(crate) fn submit(self: &Arc<Self>, task: Task) -> io::Result<()> {
        let mut state = self.state();
        if state.is_over {
            return Ok(());
        }
        let client = state.clients.get(&task.client.id);
        if task.is_ahead && client.is_some_and(|client| client.ahead.len() >= self.per_client) {
            return Ok(());
        }
        let may_read = client.is_none_or(|client| client.running < self.per_client);
        // Idle threads are woken for what waits already.
        if may_read && state.idle <= state.waiting && state.threads < self.in_all {
            match self.start() {
                Ok(()) => state.threads += 1,
                // Those that there are do it.
                Err(_) if state.threads > 0 => {}
                Err(error) => return Err(error),
            }
        }
        let client = state.clients.entry(task.client.id).or_default();
        let is_ahead = task.is_ahead;
        let queue = if is_ahead { &mut client.ahead } else { &mut client.demand };
        queue.push_back(task);
        state.waiting += 1;
        state.demand += usize::from(!is_ahead);
        self.todo.notify_one();
        Ok(())
    }

    fn start(self: &Arc<Self>) -> io::Result<()> {
        let reads = Arc::clone(self);
        self.threads.start_with_stack(STACK, "pervma-read", move || reads.work()).map(drop)
    }

    fn work(&self) {
        let mut buffer = Vec::new();
        let mut state = self.state();
        loop {
            let Some(task) = state.next(self.per_client) else {
                if state.is_over {
                    break;
                }
                state.idle += 1;
                let waited = self.todo.wait_timeout(state, IDLE);
                let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state = again;
                state.idle -= 1;
                if timeout.timed_out() && state.waiting == 0 {
                    break;
                }
                continue;
            };
            drop(state);
            (self.run)(&task, &mut buffer);
            state = self.state();
            state.end(&task);
            // What waited for this client's turn can be done by this thread, or by others.
            if state.waiting > 0 && state.idle > 0 {
                self.todo.notify_one();
            }
        }
        state.threads -= 1;
        self.todo.notify_all();
    }

    /// Forgets what a client waits for.
    pub(crate) fn forget(&self, client: ClientId) {
        let mut state = self.state();
        if let Some(waiting) = state.clients.get_mut(&client) {
            let demand = waiting.demand.len();
            let count = demand + waiting.ahead.len();
            waiting.demand.clear();
            waiting.ahead.clear();
            state.waiting -= count;
            state.demand -= demand;
        }
    }

    /// Whether threads of clients wait for reads.
    pub(crate) fn are_waited_for(&self) -> bool {
        self.state().demand > 0
    }

    /// Ends the threads, and waits for those that read.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.is_over = true;
        state.waiting = 0;
        state.clients.clear();
        self.todo.notify_all();
        while state.threads > 0 {
            state = self.todo.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The next task: of the clients that may read, one for which the fewest threads do; what is
    /// waited for before what is not.
    fn next(&mut self, per_client: usize) -> Option<Task> {
        let may_read = |waiting: &Waiting, ahead: bool| {
            let (queue, most) = if ahead {
                (&waiting.ahead, (per_client / 4).max(1))
            } else {
                (&waiting.demand, per_client)
            };
            !queue.is_empty() && waiting.running < most
        };
        for ahead in [false, true] {
            let clients = self.clients.values_mut().filter(|waiting| may_read(waiting, ahead));
            if let Some(client) = clients.min_by_key(|waiting| waiting.running) {
                client.running += 1;
                self.waiting -= 1;
                let queue = if ahead { &mut client.ahead } else { &mut client.demand };
                return queue.pop_front();
            }
        }
        None
    }

    fn end(&mut self, task: &Task) {
        let client = task.client.id;
        self.demand = self.demand.saturating_sub(usize::from(!task.is_ahead));
        if let Some(waiting) = self.clients.get_mut(&client) {
            waiting.running -= 1;
            if waiting.running == 0 && waiting.demand.is_empty() && waiting.ahead.is_empty() {
                self.clients.remove(&client);
            }
        }
    }
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").finish_non_exhaustive()
    }
}
