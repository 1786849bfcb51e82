//! A page server, as CRIU's, that may do something else than it should.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses some of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// What was asked for, after so long.
    All(Duration),
    /// One page of what was asked for.
    OnePage,
    /// Nothing, after so many requests.
    NoneAfter(usize),
    /// It ends, within the answer to so many requests.
    EndsWithin(usize),
    OtherPages,
    OtherTask,
    NoPages,
    MorePages,
    OtherCommand,
}

/// Serves one connection; what it returns at the end is the first page of each request, and whether
/// the last was to close.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    thread: JoinHandle<(Vec<usize>, bool)>,
}

impl TestServer {
    /// With the memory of all tasks, which begins at an address.
    pub(crate) fn start(answers: Answers, start: usize, memory: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || serve(&listener, answers, start, &memory));
        Self { address, thread }
    }

    pub(crate) fn ended(self) -> (Vec<usize>, bool) {
        self.thread.join().unwrap()
    }
}

fn serve(
    listener: &TcpListener,
    answers: Answers,
    start: usize,
    memory: &[u8],
) -> (Vec<usize>, bool) {
    let (mut connection, _) = listener.accept().unwrap();
    let mut output = connection.try_clone().unwrap();
    // Answers are late, and do not wait for each other.
    let (send, due) = channel::<(Instant, Vec<u8>)>();
    let sender = std::thread::spawn(move || {
        for (at, bytes) in due {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            // The other end has gone, perhaps.
            let _ = output.write_all(&bytes);
        }
        let _ = output.shutdown(std::net::Shutdown::Both);
    });
    let mut requests = Vec::new();
    let mut closed = false;
    let mut head = [0; 32];
    while connection.read_exact(&mut head).is_ok() {
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        let command = u32::from_le_bytes(head[..4].try_into().unwrap());
        let (mut pages, mut addr, mut task) = (word(8) as usize, word(16) as usize, word(24));
        if command == 0x1023 {
            closed = true;
            send.send((Instant::now(), vec![0; 4])).unwrap();
            break;
        }
        assert_eq!(command, 7);
        requests.push((addr - start) / PAGE);
        let bytes = memory[addr - start..][..pages * PAGE].to_vec();
        let mut answer = 6_u32 | 4 << 16;
        let mut at = Instant::now();
        match answers {
            Answers::All(delay) => at += delay,
            Answers::OnePage => pages = 1,
            Answers::NoneAfter(count) if requests.len() > count => continue,
            Answers::OtherPages => addr += PAGE,
            Answers::OtherTask => task += 1,
            Answers::NoPages => pages = 0,
            Answers::MorePages => pages += 1,
            Answers::OtherCommand => answer = 7,
            Answers::NoneAfter(_) | Answers::EndsWithin(_) => {}
        }
        let mut message = answer.to_le_bytes().to_vec();
        message.extend([0; 4]);
        [pages as u64, addr as u64, task].iter().for_each(|w| message.extend(w.to_le_bytes()));
        message.extend(&bytes[..bytes.len().min(pages * PAGE)]);
        if answers == Answers::EndsWithin(requests.len()) {
            message.truncate(5000);
            send.send((at, message)).unwrap();
            break;
        }
        send.send((at, message)).unwrap();
    }
    drop(send);
    sender.join().unwrap();
    (requests, closed)
}
