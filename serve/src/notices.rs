//! What a pager tells the thread of a daemon.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use rustix::event::{EventfdFlags, eventfd};

use crate::client::{Client, ClientId};
use crate::pager::{Left, Notice, Options, Pager};
use crate::state::table::Table;
use crate::untold::Untold;

/// Notices of a pager, in a queue. Their descriptor can be read when there are some.
pub(crate) struct Notices {
    queue: Receiver<Notice>,
    wake: Wake,
    untold: Arc<Untold>,
}

/// Wakes the thread that waits for notices.
#[derive(Clone)]
pub(crate) struct Wake(Arc<OwnedFd>);

impl Wake {
    pub(crate) fn wake(&self) {
        // It counts far, and does not block.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl Notices {
    /// Starts a pager that tells of its clients here, with those that were left in the table.
    pub(crate) fn start(
        options: &Options,
        table: Arc<Table>,
        left: Option<Left<'_>>,
    ) -> io::Result<(Pager, Self)> {
        let wake = Wake(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        let (send, queue) = channel();
        let told = wake.clone();
        let tell = move |notice| {
            // The other end goes when the pager has gone.
            let _ = send.send(notice);
            told.wake();
        };
        let untold = Arc::<Untold>::default();
        let noted = Some(Arc::clone(&untold));
        let pager = Pager::start(options.clone(), table, left, noted, Box::new(tell))?;
        Ok((pager, Self { queue, wake, untold }))
    }

    pub(crate) fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// A client of which it was said that it has failed, once: it stays noted as long as this is
    /// there.
    pub(crate) fn failed(&self, client: ClientId) -> Option<Arc<Client>> {
        self.untold.take(client)
    }

    /// Those that have come.
    pub(crate) fn take(&self) -> Vec<Notice> {
        // Before the queue is looked at: what comes then is told of again.
        let _ = rustix::io::read(&self.wake.0, &mut [0; 8]);
        self.queue.try_iter().collect()
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.0.as_fd()
    }
}
