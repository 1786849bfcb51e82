//! Firecracker's handshake: one JSON message of where the guest's memory is, and a userfaultfd.
//!
//! Firecracker connects to a Unix stream socket and sends an array of regions, with the descriptor
//! as `SCM_RIGHTS`; there is no reply:
//!
//! ```json
//! [{"base_host_virt_addr": 140612345004032, "size": 134217728, "offset": 0, "page_size": 4096}]
//! ```
//!
//! | what | is taken as |
//! |---|---|
//! | `base_host_virt_addr`, `size`, `offset` | the address, the length, and where it begins in the source, in bytes |
//! | `page_size`, else `page_size_kib` | bytes, both of them; 4096 if there is neither |
//! | other members of a region | nothing |
//! | an object `{"type": 0, "regions": [...]}` in place of the array | the array, as nydus sends it |
//! | what follows the message | nothing |
//! | a second descriptor, as forks send for the memory | nothing; it is closed, if it is no userfaultfd |
//!
//! The message may come in pieces, and the descriptor with any of them, or after them.

use std::fmt::{self, Write as _};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pervma_pager::sys::RemoteUserfaultfd;
use rustix::io::Errno;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected,
    Visitor,
};

use super::Arrival;
use crate::limits::Limits;
use crate::state::Extent;
use crate::state::inbox::Inbox;

/// The size of pages that are not huge, in bytes.
const PAGE: u64 = 4096;
/// The size of huge pages, in bytes.
const HUGE: u64 = 2 << 20;
/// The size of the huge pages that are not served, in bytes.
const GIGANTIC: u64 = 1 << 30;
/// How many descriptors may come.
const DESCRIPTORS: usize = 2;

/// A handshake that is under way, on one connection.
///
/// It never waits: a thread can advance those of many connections in turn.
///
/// ```
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// use pervma_serve::Limits;
/// use pervma_serve::handshake::firecracker::Handshake;
///
/// let (mut client, connection) = UnixStream::pair()?;
/// let mut handshake = Handshake::new(&Limits::default());
/// client.write_all(br#"[{"base_host_virt_addr": 65536, "si"#)?;
/// assert!(handshake.advance(&connection, 1 << 20)?.is_none()); // more is to come
///
/// drop(client);
/// let error = handshake.advance(&connection, 1 << 20).unwrap_err();
/// assert_eq!(error.to_string(), "the client has closed the connection within its message");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Handshake {
    limits: Limits,
    began: Instant,
    /// What has come; there is none before something has.
    inbox: Option<Inbox>,
    /// How many bytes of it are taken.
    taken: usize,
    message: Message,
    /// In the order in which they came; the first userfaultfd is the client's.
    descriptors: Vec<OwnedFd>,
}

/// As much of a message as has come.
#[derive(Debug)]
enum Message {
    Partial { bytes: Vec<u8>, scan: Scan },
    Complete(Vec<Extent>),
}

/// What [`parse`] has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The message has not ended yet.
    Incomplete,
    /// Its regions, in order of addresses.
    Complete(Vec<Extent>),
}

/// Why a client was not accepted.
///
/// What it says is one line of printable ASCII, of a bounded length, whatever the client has sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The message is no JSON, or other JSON than expected.
    #[error("the message is no list of regions: {found}")]
    Malformed {
        /// What is wrong, and where.
        found: String,
    },
    /// The message has not ended within the limit.
    #[error("the message is longer than {limit} bytes")]
    TooLong {
        /// [`Limits::message`].
        limit: usize,
    },
    /// The message and the descriptor have not come in time.
    #[error("the handshake was not complete after {limit:?}")]
    Endless {
        /// [`Limits::handshake`].
        limit: Duration,
    },
    /// The client has closed the connection.
    #[error("the client has closed the connection within its message")]
    Closed,
    /// The kernel's error, from receiving.
    #[error("receiving from the client failed: {0}")]
    Receive(Errno),
    /// The client has closed the connection after its message, and has sent no descriptor.
    #[error("the client has sent no userfaultfd with its message")]
    NoDescriptor,
    /// More descriptors have come than a client can have a reason for.
    #[error("the client has sent more than {DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// Two of its descriptors are userfaultfds.
    #[error("the client has sent two userfaultfds, of which one can be served")]
    TwoUserfaultfds,
    /// The kernel could not pass a descriptor on: this process may have too many open.
    #[error("a descriptor of the client was lost: are too many files open here?")]
    DescriptorLost,
    /// The list is empty.
    #[error("the message has no region")]
    NoRegion,
    /// The list is too long.
    #[error("the message has more than {limit} regions")]
    TooManyRegions {
        /// [`Limits::regions`].
        limit: usize,
    },
    /// Pages of a size that is not served.
    #[error("the region at {start:#x} has pages of {page_size} bytes, not of 4096 or 2097152")]
    PageSize {
        /// The address of the region.
        start: u64,
        /// In bytes.
        page_size: u64,
    },
    /// Pages of 1 GiB.
    #[error("the region at {start:#x} has huge pages of 1 GiB, which are not served: use 2 MiB")]
    GiganticPages {
        /// The address of the region.
        start: u64,
    },
    /// A region without bytes.
    #[error("the region at {start:#x} is empty")]
    Empty {
        /// The address of the region.
        start: u64,
    },
    /// The address or the length of a region is not a multiple of its page size.
    #[error("the region at {start:#x} of {len:#x} bytes is not whole pages of {page_size} bytes")]
    NotWholePages {
        /// The address of the region.
        start: u64,
        /// Its length in bytes.
        len: u64,
        /// In bytes.
        page_size: u64,
    },
    /// A region that goes beyond the last address.
    #[error("the region at {start:#x} of {len:#x} bytes goes beyond the last address")]
    Wraps {
        /// The address of the region.
        start: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A region that begins within a page of the source.
    #[error("the region at {start:#x} begins at {offset:#x} of the source, within a page")]
    OffsetNotAligned {
        /// The address of the region.
        start: u64,
        /// In bytes.
        offset: u64,
    },
    /// A region that the source has not all bytes of.
    #[error(
        "the region at {start:#x} needs {len:#x} bytes from {offset:#x} of the source, which has \
         {source_len:#x}"
    )]
    BeyondSource {
        /// The address of the region.
        start: u64,
        /// Its length in bytes.
        len: u64,
        /// Where it begins in the source, in bytes.
        offset: u64,
        /// The length of the source in bytes.
        source_len: u64,
    },
    /// Two regions have addresses in common.
    #[error("the regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// The address of the one that begins first.
        first: u64,
        /// The address of the other.
        second: u64,
    },
}

impl Handshake {
    /// Begins now, with nothing received.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            limits: limits.clone(),
            began: Instant::now(),
            inbox: None,
            taken: 0,
            message: Message::Partial { bytes: Vec::new(), scan: Scan::default() },
            descriptors: Vec::new(),
        }
    }

    /// Begins now, with what has come already.
    pub(crate) fn with(limits: &Limits, inbox: Inbox, descriptors: Vec<OwnedFd>) -> Self {
        Self { inbox: Some(inbox), descriptors, ..Self::new(limits) }
    }

    /// An inbox for a message of such limits; in a file, if `is_kept`.
    pub(crate) fn inbox(limits: &Limits, is_kept: bool) -> std::io::Result<Inbox> {
        Inbox::new(limits.message, is_kept)
    }

    /// Receives what is there, and returns what the client has brought once that is complete;
    /// until then `None`.
    ///
    /// `source_len` is the length of the source in bytes. The connection need not be nonblocking.
    /// One call receives at most [`Limits::message`] bytes and a little more. An incomplete
    /// handshake becomes an error when this is called after the time of [`Limits::handshake`]:
    /// for a client that sends nothing, a timer has to call it.
    ///
    /// After an arrival or an error the handshake is over, and has no use.
    ///
    /// # Errors
    ///
    /// Why the client is to be refused. What it has sent is to be [taken](Self::take_descriptors)
    /// then: closed, a userfaultfd lets missing pages be zeros.
    pub fn advance(
        &mut self,
        connection: &UnixStream,
        source_len: u64,
    ) -> Result<Option<Arrival>, HandshakeError> {
        let limit = self.limits.handshake;
        let advanced = match self.receive_all(connection, source_len) {
            Ok(None) if self.began.elapsed() >= limit => Err(HandshakeError::Endless { limit }),
            other => other,
        };
        if !matches!(advanced, Ok(None)) {
            self.message = Message::Partial { bytes: Vec::new(), scan: Scan::default() };
        }
        advanced
    }

    /// The descriptors that have come, if no arrival has taken them.
    #[must_use]
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        mem::take(&mut self.descriptors)
    }

    fn receive_all(
        &mut self,
        connection: &UnixStream,
        source_len: u64,
    ) -> Result<Option<Arrival>, HandshakeError> {
        loop {
            let arrival = self.take(source_len)?;
            if arrival.is_some() {
                return Ok(arrival);
            }
            match self.receive(connection) {
                Ok(0) if matches!(self.message, Message::Complete(_)) => {
                    return Err(HandshakeError::NoDescriptor);
                }
                Ok(0) => return Err(HandshakeError::Closed),
                Ok(_) => {}
                Err(HandshakeError::Receive(Errno::AGAIN)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives bytes, and descriptors, which are owned from here on.
    fn receive(&mut self, connection: &UnixStream) -> Result<usize, HandshakeError> {
        let inbox = match &mut self.inbox {
            Some(inbox) => inbox,
            none => {
                let inbox = Self::inbox(&self.limits, false).map_err(|error| {
                    HandshakeError::Receive(Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))
                })?;
                none.insert(inbox)
            }
        };
        let received = inbox.receive(connection, usize::MAX).map_err(HandshakeError::Receive)?;
        self.descriptors.extend(received.descriptors);
        if self.descriptors.len() > DESCRIPTORS {
            return Err(HandshakeError::TooManyDescriptors);
        }
        if received.is_cut {
            return Err(HandshakeError::DescriptorLost);
        }
        Ok(received.bytes)
    }

    /// Takes received bytes. What comes of them does not depend on how they were split.
    fn take(&mut self, source_len: u64) -> Result<Option<Arrival>, HandshakeError> {
        let limit = self.limits.message;
        let bytes = self.inbox.as_ref().map_or(&[][..], |inbox| &inbox.bytes()[self.taken..]);
        let within = &bytes[..bytes.len().min(limit - self.taken)];
        self.taken += within.len();
        if let Message::Partial { bytes: message, scan } = &mut self.message {
            let end = scan.end(within)?;
            extend(message, &within[..end.unwrap_or(within.len())], limit);
            if end.is_some() {
                let extents = extents(message, source_len, &self.limits)?;
                self.message = Message::Complete(extents);
            }
        }
        match &mut self.message {
            Message::Complete(extents) if !self.descriptors.is_empty() => {
                let is_one = |fd: &OwnedFd| RemoteUserfaultfd::is_one(fd.as_fd());
                if self.descriptors.iter().filter(|fd| is_one(fd)).count() > 1 {
                    return Err(HandshakeError::TwoUserfaultfds);
                }
                let first = self.descriptors.iter().position(is_one);
                let extents = mem::take(extents);
                // If there is none, that is found when it is used.
                let userfaultfd = self.descriptors.remove(first.unwrap_or(0));
                if !self.descriptors.is_empty() {
                    tracing::info!("a second descriptor of the client is closed unused");
                    self.descriptors.clear();
                }
                Ok(Some(Arrival { extents, userfaultfd }))
            }
            _ if within.len() < bytes.len() => Err(HandshakeError::TooLong { limit }),
            _ => Ok(None),
        }
    }
}

/// The regions of a message, once it is complete: what [`Handshake`] makes of these bytes, wherever
/// they were split.
///
/// # Errors
///
/// Why it is refused. With more bytes it would be refused for the same reason.
///
/// ```
/// use pervma_serve::Limits;
/// use pervma_serve::handshake::firecracker::{Parsed, parse};
///
/// let message = br#"[{"base_host_virt_addr": 65536, "size": 8192, "offset": 4096}]"#;
/// let limits = Limits::default();
/// assert_eq!(parse(&message[..40], 1 << 20, &limits)?, Parsed::Incomplete);
/// let Parsed::Complete(extents) = parse(message, 1 << 20, &limits)? else { unreachable!() };
/// assert_eq!((extents[0].range(), extents[0].offset), (0x10000..0x12000, 4096));
///
/// let error = parse(message, 8192, &limits).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "the region at 0x10000 needs 0x2000 bytes from 0x1000 of the source, which has 0x2000",
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn parse(message: &[u8], source_len: u64, limits: &Limits) -> Result<Parsed, HandshakeError> {
    let within = &message[..message.len().min(limits.message)];
    match Scan::default().end(within)? {
        Some(end) => extents(&within[..end], source_len, limits).map(Parsed::Complete),
        None if within.len() < message.len() => {
            Err(HandshakeError::TooLong { limit: limits.message })
        }
        None => Ok(Parsed::Incomplete),
    }
}

/// Appends bytes. The vector has at most `limit` bytes of capacity, and grows as vectors do, so
/// that many short pieces are not many copies.
fn extend(message: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    let needed = message.len() + bytes.len();
    if needed > message.capacity() {
        let capacity = needed.max(message.capacity().saturating_mul(2)).min(limit);
        message.reserve_exact(capacity - message.len());
    }
    message.extend_from_slice(bytes);
}

/// Finds where an array or object of JSON ends. It looks at each byte once, whatever the pieces
/// that they come in, and at nothing but brackets and strings: the rest is for the parser.
#[derive(Debug, Default)]
struct Scan {
    /// How many brackets are open.
    depth: usize,
    in_string: bool,
    /// Whether the byte before was a backslash in a string, and not itself escaped.
    is_escaped: bool,
}

impl Scan {
    /// How many of these bytes belong to the message, if it ends within them.
    fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, HandshakeError> {
        for (index, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'[' | b'{' => self.depth += 1,
                b' ' | b'\t' | b'\r' | b'\n' => {}
                _ if self.depth == 0 => {
                    let found = "it does not begin with a bracket".to_owned();
                    return Err(HandshakeError::Malformed { found });
                }
                b']' | b'}' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(Some(index + 1));
                    }
                }
                b'"' => self.in_string = true,
                _ => {}
            }
        }
        Ok(None)
    }
}

/// The extents of a complete message.
fn extents(
    message: &[u8],
    source_len: u64,
    limits: &Limits,
) -> Result<Vec<Extent>, HandshakeError> {
    let limit = limits.regions;
    let mut parser = serde_json::Deserializer::from_slice(message);
    let regions = Regions { limit, within_object: false }
        .deserialize(&mut parser)
        .and_then(|regions| parser.end().map(|()| regions))
        .map_err(|error| HandshakeError::Malformed { found: printable(&error) })?
        .ok_or(HandshakeError::TooManyRegions { limit })?;
    if regions.is_empty() {
        return Err(HandshakeError::NoRegion);
    }
    let extents = regions.iter().map(|region| region.extent(source_len));
    let mut extents = extents.collect::<Result<Vec<_>, _>>()?;
    extents.sort_unstable_by_key(|extent| extent.start);
    for (first, second) in extents.iter().zip(extents.iter().skip(1)) {
        if first.range().end > second.start {
            return Err(HandshakeError::Overlap { first: first.start, second: second.start });
        }
    }
    Ok(extents)
}

/// What an error says, as printable ASCII of a bounded length: it may quote the client.
fn printable(error: &serde_json::Error) -> String {
    /// Takes characters up to a length.
    struct Bounded(String);
    impl fmt::Write for Bounded {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            const LENGTH: usize = 120;
            for character in text.chars() {
                if self.0.len() >= LENGTH {
                    self.0.push_str("...");
                    return Err(fmt::Error);
                }
                match character {
                    ' '..='~' => self.0.push(character),
                    _ => self.0.extend(character.escape_default()),
                }
            }
            Ok(())
        }
    }
    let mut bounded = Bounded(String::new());
    // An error is that it was too long.
    let _ = write!(bounded, "{error}");
    bounded.0
}

/// A region, as it is sent.
#[derive(Deserialize)]
struct Region {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    /// In bytes, despite its name.
    page_size_kib: Option<u64>,
}

impl Region {
    fn extent(&self, source_len: u64) -> Result<Extent, HandshakeError> {
        let Self { base_host_virt_addr: start, size: len, offset, .. } = *self;
        let page_size = self.page_size.or(self.page_size_kib).unwrap_or(PAGE);
        let page_size_32 = match page_size {
            PAGE => PAGE as u32,
            HUGE => HUGE as u32,
            GIGANTIC => return Err(HandshakeError::GiganticPages { start }),
            _ => return Err(HandshakeError::PageSize { start, page_size }),
        };
        if len == 0 {
            return Err(HandshakeError::Empty { start });
        }
        if start % page_size != 0 || len % page_size != 0 {
            return Err(HandshakeError::NotWholePages { start, len, page_size });
        }
        if start.checked_add(len).is_none() {
            return Err(HandshakeError::Wraps { start, len });
        }
        if offset % PAGE != 0 {
            return Err(HandshakeError::OffsetNotAligned { start, offset });
        }
        if offset.checked_add(len).is_none_or(|end| end > source_len) {
            return Err(HandshakeError::BeyondSource { start, len, offset, source_len });
        }
        Ok(Extent { start, len, offset, page_size: page_size_32, content: Extent::SOURCE })
    }
}

/// Reads a list of regions, or an object that has one; `None` if it has more than `limit`, no more
/// of which are ever kept.
#[derive(Clone, Copy)]
struct Regions {
    limit: usize,
    within_object: bool,
}

impl<'de> DeserializeSeed<'de> for Regions {
    type Value = Option<Vec<Region>>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Regions {
    type Value = Option<Vec<Region>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of regions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut regions = Vec::new();
        while let Some(region) = list.next_element()? {
            if regions.len() == self.limit {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(None);
            }
            regions.push(region);
        }
        Ok(Some(regions))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        if self.within_object {
            return Err(A::Error::invalid_type(Unexpected::Map, &self));
        }
        let list = Self { within_object: true, ..self };
        let mut regions = None;
        while let Some(name) = object.next_key::<Member>()? {
            match name {
                Member::Type => match object.next_value::<u64>()? {
                    0 => {}
                    _ => return Err(A::Error::custom("its type is not 0, a handshake")),
                },
                Member::Regions if regions.is_some() => {
                    return Err(A::Error::duplicate_field("regions"));
                }
                Member::Regions => regions = Some(object.next_value_seed(list)?),
                Member::Other => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        regions.ok_or_else(|| A::Error::missing_field("regions"))
    }
}

/// A member of the object around the list.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Type,
    Regions,
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: u64 = 8 << 20;

    fn limits() -> Limits {
        Limits { message: 4096, regions: 4, ..Limits::default() }
    }

    /// A region of Firecracker's, with some members replaced.
    fn region(replaced: &[(&str, &str)]) -> String {
        let mut members = vec![
            ("base_host_virt_addr", "4194304"),
            ("size", "2097152"),
            ("offset", "2097152"),
            ("page_size", "4096"),
            ("page_size_kib", "4096"),
        ];
        for (name, value) in replaced {
            members.retain(|(member, _)| member != name);
            members.push((name, value));
        }
        members.retain(|(_, value)| !value.is_empty());
        let text: Vec<_> =
            members.iter().map(|(name, text)| format!("\"{name}\": {text}")).collect();
        format!("{{{}}}", text.join(", "))
    }

    fn parse_text(text: &str) -> Result<Vec<Extent>, HandshakeError> {
        match parse(text.as_bytes(), SOURCE, &limits())? {
            Parsed::Complete(extents) => Ok(extents),
            Parsed::Incomplete => panic!("incomplete: {text}"),
        }
    }

    fn one(replaced: &[(&str, &str)]) -> Result<Extent, HandshakeError> {
        parse_text(&format!("[{}]", region(replaced))).map(|extents| {
            assert_eq!(extents.len(), 1);
            extents[0]
        })
    }

    #[test]
    fn a_region_says_where_its_bytes_are_in_memory_and_in_the_source() {
        let extent = Extent {
            start: 4 << 20,
            len: 2 << 20,
            offset: 2 << 20,
            page_size: 4096,
            content: Extent::SOURCE,
        };
        assert_eq!(one(&[]), Ok(extent));
        let nydus = format!(r#"{{"policy": [1], "type": 0, "regions": [{}]}}"#, region(&[]));
        assert_eq!(parse_text(&nydus), Ok(vec![extent]));
        assert_eq!(parse_text(&format!(r#"{{"regions": [{}]}}"#, region(&[]))), Ok(vec![extent]));
        assert_eq!(one(&[("unknown", r#"{"a": ["]", "\"}", {}]}"#)]), Ok(extent));
    }

    #[test]
    fn either_member_has_the_page_size_in_bytes() {
        let size = |replaced: &[(&str, &str)]| one(replaced).map(|extent| extent.page_size);
        let (old, new) = ("page_size_kib", "page_size");
        assert_eq!(size(&[(new, "2097152"), (old, "")]), Ok(2 << 20));
        assert_eq!(size(&[(new, ""), (old, "2097152")]), Ok(2 << 20));
        assert_eq!(size(&[(new, "2097152"), (old, "4096")]), Ok(2 << 20));
        assert_eq!(size(&[(new, "null"), (old, "2097152")]), Ok(2 << 20));
        assert_eq!(size(&[(new, ""), (old, "")]), Ok(4096));
    }

    #[test]
    fn regions_are_in_order_of_addresses() {
        let at = |start: &str| region(&[("base_host_virt_addr", start), ("size", "4096")]);
        let text = format!("[{}, {}, {}]", at("8192"), at("0"), at("4096"));
        let starts =
            parse_text(&text).unwrap().iter().map(|extent| extent.start).collect::<Vec<_>>();
        assert_eq!(starts, [0, 4096, 8192]);
    }

    #[test]
    fn each_region_that_cannot_be_served_is_refused_by_what_is_wrong_with_it() {
        use HandshakeError::*;
        let start = 4 << 20;
        let max = "18446744073709551615";
        let last = "18446744073709547520";
        let refused = |replaced: &[(&str, &str)], expected: HandshakeError| {
            assert_eq!(one(replaced), Err(expected), "{replaced:?}");
        };
        for page_size in [0, 1, 4, 2048, 16384, 4 << 20, u64::MAX] {
            let text = page_size.to_string();
            refused(&[("page_size", &text)], PageSize { start, page_size });
        }
        refused(&[("page_size", "1073741824")], GiganticPages { start });
        refused(&[("size", "0")], Empty { start });
        let partial = |start, len, page_size| NotWholePages { start, len, page_size };
        refused(&[("size", "4095")], partial(start, 4095, 4096));
        refused(&[("size", max)], partial(start, u64::MAX, 4096));
        refused(&[("base_host_virt_addr", "1")], partial(1, 2 << 20, 4096));
        let huge = ("page_size", "2097152");
        refused(&[("size", "4096"), huge], partial(start, 4096, 2 << 20));
        refused(&[("base_host_virt_addr", "4096"), huge], partial(4096, 2 << 20, 2 << 20));
        let end = u64::MAX - 4095;
        refused(&[("base_host_virt_addr", last)], Wraps { start: end, len: 2 << 20 });
        refused(
            &[("base_host_virt_addr", last), ("size", "4096")],
            Wraps { start: end, len: 4096 },
        );
        refused(&[("size", last)], Wraps { start, len: end });
        refused(&[("offset", "4095")], OffsetNotAligned { start, offset: 4095 });
        refused(&[("offset", max)], OffsetNotAligned { start, offset: u64::MAX });
        let beyond = |len, offset| BeyondSource { start, len, offset, source_len: SOURCE };
        refused(&[("offset", "6295552")], beyond(2 << 20, 6295552));
        refused(&[("offset", last)], beyond(2 << 20, end));
        assert!(one(&[("offset", "6291456")]).is_ok(), "its end is the end of the source");
    }

    #[test]
    fn regions_may_touch_but_not_overlap() {
        let at = |start: &str| region(&[("base_host_virt_addr", start)]);
        let overlap = |first, second| Err(HandshakeError::Overlap { first, second });
        let two =
            |first: &str, second: &str| parse_text(&format!("[{}, {}]", at(first), at(second)));
        assert!(two("2097152", "0").is_ok());
        assert_eq!(two("2093056", "0"), overlap(0, 2093056));
        assert_eq!(two("0", "0"), overlap(0, 0));
    }

    #[test]
    fn lists_that_are_empty_or_too_long_are_refused() {
        let list = |count: usize| {
            let at = |index: usize| {
                region(&[("base_host_virt_addr", &(index * 4096).to_string()), ("size", "4096")])
            };
            parse_text(&format!("[{}]", (0..count).map(at).collect::<Vec<_>>().join(",")))
        };
        assert_eq!(list(0), Err(HandshakeError::NoRegion));
        assert_eq!(list(4).unwrap().len(), 4);
        assert_eq!(list(5), Err(HandshakeError::TooManyRegions { limit: 4 }));
        assert_eq!(list(20), Err(HandshakeError::TooManyRegions { limit: 4 }));
    }

    #[test]
    fn other_json_and_what_is_none_is_malformed() {
        let region = region(&[]);
        for text in [
            "[}",
            "[1]",
            "[{}]",
            "[[]]",
            "[null]",
            "{}",
            "{\"regions\": 1}",
            "[{,}]",
            "[1 2]",
            "5",
            "\"[]\"",
            "nul",
            "]",
            "}",
            "\0",
            "\u{feff}[]",
            "[\u{1}]",
            r#"[{"size": 4096}]"#,
            "GET / HTTP/1.1",
            r#"{"type": 0}"#,
            &format!(r#"{{"type": 1, "regions": [{region}]}}"#),
            &format!(r#"{{"regions": [{region}], "regions": [{region}]}}"#),
            &format!(r#"{{"regions": {{"regions": [{region}]}}}}"#),
            &format!("[{}]", region.replace("4096", "4096.0")),
            &format!("[{}]", region.replace("4096", "-4096")),
            &format!("[{}]", region.replace("4096", "18446744073709551616")),
            &format!("[{}]", region.replace("4096", "\"4096\"")),
            &"[".repeat(200).chars().chain("]".repeat(200).chars()).collect::<String>(),
        ] {
            let error = parse_text(text).unwrap_err();
            assert!(matches!(error, HandshakeError::Malformed { .. }), "{text}: {error:?}");
        }
        let no_utf8 = parse(b"[{\"\xff\": 1}]", SOURCE, &limits());
        assert!(matches!(no_utf8, Err(HandshakeError::Malformed { .. })), "{no_utf8:?}");
    }

    #[test]
    fn errors_quote_clients_escaped_and_not_at_length() {
        let long = "\u{1b}[31m\n\u{1f600}".repeat(100);
        let error = one(&[("size", &serde_json::to_string(&long).unwrap())]).unwrap_err();
        let text = error.to_string();
        assert!(text.len() < 200 && text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text}");
        assert!(text.contains("u{1b}[31m"), "{text}");
    }

    #[test]
    fn a_message_is_incomplete_up_to_its_last_byte_and_what_follows_is_not_looked_at() {
        let member = ("escaped", r#""\\\" ] } [ { \\""#);
        let text = format!(" \n[{}]", region(&[member]));
        for len in 0..text.len() {
            let parsed = parse(&text.as_bytes()[..len], SOURCE, &limits());
            assert_eq!(parsed, Ok(Parsed::Incomplete), "{}", &text[..len]);
        }
        let whole = parse_text(&text).unwrap();
        for more in ["]", " ", "[]", "{", "\0", "\u{1f600}"] {
            assert_eq!(parse_text(&format!("{text}{more}")).unwrap(), whole);
        }
    }

    #[test]
    fn a_message_of_exactly_the_limit_is_not_too_long() {
        let text = format!("[{}]", region(&[]));
        let limit = |message| Limits { message, ..limits() };
        let parse = |text: &str, message| parse(text.as_bytes(), SOURCE, &limit(message));
        assert!(matches!(parse(&text, text.len()), Ok(Parsed::Complete(_))));
        let limit = text.len() - 1;
        assert_eq!(parse(&text, limit), Err(HandshakeError::TooLong { limit }));
        assert_eq!(parse(&text[..limit], limit), Ok(Parsed::Incomplete));
        assert_eq!(parse(&" ".repeat(10), 9), Err(HandshakeError::TooLong { limit: 9 }));
        assert_eq!(parse("", 0), Ok(Parsed::Incomplete));
    }

    #[test]
    fn a_message_in_many_pieces_is_kept_within_the_limit_and_copied_seldom() {
        let (mut message, limit, mut grown) = (Vec::new(), 10_000, 0);
        for _ in 0..limit {
            let before = message.capacity();
            extend(&mut message, b" ", limit);
            grown += usize::from(message.capacity() != before);
            assert!(message.capacity() <= limit);
        }
        assert!(grown < 20, "{grown}");
    }
}
