//! Firecracker's handshake over real sockets, with real descriptors, in pieces.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/child.rs"]
mod child;
#[path = "common/messages.rs"]
mod messages;

use std::fs::{self, File};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use messages::{Region, SOURCE};
use pervma_serve::Limits;
use pervma_serve::handshake::Arrival;
use pervma_serve::handshake::firecracker::{Handshake, HandshakeError, Parsed, parse};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

const MESSAGE: &[u8] =
    br#"[{"base_host_virt_addr": 65536, "size": 8192, "offset": 4096, "page_size": 4096}]"#;

/// A client, the connection to it, and the handshake.
struct Pair {
    client: UnixStream,
    connection: UnixStream,
    handshake: Handshake,
}

impl Pair {
    fn new(limits: &Limits) -> Self {
        let (client, connection) = UnixStream::pair().unwrap();
        Self { client, connection, handshake: Handshake::new(limits) }
    }

    /// Sends bytes with descriptors. There must be bytes.
    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let sent = sendmsg(&self.client, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
        assert_eq!(sent, Ok(bytes.len()));
    }

    fn advance(&mut self) -> Result<Option<Arrival>, HandshakeError> {
        self.handshake.advance(&self.connection, SOURCE)
    }

    fn refused(&mut self) -> HandshakeError {
        self.advance().unwrap_err()
    }
}

fn file() -> File {
    tempfile::tempfile().unwrap()
}

/// Which file a descriptor is of.
fn identity(descriptor: &OwnedFd) -> (u64, u64) {
    let metadata = File::from(descriptor.try_clone().unwrap()).metadata().unwrap();
    (metadata.dev(), metadata.ino())
}

fn is_of(arrival: &Arrival, file: &File) -> bool {
    let metadata = file.metadata().unwrap();
    identity(&arrival.userfaultfd) == (metadata.dev(), metadata.ino())
}

#[test]
fn a_message_and_its_descriptor_are_an_arrival() {
    let mut pair = Pair::new(&Limits::default());
    assert!(pair.advance().unwrap().is_none(), "nothing was sent");
    let file = file();
    pair.send(MESSAGE, &[file.as_fd()]);
    let arrival = pair.advance().unwrap().unwrap();
    assert!(is_of(&arrival, &file));
    assert_eq!(arrival.extents[0].range(), 0x10000..0x12000);
    let flags = rustix::io::fcntl_getfd(&arrival.userfaultfd).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    assert!(pair.advance().unwrap().is_none(), "it is over");
}

#[test]
fn the_descriptor_comes_with_any_byte_wherever_the_message_is_split() {
    let file = file();
    for split in 1..=MESSAGE.len() {
        let (first, second) = MESSAGE.split_at(split);
        let second = if second.is_empty() { b"\0" } else { second };
        for with_first in [true, false] {
            for is_read_between in [true, false] {
                let mut pair = Pair::new(&Limits::default());
                let descriptors = [file.as_fd()];
                let (with, without) = (&descriptors[..], &descriptors[..0]);
                pair.send(first, if with_first { with } else { without });
                let is_complete = with_first && split == MESSAGE.len();
                if is_read_between {
                    let advanced = pair.advance().unwrap();
                    assert_eq!(advanced.is_some(), is_complete, "{split}");
                    if is_complete {
                        continue;
                    }
                }
                pair.send(second, if with_first { without } else { with });
                let arrival = pair.advance().unwrap().unwrap();
                assert!(is_of(&arrival, &file) && arrival.extents.len() == 1);
            }
        }
    }
}

#[test]
fn a_second_descriptor_is_closed_and_more_are_refused() {
    let (first, second) = (file(), file());
    let two = [first.as_fd(), second.as_fd()];
    let mut pair = Pair::new(&Limits::default());
    pair.send(MESSAGE, &two);
    assert!(is_of(&pair.advance().unwrap().unwrap(), &first));

    let mut pair = Pair::new(&Limits::default());
    pair.send(&MESSAGE[..1], &two[..1]);
    pair.send(&MESSAGE[1..], &two[1..]);
    assert!(is_of(&pair.advance().unwrap().unwrap(), &first));

    for count in [3, 4, 5, 253] {
        let mut pair = Pair::new(&Limits::default());
        pair.send(MESSAGE, &vec![first.as_fd(); count]);
        assert_eq!(pair.refused(), HandshakeError::TooManyDescriptors);
    }
    let mut pair = Pair::new(&Limits::default());
    for byte in &MESSAGE[..3] {
        pair.send(&[*byte], &two[..1]);
    }
    assert_eq!(pair.refused(), HandshakeError::TooManyDescriptors);
}

#[test]
fn a_client_that_leaves_too_early_is_refused_by_what_is_missing() {
    let file = file();
    for sent in 0..MESSAGE.len() {
        let mut pair = Pair::new(&Limits::default());
        if sent > 0 {
            pair.send(&MESSAGE[..sent], &[file.as_fd()]);
        }
        pair.client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(pair.refused(), HandshakeError::Closed, "{sent}");
    }
    let mut pair = Pair::new(&Limits::default());
    pair.send(MESSAGE, &[]);
    assert!(pair.advance().unwrap().is_none(), "the descriptor may follow");
    pair.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(pair.refused(), HandshakeError::NoDescriptor);
}

#[test]
fn a_message_without_end_is_refused_at_the_limit() {
    let limits = Limits { message: 10_000, ..Limits::default() };
    let too_long = HandshakeError::TooLong { limit: 10_000 };
    let file = file();
    // Of one value, of what may precede it, and of what follows a message without descriptor.
    for (begin, rest) in [(&b"[\""[..], b'x'), (b" ", b' '), (b"[", b'['), (MESSAGE, b' ')] {
        let mut pair = Pair::new(&limits);
        let with = if begin == MESSAGE { vec![] } else { vec![file.as_fd()] };
        pair.send(begin, &with);
        pair.client.write_all(&vec![rest; 10_000 - begin.len()]).unwrap();
        assert!(pair.advance().unwrap().is_none(), "{}", begin.escape_ascii());
        pair.client.write_all(&[rest]).unwrap();
        assert_eq!(pair.refused(), too_long, "{}", begin.escape_ascii());
    }
}

#[test]
fn a_handshake_that_takes_too_long_is_refused() {
    let limits = Limits { handshake: Duration::ZERO, ..Limits::default() };
    let endless = HandshakeError::Endless { limit: Duration::ZERO };
    let mut pair = Pair::new(&limits);
    assert_eq!(pair.refused(), endless, "nothing was sent");
    pair.send(&MESSAGE[..5], &[file().as_fd()]);
    assert_eq!(pair.refused(), endless);
    let mut pair = Pair::new(&limits);
    pair.send(MESSAGE, &[file().as_fd()]);
    assert!(pair.advance().unwrap().is_some(), "what is complete is not refused");
}

#[test]
fn a_message_that_is_refused_is_refused_before_the_client_leaves() {
    let mut pair = Pair::new(&Limits::default());
    pair.send(b"[]", &[]);
    assert_eq!(pair.refused(), HandshakeError::NoRegion);
    let mut pair = Pair::new(&Limits::default());
    pair.send(b"GET", &[]);
    assert!(matches!(pair.refused(), HandshakeError::Malformed { .. }));
}

#[test]
fn a_connection_that_was_reset_is_an_error_of_the_kernel() {
    let mut pair = Pair::new(&Limits::default());
    // Closing with unread bytes resets.
    (&pair.connection).write_all(b"unread").unwrap();
    let (_, other) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut pair.client, other));
    assert_eq!(pair.refused(), HandshakeError::Receive(rustix::io::Errno::CONNRESET));
}

/// Plays `client` over a socket in random pieces, the descriptor with a random one of them.
fn in_random_pieces(rng: &mut StdRng, message: &[u8]) -> Result<Parsed, HandshakeError> {
    let mut pair = Pair::new(&messages::limits());
    let file = file();
    let mut descriptor = Some(rng.random_range(0..message.len().max(1)));
    let mut sent = 0;
    while sent < message.len() {
        let most =
            [1, 3, 40, message.len() - sent][rng.random_range(0..4)].min(message.len() - sent);
        let len = rng.random_range(1..=most);
        let descriptors = match descriptor {
            Some(at) if at < sent + len => {
                descriptor = None;
                vec![file.as_fd()]
            }
            _ => vec![],
        };
        pair.send(&message[sent..sent + len], &descriptors);
        sent += len;
        if rng.random() {
            match pair.advance() {
                Ok(None) => {}
                Ok(Some(arrival)) => return Ok(Parsed::Complete(arrival.extents)),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(pair.advance()?.map_or(Parsed::Incomplete, |arrival| Parsed::Complete(arrival.extents)))
}

#[test]
fn random_messages_in_random_pieces_become_what_they_are_in_one() {
    child::watch();
    let seed = std::env::var("CI_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut outcomes = [0; 3];
    for _ in 0..3000 {
        let regions: Vec<_> =
            (0..rng.random_range(0..6)).map(|index| served(&mut rng, index)).collect();
        let mut message = messages::message(rng.random(), &regions).into_bytes();
        match rng.random_range(0..4) {
            0 => message.truncate(rng.random_range(0..=message.len())),
            1 => {
                let at = rng.random_range(0..message.len());
                message[at] = rng.random();
            }
            _ => {}
        }
        let whole = parse(&message, SOURCE, &messages::limits());
        let pieces = in_random_pieces(&mut rng, &message);
        assert_eq!(pieces, whole, "seed {seed}: {}", message.escape_ascii());
        outcomes[match whole {
            Ok(Parsed::Incomplete) => 0,
            Ok(Parsed::Complete(_)) => 1,
            Err(_) => 2,
        }] += 1;
        let mut bytes = vec![0; rng.random_range(0..40)];
        rng.fill(bytes.as_mut_slice());
        messages::run(&bytes);
        let _ = messages::check(&message);
    }
    assert!(outcomes.iter().all(|&count| count > 100), "each outcome was tried: {outcomes:?}");
}

/// A region that is likely to be served beside the others.
fn served(rng: &mut StdRng, index: u8) -> Region {
    match rng.random_range(0..20) {
        0 => Region::of(&rng.random()),
        _ => Region::of(&[
            index * 8,
            8,
            rng.random::<u8>() / 4 * 2,
            rng.random_range(0..2),
            rng.random(),
        ]),
    }
}

#[test]
fn no_descriptor_is_leaked_however_a_handshake_ends() {
    const NAME: &str = "no_descriptor_is_leaked_however_a_handshake_ends";
    if child::case().is_none() {
        return child::run(NAME, "alone");
    }
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let file = file();
    let descriptors = [file.as_fd(); 253];
    let before = open();
    for count in [0, 1, 2, 3, 4, 253] {
        for message in [MESSAGE, b"[", b"[]", b"no", &[b' '; 9000]] {
            for leaves in [true, false] {
                let limits = Limits { message: 8000, ..Limits::default() };
                let mut pair = Pair::new(&limits);
                pair.send(message, &descriptors[..count]);
                if leaves {
                    pair.client.shutdown(std::net::Shutdown::Write).unwrap();
                }
                let advanced = pair.advance();
                let held = match &advanced {
                    Ok(Some(_)) => Some(1),
                    Ok(None) => Some(count),
                    // What came is for who refuses it.
                    Err(_) => None,
                };
                if let Some(held) = held {
                    assert_eq!(open(), before + 2 + held, "{count}, {advanced:?}");
                }
                drop((pair, advanced));
                assert_eq!(open(), before);
            }
        }
    }
    let limits = Limits { handshake: Duration::ZERO, ..Limits::default() };
    let mut pair = Pair::new(&limits);
    pair.send(b"[", &descriptors[..2]);
    assert!(matches!(pair.refused(), HandshakeError::Endless { .. }));
    assert_eq!(open(), before + 2 + 2);
}

#[test]
fn descriptors_that_cannot_be_opened_here_are_lost_and_said_so() {
    const NAME: &str = "descriptors_that_cannot_be_opened_here_are_lost_and_said_so";
    if child::case().is_none() {
        return child::run(NAME, "alone");
    }
    for spare in [0, 1] {
        let mut pair = Pair::new(&Limits::default());
        let file = file();
        pair.send(MESSAGE, &[file.as_fd(), file.as_fd()]);
        let next = file.try_clone().unwrap().as_raw_fd().cast_unsigned();
        let resource = rustix::process::Resource::Nofile;
        let before = rustix::process::getrlimit(resource);
        let few = rustix::process::Rlimit { current: Some(u64::from(next) + spare), ..before };
        rustix::process::setrlimit(resource, few).unwrap();
        assert_eq!(pair.refused(), HandshakeError::DescriptorLost, "{spare}");
        rustix::process::setrlimit(resource, before).unwrap();
    }
}
