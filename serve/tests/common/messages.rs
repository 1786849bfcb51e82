//! Any bytes as a message of a client, and as regions that are written as one: shared by a random
//! test and a fuzz target.

use pervma_serve::Limits;
use pervma_serve::handshake::firecracker::{HandshakeError, Parsed, parse};
use pervma_serve::state::Extent;

/// The length of the source, in bytes.
pub(crate) const SOURCE: u64 = 16 << 20;

/// Small ones, so that they are met.
pub(crate) fn limits() -> Limits {
    Limits { message: 1500, regions: 8, ..Limits::default() }
}

/// Checks what becomes of the bytes: the first says which of both they are.
pub(crate) fn run(bytes: &[u8]) {
    let Some((how, rest)) = bytes.split_first() else { return };
    if how % 2 == 0 {
        let _ = check(rest);
    } else {
        let regions: Vec<_> = rest.as_chunks().0.iter().map(Region::of).collect();
        let message = message(*how, &regions);
        compare(&regions, message.len(), check(message.as_bytes()));
    }
}

/// Parses a message whole and in part: what any part is taken for must hold for the whole.
pub(crate) fn check(message: &[u8]) -> Result<Parsed, HandshakeError> {
    let whole = parse(message, SOURCE, &limits());
    let step = message.len() / 50 + 1;
    let last = message.len().saturating_sub(3)..message.len();
    for len in (0..message.len()).step_by(step).chain(last) {
        let part = parse(&message[..len], SOURCE, &limits());
        assert!(part == Ok(Parsed::Incomplete) || part == whole, "{len}: {part:?}, not {whole:?}");
    }
    match &whole {
        Ok(Parsed::Complete(extents)) => {
            assert!((1..=limits().regions).contains(&extents.len()));
            let ends = extents.iter().map(|extent| extent.range().end);
            let next = extents.iter().skip(1).map(|extent| extent.start);
            assert!(ends.zip(next).all(|(end, next)| end <= next), "{extents:?}");
        }
        Ok(Parsed::Incomplete) => assert!(message.len() <= limits().message),
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 300 && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
    whole
}

/// A region, with numbers at and around the limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    start: u64,
    len: u64,
    offset: u64,
    page_size: Option<u64>,
    /// Which members it is written with.
    written: u8,
}

impl Region {
    pub(crate) fn of(bytes: &[u8; 5]) -> Self {
        let [start, len, offset, page_size, written] = *bytes;
        Self {
            start: number(start),
            len: number(len),
            offset: number(offset),
            page_size: [None, Some(4096), Some(2 << 20), Some(number(page_size >> 2))]
                [usize::from(page_size) % 4],
            written,
        }
    }

    /// What it must become, if it can be served: without limits of numbers' sizes.
    fn extent(&self) -> Option<Extent> {
        let page_size = self.page_size.unwrap_or(4096);
        let [start, len, offset, page] =
            [self.start, self.len, self.offset, page_size].map(u128::from);
        let is_served = matches!(page_size, 4096 | 0x20_0000)
            && (start % page, len % page, offset % 4096) == (0, 0, 0)
            && len > 0
            && start + len <= u128::from(u64::MAX)
            && offset + len <= u128::from(SOURCE);
        is_served.then(|| Extent {
            start: self.start,
            len: self.len,
            offset: self.offset,
            page_size: u32::try_from(page_size).unwrap_or_default(),
            content: Extent::SOURCE,
        })
    }

    fn text(&self) -> String {
        let size = self.page_size.map_or("null".to_owned(), |size| size.to_string());
        let mut members = vec![
            format!("\"base_host_virt_addr\":{}", self.start),
            format!("\"size\": {}", self.len),
            format!("\"offset\" : {}", self.offset),
        ];
        match self.written % 4 {
            0 => members.push(format!("\"page_size\":{size}")),
            1 => members.push(format!("\"page_size_kib\":{size}")),
            2 => members.extend(["page_size", "page_size_kib"].map(|m| format!("\"{m}\":{size}"))),
            _ => members.extend([
                format!("\"page_size\":{size}"),
                r#""more": {"]\"}": [[], "\\"]}"#.to_owned(),
            ]),
        }
        let first = usize::from(self.written >> 2) % members.len();
        members.rotate_left(first);
        format!("{{{}}}", members.join(",\n"))
    }
}

/// Multiples of 4096 from 0 up to a few MiB, and some that are larger or no multiples.
fn number(byte: u8) -> u64 {
    const OTHER: [u64; 16] = [
        1,
        4095,
        4097,
        2 << 20,
        4 << 20,
        8 << 20,
        16 << 20,
        (16 << 20) - 4096,
        1 << 30,
        i64::MAX as u64,
        1 << 63,
        u64::MAX - 8191,
        u64::MAX - 4095,
        u64::MAX - 4094,
        u64::MAX - (2 << 20) + 1,
        u64::MAX,
    ];
    match usize::from(byte).checked_sub(240) {
        Some(index) => OTHER[index],
        None if byte.is_multiple_of(2) => u64::from(byte) * 2048,
        None => u64::from(byte / 32) << 21,
    }
}

pub(crate) fn message(how: u8, regions: &[Region]) -> String {
    let list = regions.iter().map(Region::text).collect::<Vec<_>>().join(" , ");
    match how >> 1 & 3 {
        0 => format!("[{list}]"),
        1 => format!(" \n\t\r[ {list} ]]"),
        2 => format!("{{\"type\": 0, \"regions\": [{list}]}}"),
        _ => format!("{{\"other\": \"[\\\"\", \"regions\": [{list}]}} {{"),
    }
}

/// Compares with what must come of the regions.
fn compare(regions: &[Region], len: usize, parsed: Result<Parsed, HandshakeError>) {
    if len > limits().message && matches!(parsed, Err(HandshakeError::TooLong { .. })) {
        return;
    }
    let extents: Option<Vec<_>> = regions.iter().map(Region::extent).collect();
    let expected = extents.and_then(|mut extents| {
        extents.sort_by_key(|extent| extent.start);
        let overlap = extents.windows(2).any(|two| two[0].start + two[0].len > two[1].start);
        (!overlap && (1..=limits().regions).contains(&extents.len())).then_some(extents)
    });
    match parsed {
        Ok(Parsed::Complete(extents)) => assert_eq!(Some(extents), expected, "{regions:?}"),
        Ok(Parsed::Incomplete) => panic!("a complete message is incomplete: {regions:?}"),
        Err(error) => {
            assert_eq!(expected, None, "{error}");
            assert!(!matches!(error, HandshakeError::Malformed { .. }), "{error}: {regions:?}");
        }
    }
}
