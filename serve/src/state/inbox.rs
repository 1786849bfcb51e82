//! What a peer has sent, until all of it is understood: received straight into memory that outlives
//! this process, since nobody sends it again.
//!
//! | word | |
//! |---|---|
//! | 0 | [`MAGIC`] with the version of the layout |
//! | 1 | bytes that have come (32 bits), how many are being received (13), a part of the sum of both (19) |
//! | 2 | a byte that the next one to come is not |
//! | 3 | how many descriptors have come, twice |
//! | from 4 on | their numbers, each twice |
//! | from 16 on | what the kernel says of descriptors that come now |
//! | from 64 on | the bytes |
//!
//! Before bytes are received it is known how many there are, and how they begin: something else is
//! stored where they will be. So it is seen whether they have come, also if who received them has
//! died before it could note that.
#![expect(unsafe_code, reason = "bytes in shared memory")]

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::{io, slice};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recv, recvmsg,
};

use super::VERSION;
use super::descriptors::Descriptors;
use super::journal::Damaged;
use super::memory::Memory;
use super::record::{once, sum, twice};
use crate::steps::step;

const MAGIC: u64 = 0x5849_5652_4550_0000;
const STATE: usize = 1;
const OTHER: usize = 2;
const COUNT: usize = 3;
const NUMBERS: usize = 4;
const CONTROL: usize = 16;
const BYTES: usize = 64;
/// Descriptors that are noted. Of more, the others are closed.
pub(crate) const DESCRIPTORS: usize = CONTROL - NUMBERS;
/// Bytes that are received at a time, at most.
const RECEIVED: usize = 4096;

/// What is received is less than this.
const RECEIVES: usize = (1 << 13) - 1;
const _: () = assert!(RECEIVED <= RECEIVES);

/// So many bytes have come, and so many are being received: one word, which is stored at once.
fn state(len: usize, receives: usize) -> u64 {
    let both = len as u64 | (receives as u64) << 32;
    both | sum([both]) >> 45 << 45
}

/// An inbox.
///
/// I1: its memory is its own.
pub(crate) struct Inbox {
    memory: Memory,
    /// Bytes that have come.
    len: usize,
}

/// What was received.
pub(crate) struct Received {
    /// 0 if there will be no more.
    pub(crate) bytes: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Of the descriptors some were lost.
    pub(crate) is_cut: bool,
}

impl Inbox {
    /// Space for so many bytes, and a little more; in a file, if `is_kept`.
    ///
    /// # Errors
    ///
    /// The kernel's: there is no memory, or no descriptor.
    pub(crate) fn new(bytes: usize, is_kept: bool) -> io::Result<Self> {
        let words = BYTES + (bytes + RECEIVED).div_ceil(size_of::<u64>());
        let memory = if is_kept { Memory::of_file(words)? } else { Memory::of_process(words)? };
        memory.have(0, BYTES)?;
        memory.store(COUNT, twice(0));
        memory.store(STATE, state(0, 0));
        memory.store(0, MAGIC | u64::from(VERSION));
        Ok(Self { memory, len: 0 })
    }

    /// What another process has left, and the descriptors that have come.
    ///
    /// # Errors
    ///
    /// When it is not one that this process could have written.
    pub(crate) fn left_in(
        memory: Memory,
        descriptors: &mut Descriptors,
    ) -> Result<(Self, Vec<OwnedFd>), Damaged> {
        if memory.load(0) != MAGIC | u64::from(VERSION) {
            return Err(Damaged::Version);
        }
        let mut inbox = Self { memory, len: 0 };
        let noted = inbox.memory.load(STATE);
        let (len, receives) = (noted as u32 as usize, (noted >> 32) as usize % (RECEIVES + 1));
        let _ = inbox.numbers()?;
        if noted != state(len, receives) || len + receives > inbox.capacity() {
            return Err(Damaged::Sum);
        }
        inbox.len = len;
        if receives > 0 && u64::from(inbox.byte(len)) != inbox.memory.load(OTHER) {
            for number in inbox.told() {
                inbox.note(number)?;
            }
            inbox.len += receives;
        }
        inbox.note_len(0);
        let numbers = inbox.numbers()?;
        let came = numbers.into_iter().filter_map(|number| descriptors.take(number)).collect();
        Ok((inbox, came))
    }

    /// The descriptor of its file; -1 if there is none.
    pub(crate) fn descriptor(&self) -> i32 {
        self.memory.descriptor()
    }

    fn capacity(&self) -> usize {
        (self.memory.len() - BYTES) * size_of::<u64>()
    }

    fn byte(&self, at: usize) -> u8 {
        self.memory.load(BYTES + at / 8).to_ne_bytes()[at % 8]
    }

    fn set_byte(&self, at: usize, byte: u8) {
        let mut bytes = self.memory.load(BYTES + at / 8).to_ne_bytes();
        bytes[at % 8] = byte;
        self.memory.store(BYTES + at / 8, u64::from_ne_bytes(bytes));
    }

    /// So many bytes have come, and so many are being received.
    fn note_len(&self, receives: usize) {
        self.memory.store(STATE, state(self.len, receives));
    }

    /// The numbers of descriptors that are noted.
    fn numbers(&self) -> Result<Vec<i32>, Damaged> {
        let count = once(self.memory.load(COUNT)).filter(|&count| count <= DESCRIPTORS);
        let number =
            |at| once(self.memory.load(NUMBERS + at)).map(|number| (number as u32).cast_signed());
        let numbers: Option<Vec<_>> = (0..count.ok_or(Damaged::Sum)?).map(number).collect();
        numbers.ok_or(Damaged::Sum)
    }

    /// Notes a descriptor that has come, once.
    fn note(&self, number: i32) -> Result<(), Damaged> {
        let noted = self.numbers()?;
        if !noted.contains(&number) && noted.len() < DESCRIPTORS {
            let word = twice(number.cast_unsigned() as usize);
            self.memory.store(NUMBERS + noted.len(), word);
            self.memory.store(COUNT, twice(noted.len() + 1));
        }
        Ok(())
    }

    /// The descriptors that the kernel has told of in the last receiving.
    fn told(&self) -> Vec<i32> {
        let mut numbers = Vec::new();
        let mut at = CONTROL;
        // `struct cmsghdr`: its length with the header, a level and a type.
        while at + 2 <= BYTES {
            let len = self.memory.load(at) as usize;
            let end = at + len.div_ceil(size_of::<u64>());
            if len < 16 || end > BYTES {
                break;
            }
            let half = |half: usize| {
                let word = self.memory.load(at + half / 2).to_ne_bytes();
                let start = half % 2 * 4;
                i32::from_ne_bytes([word[start], word[start + 1], word[start + 2], word[start + 3]])
            };
            if (half(2), half(3)) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                numbers.extend((4..len / 4).map(half));
            }
            at = end;
        }
        numbers
    }

    /// The bytes that have come.
    pub(crate) fn bytes(&self) -> &[u8] {
        let words = self.len.div_ceil(size_of::<u64>()).max(1);
        // SAFETY: its own (I1), of which nothing is written while `self` is borrowed.
        let bytes = unsafe { self.memory.bytes(BYTES, words) };
        &bytes[..self.len]
    }

    /// Receives what is there, at most so many bytes, and as many as there is space for.
    ///
    /// # Errors
    ///
    /// The kernel's: `EAGAIN` if nothing is there. `ENOBUFS` if there is no space.
    pub(crate) fn receive(
        &mut self,
        connection: &UnixStream,
        most: usize,
    ) -> Result<Received, Errno> {
        let most = most.min(RECEIVED).min(self.capacity() - self.len);
        if most == 0 {
            return Err(Errno::NOBUFS);
        }
        let mut seen = [0; RECEIVED];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let (_, bytes) = retry(|| recv(connection, &mut seen[..most], flags))?;
        if bytes == 0 {
            return Ok(Received { bytes, descriptors: Vec::new(), is_cut: false });
        }
        let first = BYTES + self.len / size_of::<u64>();
        let words = bytes.div_ceil(size_of::<u64>()) + 1;
        let had = self.memory.have(first, words.min(self.memory.len() - first));
        had.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))?;
        for word in CONTROL..BYTES {
            self.memory.store(word, 0);
        }
        self.memory.store(OTHER, u64::from(!seen[0]));
        self.set_byte(self.len, !seen[0]);
        self.note_len(bytes);
        step();
        let received = self.receive_now(connection, bytes);
        #[cfg(test)]
        super::deaths::received(&self.memory, CONTROL);
        step();
        if let Ok(received) = &received {
            for descriptor in &received.descriptors {
                // Damaged, it is not used by the next process.
                let _ = self.note(descriptor.as_raw_fd());
            }
            self.len += received.bytes;
        }
        self.note_len(0);
        received
    }

    fn receive_now(&self, connection: &UnixStream, bytes: usize) -> Result<Received, Errno> {
        let first = BYTES + self.len / size_of::<u64>();
        // SAFETY: its own (I1), of which nothing else is used meanwhile.
        let space = unsafe { self.memory.bytes(first, self.memory.len() - first) };
        let space = &mut space[self.len % size_of::<u64>()..][..bytes];
        // SAFETY: as above, and other words than those.
        let control = unsafe { self.memory.bytes(CONTROL, BYTES - CONTROL) };
        // SAFETY: the same memory, of which nothing is known now; the kernel alone writes it.
        let control = unsafe {
            slice::from_raw_parts_mut(control.as_mut_ptr().cast::<MaybeUninit<u8>>(), control.len())
        };
        let mut control = RecvAncillaryBuffer::new(control);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            retry(|| recvmsg(connection, &mut [IoSliceMut::new(space)], &mut control, flags))?;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                descriptors.extend(came);
            }
        }
        // Not for want of space, of which there is enough.
        let is_cut = received.flags.contains(ReturnFlags::CTRUNC);
        Ok(Received { bytes: received.bytes, descriptors, is_cut })
    }

    /// All that has come was understood, and is noted elsewhere.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.note_len(0);
        self.memory.store(COUNT, twice(0));
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::os::fd::{AsFd, FromRawFd, IntoRawFd};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::super::deaths::{self, Image, Step, alone, count, earlier, steps};
    use super::super::memory::PAGE;
    use super::*;

    /// What is sent, with how many descriptors, and whether that and all before it are understood
    /// then. Memory that was not written has the byte that the first one is told from, and that of
    /// the piece before it.
    const PIECES: &[Piece] = &[
        (&[0xFF, 1, 2], 1, false),
        (&[0; 13], 0, false),
        (&[0xFF; 8], 2, false),
        (&[0], 0, false),
        (&[0, 0xFF, 0, 0xFF, 7], 1, true),
        (&[0xFF; 5], 1, false),
        (&[1, 2], 2, true),
    ];

    type Piece = (&'static [u8], usize, bool);

    fn send(connection: &UnixStream, bytes: &[u8], descriptors: usize) {
        let passed = vec![connection.as_fd(); descriptors];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(descriptors == 0 || control.push(SendAncillaryMessage::ScmRights(&passed)));
        let bytes = [std::io::IoSlice::new(bytes)];
        sendmsg(connection, &bytes, &mut control, SendFlags::empty()).unwrap();
    }

    /// Receives pieces; the descriptors that come.
    fn receive(inbox: &mut Inbox, pieces: &[Piece]) -> Vec<OwnedFd> {
        let (here, peer) = UnixStream::pair().unwrap();
        let mut came = Vec::new();
        for &(bytes, descriptors, is_understood) in pieces {
            send(&peer, bytes, descriptors);
            let received = inbox.receive(&here, usize::MAX).unwrap();
            assert_eq!((received.bytes, received.is_cut), (bytes.len(), false));
            came.extend(received.descriptors);
            if is_understood {
                inbox.clear();
            }
        }
        came
    }

    /// What has come with so many of the pieces, and was not understood before the last one: bytes,
    /// and which of all descriptors.
    fn sent(pieces: usize) -> (Vec<u8>, Range<usize>) {
        let before = &PIECES[..pieces.saturating_sub(1)];
        let begin = before.iter().rposition(|piece| piece.2).map_or(0, |at| at + 1);
        let descriptors = |pieces: &[Piece]| pieces.iter().map(|piece| piece.1).sum();
        let bytes = PIECES[begin..pieces].iter().flat_map(|piece| piece.0).copied().collect();
        (bytes, descriptors(&PIECES[..begin])..descriptors(&PIECES[..pieces]))
    }

    /// What is left of a process that dies behind each of these steps, and behind each of those
    /// that the next one does about that, is what has come: bytes, and descriptors of these
    /// numbers, which are open. How often one has died.
    fn die(mut image: Image, steps: &[Step], all: &[i32], times: usize) -> Result<usize, usize> {
        let mut deaths = 0;
        for step in steps.iter().map(Some).chain([None]) {
            deaths += 1;
            let next = || {
                let told = image.told(0);
                let Some(file) = image.files().next() else { return Ok(0) };
                let file = image.descriptors(None).take(file).unwrap();
                // SAFETY: open, and owned by nobody else until they are let go below.
                let owned = all.iter().map(|&number| unsafe { OwnedFd::from_raw_fd(number) });
                let mut descriptors = Descriptors::default();
                owned.for_each(|owned| descriptors.give(owned));
                let memory = Memory::left_in(file).unwrap();
                let (mut inbox, came) = match Inbox::left_in(memory, &mut descriptors) {
                    Ok(left) => left,
                    // It is not noted anywhere before it has its version.
                    Err(error) => return if told == 0 { Ok(0) } else { panic!("{error}") },
                };
                let took = count();
                let came: Vec<_> = came.into_iter().map(IntoRawFd::into_raw_fd).collect();
                let (bytes, descriptors) = sent(told);
                let has_come = &all[descriptors];
                let is_understood = told > 0 && PIECES[told - 1].2;
                // Descriptors stay noted a little longer than bytes.
                let is_right = match inbox.bytes() {
                    [] if is_understood => came.is_empty() || came == has_come,
                    found => found == bytes && came == has_come,
                };
                if !is_right {
                    return Err(told);
                }
                if is_understood {
                    inbox.clear();
                }
                receive(&mut inbox, &PIECES[told..]);
                assert!(inbox.bytes().is_empty());
                Ok(took)
            };
            let (took, mut steps) = deaths::steps(next);
            steps.truncate(took?);
            if times > 1 {
                deaths += die(image.clone(), &steps, all, times - 1)?;
            }
            step.into_iter().for_each(|step| _ = image.apply(step));
        }
        Ok(deaths)
    }

    /// All that a process does that receives each piece.
    fn received() -> (Vec<Step>, Vec<OwnedFd>) {
        let receives = || {
            let mut inbox = Inbox::new(100, true).unwrap();
            (receive(&mut inbox, PIECES), inbox)
        };
        let ((descriptors, _inbox), steps) = steps(receives);
        (steps, descriptors)
    }

    #[test]
    fn what_was_received_is_there_whatever_store_the_receiver_dies_behind() {
        let _alone = alone();
        let (steps, descriptors) = received();
        let all: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let deaths = die(Image::default(), &steps, &all, 2);
        println!("{deaths:?} deaths");
        assert!(deaths.is_ok(), "behind {deaths:?} pieces");
    }

    /// What the next process finds of these words in an inbox.
    fn left(words: &[(usize, u64)]) -> Result<(usize, usize), Damaged> {
        let memory = Memory::of_process(PAGE).unwrap();
        memory.store(0, MAGIC | u64::from(VERSION));
        memory.store(COUNT, twice(0));
        memory.store(STATE, state(0, 0));
        words.iter().for_each(|&(at, word)| memory.store(at, word));
        let (inbox, came) = Inbox::left_in(memory, &mut Descriptors::default())?;
        Ok((inbox.bytes().len(), came.len()))
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        let capacity = (PAGE - BYTES) * 8;
        let noted = |len: usize, receives: usize| (STATE, state(len, receives));
        assert_eq!(left(&[noted(capacity, 0)]), Ok((capacity, 0)));
        for (len, receives) in [(capacity, 1), (capacity - 7, 8), (u32::MAX as usize, RECEIVES)] {
            assert_eq!(left(&[noted(len, receives)]), Err(Damaged::Sum), "{len} {receives}");
        }
        for bit in 0..64 {
            let damaged = (STATE, state(700, 10) ^ 1 << bit);
            assert_eq!(left(&[damaged]), Err(Damaged::Sum), "bit {bit}");
        }
        for word in [STATE, COUNT] {
            assert_eq!(left(&[(word, 0)]), Err(Damaged::Sum), "word {word}");
        }
        for count in [twice(DESCRIPTORS + 1), 1, 1 << 32, u64::MAX] {
            assert_eq!(left(&[(COUNT, count)]), Err(Damaged::Sum), "{count}");
        }
        // Negative, and huge: they are not there.
        let numbers = [u32::MAX, i32::MAX.cast_unsigned(), 1 << 31, 3].into_iter().enumerate();
        let numbers: Vec<_> =
            numbers.map(|(at, number)| (NUMBERS + at, twice(number as usize))).collect();
        assert_eq!(left(&[&[(COUNT, twice(4))], &numbers[..]].concat()), Ok((0, 0)));
        for bit in 0..64 {
            let damaged = (NUMBERS, twice(3) ^ 1 << bit);
            assert_eq!(left(&[(COUNT, twice(1)), damaged]), Err(Damaged::Sum), "bit {bit}");
        }
        for bit in 0..64 {
            let version = (MAGIC | u64::from(VERSION)) ^ 1 << bit;
            assert_eq!(left(&[(0, version)]), Err(Damaged::Version));
        }
    }

    #[test]
    fn whatever_the_kernel_seems_to_have_told_is_read_to_its_end_at_most() {
        let rights = u64::from_ne_bytes([1, 0, 0, 0, 1, 0, 0, 0]);
        let came = (STATE, state(0, 8));
        for len in (0..=PAGE as u64).chain((0..64).map(|bit| u64::MAX >> bit)) {
            // One message, and another one behind it.
            for at in [CONTROL, CONTROL + 3, BYTES - 2] {
                let words = [came, (OTHER, 1), (CONTROL, 20), (at, len), (at + 1, rights)];
                assert_eq!(left(&words), Ok((8, 0)), "{len} at {at}");
            }
        }
    }

    /// Names, what is done too early, and behind which of these it is done else.
    type Weaker = (&'static str, fn(usize, u64) -> bool, fn(usize, u64) -> bool);

    const WEAKER: [Weaker; 3] = [
        (
            "bytes are being received before the first of them is told apart",
            |word, value| word == STATE && value as u32 > 0,
            |word, _| word >= BYTES,
        ),
        (
            "bytes are being received before it is noted what tells them apart",
            |word, value| word == STATE && value as u32 > 0,
            |word, _| word == OTHER,
        ),
        (
            "bytes have come before their descriptors are noted",
            |word, value| word == STATE && value as u32 == 0,
            |word, _| (NUMBERS..CONTROL).contains(&word),
        ),
    ];

    #[test]
    fn a_weaker_order_is_found() {
        let _alone = alone();
        for (name, early, late) in WEAKER {
            let (steps, descriptors) = received();
            let all: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            let of = |is: fn(usize, u64) -> bool| move |step: &Step| matches!(*step, Step::Stored(_, at, value) if is(at, value));
            let found = die(Image::default(), &earlier(steps, of(early), of(late)), &all, 1);
            println!("{name}: {found:?}");
            assert!(found.is_err(), "{name}");
        }
    }
}
