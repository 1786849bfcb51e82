//! Which parts of a source a client asked for, and when: its working set.
//!
//! A snapshot that was resumed once tells what the next one will ask for. The form is text: a line
//! of JSON, and a line for each granule that was asked for, in the order of first touch, with its
//! offset in the source and the time in microseconds since the client had come.
//!
//! ```text
//! {"working_set":1,"granule":4096,"source":{"size":1048576,"digest":"9f86d081884c7d65"},"count":2}
//! 8192,120
//! 0,131
//! ```
//!
//! Offsets are those of the source, never addresses, so that it holds for every client of the same
//! source. Of a granule above 4 KiB only the first page that was asked for is known.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use pervma_pager::{ReadFailed, Source};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::client::ClientId;
use crate::images::Images;

/// What a client asked for, in the order of first touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingSet {
    /// Bytes that were filled for each of them.
    pub granule: u64,
    /// What the offsets are in; not known of other programs' records.
    pub source: Option<SourceId>,
    /// Each granule once.
    pub touches: Vec<Touch>,
}

/// A granule that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// In the source, a multiple of the granule.
    pub offset: u64,
    /// Since the client had come; 0 where it is not known.
    pub after: Duration,
}

/// By what a source is known: its size, and some of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceId {
    size: u64,
    /// In hexadecimal digits.
    digest: String,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkingSetError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Its first line says nothing of a working set.
    #[error("it is no working set: {0}")]
    Foreign(String),
    /// A version of the form that is not known.
    #[error("it has version {0}, and 1 is known")]
    Version(u64),
    /// A line is not what it should be.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// It is cut off, or longer than it says.
    #[error("it has {found} of {count} granules")]
    Count {
        /// What it says.
        count: usize,
        /// What it has.
        found: usize,
    },
    /// It does not say what it is a record of, and that is not clear.
    #[error("it does not say of which memory file or images it is")]
    Unknown,
    /// The source cannot be read.
    #[error("the memory file or images cannot be read")]
    Source,
    /// It is a record of another source.
    #[error("it was recorded with another memory file or images: {size} bytes, digest {digest}")]
    OtherSource {
        /// The size of that one.
        size: u64,
        /// Its digest.
        digest: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    working_set: u64,
    granule: u64,
    source: Option<SourceId>,
    count: usize,
}

/// As e2b stores it: numbers of blocks.
#[derive(Deserialize)]
struct E2b {
    indices: Vec<u64>,
    block_size: u64,
}

/// The version that is written.
const VERSION: u64 = 1;
const PAGE: u64 = 4096;
/// The longest line that is read.
const LONGEST_LINE: u64 = 4096;
/// The longest JSON of others that is read, in bytes: some hundred GiB of pages.
const LONGEST: u64 = 1 << 30;

impl SourceId {
    /// The size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// As a number, which another source has only by chance: in one of 2⁶⁴ cases.
    pub(crate) fn number(&self) -> u64 {
        self.digest.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
    }

    /// Reads 64 pages of a source, as far as it has so many, that lie far apart.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn of(source: &dyn Source) -> Result<Self, ReadFailed> {
        Self::of_parts(source, std::slice::from_ref(&(0..source.size())), &[])
    }

    /// Reads 64 pages of images, as far as they have so many, that lie far apart, and looks at what
    /// belongs where. Pages that a page server has are not read.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn of_images(images: &Images) -> Result<Self, ReadFailed> {
        let mut about = Vec::new();
        for task in images.tasks() {
            about.extend(task.to_le_bytes());
            for extent in images.extents(task).iter().flat_map(|extents| &**extents) {
                about.extend(
                    [extent.start, extent.len, extent.offset].map(u64::to_le_bytes).concat(),
                );
            }
        }
        let files: Vec<_> = images.files().collect();
        Self::of_parts(&*images.source(), &files, &about)
    }

    /// Reads pages of these parts of a source.
    fn of_parts(
        source: &dyn Source,
        parts: &[Range<u64>],
        about: &[u8],
    ) -> Result<Self, ReadFailed> {
        const COUNT: u64 = 64;
        let size = source.size();
        let mut digest = Sha256::new_with_prefix(size.to_le_bytes());
        digest.update(about);
        let mut page = [0; PAGE as usize];
        let pages_of = |part: &Range<u64>| (part.end - part.start).div_ceil(PAGE);
        let pages: u64 = parts.iter().map(pages_of).sum();
        let count = COUNT.min(pages);
        // The part of a page, and the number of the part's first page.
        let (mut at, mut first) = (0, 0);
        for turn in 0..count {
            // 128 bits, since sources can be long.
            let number = (u128::from(turn) * u128::from(pages) / u128::from(count)) as u64;
            while number - first >= pages_of(&parts[at]) {
                first += pages_of(&parts[at]);
                at += 1;
            }
            let offset = parts[at].start + (number - first) * PAGE;
            let len = PAGE.min(parts[at].end - offset) as usize;
            source.read_at(offset, &mut page[..len])?;
            digest.update(&page[..len]);
        }
        let digest = digest.finalize();
        let digest = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { size, digest })
    }
}

impl WorkingSet {
    /// Reads a record: pervma's, e2b's (JSON with `indices` and `block_size`), or that of REAP (CSV
    /// whose first column is an offset in hexadecimal digits).
    ///
    /// # Errors
    ///
    /// See [`WorkingSetError`].
    pub fn read(mut from: impl BufRead) -> Result<Self, WorkingSetError> {
        match from.fill_buf()?.first() {
            Some(b'{') => {}
            Some(_) => return Self::read_reap(from),
            None => return Err(WorkingSetError::Foreign("it is empty".to_owned())),
        }
        let mut first = String::new();
        from.by_ref().take(LONGEST_LINE).read_line(&mut first)?;
        let is_own = first.starts_with("{\"working_set\"");
        if is_own { Self::read_own(&first, from) } else { Self::read_e2b(first, from) }
    }

    fn read_own(head: &str, mut from: impl BufRead) -> Result<Self, WorkingSetError> {
        let foreign = |error: serde_json::Error| WorkingSetError::Foreign(error.to_string());
        #[derive(Deserialize)]
        struct Version {
            working_set: u64,
        }
        let Version { working_set } = serde_json::from_str(head).map_err(foreign)?;
        if working_set != VERSION {
            return Err(WorkingSetError::Version(working_set));
        }
        let head: Head = serde_json::from_str(head).map_err(foreign)?;
        let mut touches = Touches::new(head.granule, head.source.as_ref().map(|id| id.size))?;
        for number in 0.. {
            let Some(line) = next_line(&mut from, number + 2)? else { break };
            if number == head.count {
                return Err(WorkingSetError::Count { count: head.count, found: number + 1 });
            }
            let Some((offset, after)) = line.split_once(',') else {
                return Err(touches.wrong(number, "it is no offset and time"));
            };
            let (Ok(offset), Ok(after)) = (offset.parse(), after.parse()) else {
                return Err(touches.wrong(number, "it is no offset and time"));
            };
            touches.add(number, offset, Duration::from_micros(after))?;
        }
        let found = touches.list.len();
        if found != head.count {
            return Err(WorkingSetError::Count { count: head.count, found });
        }
        Ok(Self { granule: head.granule, source: head.source, touches: touches.list })
    }

    fn read_e2b(mut text: String, from: impl BufRead) -> Result<Self, WorkingSetError> {
        from.take(LONGEST).read_to_string(&mut text)?;
        let record: E2b = serde_json::from_str(&text)
            .map_err(|error| WorkingSetError::Foreign(error.to_string()))?;
        let mut touches = Touches::new(record.block_size, None)?;
        for index in record.indices {
            let offset = index
                .checked_mul(record.block_size)
                .ok_or_else(|| WorkingSetError::Foreign(format!("block {index}")))?;
            touches.add_first(offset, Duration::ZERO);
        }
        Ok(Self { granule: record.block_size, source: None, touches: touches.list })
    }

    fn read_reap(mut from: impl BufRead) -> Result<Self, WorkingSetError> {
        let mut touches = Touches::new(PAGE, None)?;
        for number in 1.. {
            let Some(line) = next_line(&mut from, number)? else { break };
            let digits = line.split(',').next().unwrap_or_default().trim();
            let reason = match u64::from_str_radix(digits.trim_start_matches("0x"), 16) {
                Ok(offset) if offset.is_multiple_of(PAGE) => {
                    touches.add_first(offset, Duration::ZERO);
                    continue;
                }
                Ok(_) => "its offset is within a page",
                // What the columns are.
                Err(_) if number == 1 && line.contains(',') => continue,
                Err(_) if number == 1 => {
                    return Err(WorkingSetError::Foreign("neither JSON nor CSV".to_owned()));
                }
                Err(_) => "it begins with no offset",
            };
            return Err(WorkingSetError::Line { line: number, reason });
        }
        Ok(Self { granule: PAGE, source: None, touches: touches.list })
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let head = Head {
            working_set: VERSION,
            granule: self.granule,
            source: self.source.clone(),
            count: self.touches.len(),
        };
        writeln!(to, "{}", serde_json::to_string(&head)?)?;
        for Touch { offset, after } in &self.touches {
            writeln!(to, "{offset},{}", after.as_micros())?;
        }
        to.flush()
    }

    /// Writes it as the record of a client, and tells whether that could be done. The file of the
    /// first client has this name, that of the n-th has `.n` behind it.
    pub(crate) fn write_for(&self, client: ClientId, file: &Path) {
        let mut name = file.as_os_str().to_owned();
        if client.0 > 1 {
            name.push(format!(".{client}"));
        }
        match File::create(&name).and_then(|file| self.write(BufWriter::new(file))) {
            Ok(()) => tracing::info!(%client, file = ?name, "what it asked for is recorded"),
            Err(error) => tracing::error!(%client, file = ?name, %error, "it is not recorded"),
        }
    }

    /// Whether it may be used with a source. One that says nothing of its source may be used with
    /// any: what it asks for is filled with that source's bytes.
    ///
    /// # Errors
    ///
    /// [`OtherSource`](WorkingSetError::OtherSource).
    pub fn check(&self, source: &SourceId) -> Result<(), WorkingSetError> {
        match &self.source {
            Some(own) if own != source => {
                let SourceId { size, digest } = own.clone();
                Err(WorkingSetError::OtherSource { size, digest })
            }
            _ => Ok(()),
        }
    }

    /// Ranges of the source, in the order of first touch: granules that follow each other are one.
    ///
    /// ```
    /// use pervma_serve::working_set::WorkingSet;
    ///
    /// let reap = "3000,0,1\n4000,0,2\n0,0,3\n";
    /// let set = WorkingSet::read(reap.as_bytes())?;
    /// assert_eq!(set.runs(), [0x3000..0x5000, 0..0x1000]);
    /// # Ok::<(), pervma_serve::working_set::WorkingSetError>(())
    /// ```
    #[must_use]
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for Touch { offset, .. } in &self.touches {
            match runs.last_mut() {
                Some(run) if run.end == *offset => run.end += self.granule,
                _ => runs.push(*offset..offset + self.granule),
            }
        }
        runs
    }
}

/// A line without its end; `None` behind the last one.
fn next_line(from: &mut impl BufRead, line: usize) -> Result<Option<String>, WorkingSetError> {
    let mut text = String::new();
    let len = from.by_ref().take(LONGEST_LINE).read_line(&mut text)?;
    if text.ends_with('\n') {
        text.pop();
    } else if len as u64 == LONGEST_LINE {
        return Err(WorkingSetError::Line { line, reason: "it is too long" });
    }
    Ok((len > 0).then_some(text))
}

/// Makes the record of a client that has come now.
#[derive(Debug)]
pub(crate) struct Recorder {
    since: Instant,
    touches: Touches,
}

impl Recorder {
    /// For a granule of a client's.
    pub(crate) fn new(granule: usize) -> Self {
        let touches = Touches { granule: granule as u64, end: u64::MAX, ..Touches::default() };
        Self { since: Instant::now(), touches }
    }

    /// What is at an offset was asked for.
    pub(crate) fn note(&mut self, offset: u64) {
        self.touches.add_first(offset, self.since.elapsed());
    }

    pub(crate) fn finish(self) -> WorkingSet {
        let Touches { granule, list, .. } = self.touches;
        WorkingSet { granule, source: None, touches: list }
    }
}

/// Touches that are read or made: each granule once.
#[derive(Debug, Default)]
struct Touches {
    granule: u64,
    /// Where offsets end.
    end: u64,
    seen: HashSet<u64>,
    list: Vec<Touch>,
}

impl Touches {
    fn new(granule: u64, size: Option<u64>) -> Result<Self, WorkingSetError> {
        if !granule.is_power_of_two() || granule < PAGE {
            return Err(WorkingSetError::Foreign(format!("a granule of {granule} bytes")));
        }
        // The end of the last granule is a number.
        let end = size.unwrap_or(u64::MAX).min(u64::MAX - granule);
        Ok(Self { granule, end, seen: HashSet::new(), list: Vec::new() })
    }

    fn wrong(&self, number: usize, reason: &'static str) -> WorkingSetError {
        // The head is the first line.
        WorkingSetError::Line { line: number + 2, reason }
    }

    fn add(&mut self, number: usize, offset: u64, after: Duration) -> Result<(), WorkingSetError> {
        if !offset.is_multiple_of(self.granule) {
            return Err(self.wrong(number, "its offset is within a granule"));
        }
        if offset >= self.end {
            return Err(self.wrong(number, "its offset is beyond the end"));
        }
        if !self.seen.insert(offset) {
            return Err(self.wrong(number, "it is there twice"));
        }
        self.list.push(Touch { offset, after });
        Ok(())
    }

    /// Adds a touch, if it is the first of its granule.
    fn add_first(&mut self, offset: u64, after: Duration) {
        let offset = offset / self.granule * self.granule;
        if offset < self.end && self.seen.insert(offset) {
            self.list.push(Touch { offset, after });
        }
    }
}

#[cfg(test)]
mod tests {
    use pervma_pager::MemorySource;

    use super::*;

    fn set(offsets: &[u64]) -> WorkingSet {
        let touch = |(at, &offset): (usize, &u64)| Touch {
            offset,
            after: Duration::from_micros(at as u64),
        };
        let source = MemorySource::new(vec![7; 1 << 20]);
        WorkingSet {
            granule: 4096,
            source: Some(SourceId::of(&source).unwrap()),
            touches: offsets.iter().enumerate().map(touch).collect(),
        }
    }

    fn text(set: &WorkingSet) -> String {
        let mut text = Vec::new();
        set.write(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn error(text: &str) -> String {
        WorkingSet::read(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read() {
        for offsets in [&[][..], &[0], &[8192, 0, 4096, 65536]] {
            let set = set(offsets);
            assert_eq!(WorkingSet::read(text(&set).as_bytes()).unwrap(), set);
        }
    }

    #[test]
    fn runs_are_in_the_order_of_first_touch() {
        let runs = set(&[8192, 12288, 0, 4096, 65536]).runs();
        assert_eq!(runs, [8192..16384, 0..8192, 65536..69632]);
    }

    #[test]
    fn what_is_cut_off_or_wrong_is_refused() {
        let whole = text(&set(&[8192, 0]));
        let cut = whole.trim_end().rsplit_once('\n').unwrap().0;
        assert_eq!(error(cut), "it has 1 of 2 granules");
        assert_eq!(error(&format!("{whole}4096,9\n")), "it has 3 of 2 granules");
        let instead = |line: &str| error(&whole.replace("\n0,1\n", &format!("\n{line}\n")));
        assert_eq!(instead("5,1"), "line 3: its offset is within a granule");
        assert_eq!(instead("1048576,1"), "line 3: its offset is beyond the end");
        assert_eq!(instead("8192,1"), "line 3: it is there twice");
        assert_eq!(instead("0"), "line 3: it is no offset and time");
        assert_eq!(instead("0,-1"), "line 3: it is no offset and time");
        assert_eq!(instead("18446744073709551616,1"), "line 3: it is no offset and time");
        assert_eq!(
            error(&whole.replace("\"working_set\":1", "\"working_set\":2")),
            "it has version 2, and 1 is known"
        );
        assert!(error(&whole.replace("4096", "4095")).contains("a granule of 4095 bytes"));
        assert!(error("{\"working_set\":1}\n").contains("missing field"));
        assert!(error("{\"working_set\":").contains("EOF"));
        assert_eq!(error(""), "it is no working set: it is empty");
        assert!(error("hello\n").contains("neither JSON nor CSV"));
        assert!(error("{}").contains("missing field"));
        let mut endless = io::BufReader::new(io::repeat(b'{'));
        assert!(WorkingSet::read(Read::take(&mut endless, 1 << 20)).is_err());
        let endless = format!("{whole}{}", "1".repeat(5000));
        assert_eq!(error(&endless), "line 4: it is too long");
    }

    #[test]
    fn records_of_other_programs_are_read() {
        let e2b = r#"{"indices":[3,0,3],"access_types":["r","w","p"],"block_size":2097152}"#;
        let set = WorkingSet::read(e2b.as_bytes()).unwrap();
        let offsets = |set: &WorkingSet| set.touches.iter().map(|t| t.offset).collect::<Vec<_>>();
        assert_eq!((set.granule, offsets(&set)), (2 << 20, vec![6 << 20, 0]));
        for reap in
            ["3000,1,5\n0,2,6\n3000,2,7\n", "offset,timestamp,servedNum\n0x3000,1,5\n0,2,6\n"]
        {
            let set = WorkingSet::read(reap.as_bytes()).unwrap();
            assert_eq!((set.granule, offsets(&set)), (4096, vec![0x3000, 0]));
        }
        assert_eq!(error("3000,1,5\nx,1,5\n"), "line 2: it begins with no offset");
        assert_eq!(error("3001,1,5\n"), "line 1: its offset is within a page");
        let far = format!(r#"{{"indices":[{}],"block_size":4096}}"#, u64::MAX);
        assert!(error(&far).contains("block 18446744073709551615"));
    }

    #[test]
    fn another_source_is_told_apart() {
        let id = |bytes: Vec<u8>| SourceId::of(&MemorySource::new(bytes)).unwrap();
        let mut bytes = vec![7; 1 << 20];
        let set = set(&[0]);
        assert!(set.check(&id(bytes.clone())).is_ok());
        bytes[0] = 8;
        let error = set.check(&id(bytes.clone())).unwrap_err().to_string();
        assert!(
            error.starts_with("it was recorded with another memory file or images: 1048576 bytes")
        );
        assert!(set.check(&id(vec![7; 1 << 19])).is_err());
        let unknown = WorkingSet { source: None, ..set };
        assert!(unknown.check(&id(bytes)).is_ok());
        // Also of those that are no whole pages.
        assert_ne!(id(vec![1; 5]), id(vec![2; 5]));
        assert_ne!(id(Vec::new()), id(vec![0]));
    }
}
