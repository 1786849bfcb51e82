//! The images of a checkpoint of CRIU's: which bytes belong where in the memory of its tasks.
//!
//! | file | what is taken from it |
//! |---|---|
//! | `inventory.img` | that the folder has images, and of which version |
//! | `pstree.img` | the tasks |
//! | `mm-PID.img` | the mappings of a task; one without, and without the next, is a zombie |
//! | `pagemap-PID.img` | which pages there are, and where: in the next file, or in the parent images |
//! | `pages-N.img` | the pages |
//! | `parent` | a link to the folder of an earlier checkpoint, which has what did not change since |
//!
//! A page that no pagemap has was never written: it is zeros.

mod messages;
mod page_server;
mod source;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pervma_pager::Source;

use self::messages::{
    INVENTORY, Inventory, MM, Mm, PAGEMAP, PSTREE, PagemapEntry, PagemapHead, PstreeEntry, Records,
    Vma, records,
};
pub use self::page_server::PageServer;
use self::source::{Part, Parts, Remote, Run};
use crate::source::MemoryFile;
use crate::state::Extent;

const PAGE: u64 = 4096;
/// The end of what a process can have.
const END: u64 = 1 << 47;
/// The version of images that is read: since CRIU 2.0.
const VERSION: u32 = 2;
/// Bytes of an image file that is no pages file: some 16 million runs of pages.
const MOST_BYTES: u64 = 256 << 20;
/// Folders of parent images behind each other.
const MOST_PARENTS: usize = 1024;

/// Its pages are in the parent images.
const IN_PARENT: u32 = 1;
/// Its pages need not be there when the task begins to run.
const LAZY: u32 = 2;
/// Its pages are in the pages file.
const PRESENT: u32 = 4;

/// The images of a checkpoint, opened: whatever is not as it must be is found here.
#[derive(Debug)]
pub struct Images {
    tasks: BTreeMap<u32, Option<Arc<[Extent]>>>,
    source: Arc<Parts>,
}

/// What is wrong with an image.
///
/// What it says is one line.
#[derive(Debug, thiserror::Error)]
#[error("{file:?}: {found}")]
pub struct ImagesError {
    file: PathBuf,
    found: String,
}

impl Images {
    /// Opens the images in a folder.
    ///
    /// # Errors
    ///
    /// Which file is missing, or not as it must be.
    pub fn open(folder: &Path) -> Result<Self, ImagesError> {
        Self::open_with(folder, None)
    }

    /// Opens the images in a folder, of which a page server has the pages that may come late.
    ///
    /// # Errors
    ///
    /// Which file is missing, or not as it must be. The page server is not asked for anything.
    pub fn open_remote(folder: &Path, server: PageServer) -> Result<Self, ImagesError> {
        Self::open_with(folder, Some(Arc::new(server)))
    }

    fn open_with(folder: &Path, server: Option<Arc<PageServer>>) -> Result<Self, ImagesError> {
        let (folders, parts, files) = (folders(folder)?, Parts::default(), HashMap::new());
        let mut opener = Opener { folders, server, parts, files };
        let inventory = opener.folders[0].join("inventory.img");
        let found = read(&inventory)?.ok_or_else(|| missing(&inventory))?;
        let version = records(&found, INVENTORY)
            .and_then(|mut records| records.next::<Inventory>())
            .map_err(wrong(&inventory))?
            .map(|inventory| inventory.img_version);
        if version != Some(VERSION) {
            return Err(wrong(&inventory)(match version {
                Some(other) => format!("images of version {other} are not read, but of {VERSION}"),
                None => "it is empty".to_owned(),
            }));
        }
        let pstree = opener.folders[0].join("pstree.img");
        let bytes = read(&pstree)?.ok_or_else(|| missing(&pstree))?;
        let entries = all::<PstreeEntry>(records(&bytes, PSTREE).map_err(wrong(&pstree))?);
        let mut tasks = BTreeMap::new();
        for entry in entries.map_err(wrong(&pstree))? {
            if entry.pid == 0 || tasks.insert(entry.pid, opener.task(entry.pid)?).is_some() {
                return Err(wrong(&pstree)(format!("task {} cannot be there", entry.pid)));
            }
        }
        if tasks.is_empty() {
            return Err(wrong(&pstree)("it has no task".to_owned()));
        }
        Ok(Self { tasks, source: Arc::new(opener.parts) })
    }

    /// The tasks, by their process numbers when the checkpoint was made.
    pub fn tasks(&self) -> impl Iterator<Item = u32> {
        self.tasks.keys().copied()
    }

    /// What belongs into the memory of a task, in order of addresses; all else is zeros. `None` if
    /// there is no such task, or it has no memory.
    #[must_use]
    pub fn extents(&self, task: u32) -> Option<Arc<[Extent]>> {
        self.tasks.get(&task)?.clone()
    }

    /// Where the bytes are, of all tasks.
    #[must_use]
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.source) as Arc<dyn Source>
    }

    /// Where in the source the pages are that this machine has.
    pub(crate) fn files(&self) -> impl Iterator<Item = Range<u64>> {
        self.source.files()
    }
}

/// The folder, and those of its parent images: the nearest first.
fn folders(folder: &Path) -> Result<Vec<PathBuf>, ImagesError> {
    let (mut all, mut seen) = (Vec::new(), HashSet::new());
    let mut next = folder.to_owned();
    loop {
        let about = fs::metadata(&next).map_err(|error| wrong(&next)(error.to_string()))?;
        if !about.is_dir() {
            return Err(wrong(&next)("it is no folder".to_owned()));
        }
        if !seen.insert((about.dev(), about.ino())) {
            return Err(wrong(&next)("the parent images lead back to where they began".to_owned()));
        }
        if all.len() > MOST_PARENTS {
            return Err(wrong(folder)(format!("there are more than {MOST_PARENTS} parents")));
        }
        let parent = next.join("parent");
        all.push(next);
        match fs::symlink_metadata(&parent) {
            Ok(_) => next = parent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
            Err(error) => return Err(wrong(&parent)(error.to_string())),
        }
    }
}

fn wrong(file: &Path) -> impl Fn(String) -> ImagesError + '_ {
    |found| ImagesError { file: file.to_owned(), found }
}

fn missing(file: &Path) -> ImagesError {
    wrong(file)("it is not there".to_owned())
}

fn open(path: &Path) -> Result<Option<File>, ImagesError> {
    // Not to wait for who writes, if it is a pipe.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(path)(error.to_string())),
    }
}

/// The bytes of a file; `None` if it is not there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, ImagesError> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = file.metadata().and_then(|about| match about.is_file() {
        true => file.take(MOST_BYTES + 1).read_to_end(&mut bytes),
        false => Err(io::Error::other("it is no regular file")),
    });
    read.map_err(|error| wrong(path)(error.to_string()))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong(path)(format!("it is longer than {MOST_BYTES} bytes")));
    }
    Ok(Some(bytes))
}

fn all<M: prost::Message + Default>(mut records: Records<'_>) -> Result<Vec<M>, String> {
    let mut messages = Vec::new();
    while let Some(message) = records.next()? {
        messages.push(message);
    }
    Ok(messages)
}

/// Makes tasks of images.
struct Opener {
    /// The folder, and its parents.
    folders: Vec<PathBuf>,
    /// It has the pages of the folder that may come late. The others, and those of the parents, are
    /// in files.
    server: Option<Arc<PageServer>>,
    parts: Parts,
    /// Where the pages of a pages file begin in the source, and its length, in bytes: by the number
    /// of its folder, and its own.
    files: HashMap<(usize, u32), (u64, u64)>,
}

/// The pages of a task that a folder has.
struct Pagemap {
    /// Where the pages begin in the source.
    base: u64,
    /// In order of addresses.
    runs: Vec<Run>,
}

impl Opener {
    /// What belongs into the memory of a task; `None` if it has none.
    fn task(&mut self, pid: u32) -> Result<Option<Arc<[Extent]>>, ImagesError> {
        let file = self.folders[0].join(format!("mm-{pid}.img"));
        let (mm, pagemap) = (read(&file)?, self.pagemap(0, pid)?);
        let (bytes, pagemap) = match (mm, pagemap) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(missing(&file)),
            (Some(_), None) => return Err(missing(&self.pagemap_file(0, pid))),
            (Some(bytes), Some(pagemap)) => (bytes, pagemap),
        };
        let mm = records(&bytes, MM).and_then(|mut records| records.next::<Mm>());
        let mm = mm.map_err(wrong(&file))?.ok_or_else(|| wrong(&file)("it is empty".to_owned()))?;
        let vmas = mm.vmas;
        let mut end = 0;
        for vma in &vmas {
            let are_pages = [vma.start, vma.end].iter().all(|at| at.is_multiple_of(PAGE));
            if vma.start < end || vma.end <= vma.start || !are_pages {
                let Vma { start, end, .. } = vma;
                let found = format!("the mapping from {start:#x} to {end:#x} cannot be there");
                return Err(wrong(&file)(found));
            }
            end = vma.end;
        }
        let mut pagemaps = vec![Some(pagemap)];
        let mut extents = Vec::new();
        let mut next = 0;
        for at in 0..pagemaps[0].as_ref().map_or(0, |pagemap| pagemap.runs.len()) {
            let Some(run) = pagemaps[0].as_ref().map(|pagemap| pagemap.runs[at]) else { break };
            while vmas.get(next).is_some_and(|vma| vma.end <= run.start) {
                next += 1;
            }
            for vma in vmas[next..].iter().take_while(|vma| vma.start < run.end) {
                // What else there is was restored before the task is told of.
                let is_wanted = self.server.is_none() && can_be_lazy(vma);
                if run.flags & LAZY != 0 || is_wanted {
                    let (start, end) = (run.start.max(vma.start), run.end.min(vma.end));
                    self.resolve(pid, &mut pagemaps, 0, start, end, &mut extents)?;
                }
            }
        }
        Ok(Some(extents.into()))
    }

    /// Adds where the pages from `start` to `end` are, which the folder with this number must know.
    fn resolve(
        &mut self,
        pid: u32,
        pagemaps: &mut Vec<Option<Pagemap>>,
        depth: usize,
        mut start: u64,
        end: u64,
        extents: &mut Vec<Extent>,
    ) -> Result<(), ImagesError> {
        if pagemaps.len() == depth {
            let found = if depth < self.folders.len() { self.pagemap(depth, pid)? } else { None };
            pagemaps.push(found);
        }
        while start < end {
            let known = pagemaps[depth].as_ref().and_then(|pagemap| {
                let next = pagemap.runs.partition_point(|run| run.end <= start);
                Some((pagemap.base, *pagemap.runs.get(next)?)).filter(|(_, run)| run.start <= start)
            });
            let Some((base, run)) = known else {
                let child = self.pagemap_file(depth - 1, pid);
                let found =
                    format!("the page at {start:#x} is to be in the parent images, and is not");
                return Err(wrong(&child)(found));
            };
            let stop = end.min(run.end);
            if run.flags & IN_PARENT != 0 {
                self.resolve(pid, pagemaps, depth + 1, start, stop, extents)?;
            } else if self.has(depth, &run) {
                add(extents, start, stop, base + run.offset + (start - run.start));
            } else {
                let file = self.pagemap_file(depth, pid);
                let found =
                    format!("the page at {start:#x} is at a page server: give --page-server");
                return Err(wrong(&file)(found));
            }
            start = stop;
        }
        Ok(())
    }

    fn pagemap_file(&self, depth: usize, pid: u32) -> PathBuf {
        self.folders[depth].join(format!("pagemap-{pid}.img"))
    }

    /// The pages of a task that a folder has; `None` if it does not have the task.
    fn pagemap(&mut self, depth: usize, pid: u32) -> Result<Option<Pagemap>, ImagesError> {
        let file = self.pagemap_file(depth, pid);
        let Some(bytes) = read(&file)? else { return Ok(None) };
        let mut records = records(&bytes, PAGEMAP).map_err(wrong(&file))?;
        let head = records.next::<PagemapHead>().map_err(wrong(&file))?;
        let id = head.ok_or_else(|| wrong(&file)("it has no head".to_owned()))?.pages_id;
        let (mut runs, mut offset, mut end) = (Vec::new(), 0, 0);
        while let Some(entry) = records.next::<PagemapEntry>().map_err(wrong(&file))? {
            let run = run(&entry, end, offset).map_err(wrong(&file))?;
            if self.has(depth, &run) {
                offset += run.end - run.start;
            }
            end = run.end;
            runs.push(run);
        }
        let base = match self.server.clone().filter(|_| depth == 0) {
            Some(server) => {
                let there = runs.iter().filter(|run| self.has(depth, run)).copied().collect();
                let remote = Part::Remote(Remote { server, task: pid, runs: there });
                self.add_part(remote, offset).map_err(wrong(&file))?
            }
            None => self.pages(depth, id, offset, &file)?,
        };
        Ok(Some(Pagemap { base, runs }))
    }

    /// Whether a folder has the pages of a run: a page server has all that are not in the parent
    /// images.
    fn has(&self, depth: usize, run: &Run) -> bool {
        let is_remote = depth == 0 && self.server.is_some();
        run.flags & IN_PARENT == 0 && (is_remote || run.flags & PRESENT != 0)
    }

    fn add_part(&mut self, part: Part, len: u64) -> Result<u64, String> {
        self.parts.add(part, len).ok_or_else(|| "that is more than can be served".to_owned())
    }

    /// Where the pages of a pages file begin in the source. It must have as many bytes as the
    /// pagemap tells of: of more, the pagemap is truncated.
    fn pages(
        &mut self,
        depth: usize,
        id: u32,
        told: u64,
        pagemap: &Path,
    ) -> Result<u64, ImagesError> {
        let path = self.folders[depth].join(format!("pages-{id}.img"));
        let (base, len) = match self.files.get(&(depth, id)) {
            Some(&known) => known,
            None => {
                let known = match open(&path)? {
                    Some(file) => self.open_pages(file).map_err(wrong(&path))?,
                    None if told == 0 => (0, 0),
                    None => return Err(missing(&path)),
                };
                self.files.insert((depth, id), known);
                known
            }
        };
        if len != told {
            let found = format!("it tells of {told} bytes of pages-{id}.img, which has {len}");
            return Err(wrong(pagemap)(found));
        }
        Ok(base)
    }

    /// Makes a part of a pages file, and returns where it begins in the source, and its length, in
    /// bytes. One that is empty is none.
    fn open_pages(&mut self, file: File) -> Result<(u64, u64), String> {
        let about = file.metadata().map_err(|error| error.to_string())?;
        if about.is_file() && about.len() == 0 {
            return Ok((0, 0));
        }
        let file = MemoryFile::new(file).map_err(|error| error.to_string())?;
        let len = file.size();
        Ok((self.add_part(Part::File(Box::new(file)), len)?, len))
    }
}

/// What an entry says, behind what ends at `end`; its pages, if it has them, are at this offset.
fn run(entry: &PagemapEntry, end: u64, offset: u64) -> Result<Run, String> {
    let pages = entry.nr_pages.unwrap_or_else(|| entry.compat_nr_pages.into());
    let start = entry.vaddr;
    let stop = pages.checked_mul(PAGE).and_then(|len| start.checked_add(len));
    let stop = stop.filter(|&stop| start.is_multiple_of(PAGE) && start < stop && stop <= END);
    let Some(stop) = stop else {
        return Err(format!("there cannot be {pages} pages at {start:#x}"));
    };
    if start < end {
        return Err(format!("the pages at {start:#x} are not behind those before"));
    }
    let flags = match entry.flags {
        _ if entry.in_parent == Some(true) => entry.flags.unwrap_or(0) | IN_PARENT,
        Some(flags) => flags,
        // As CRIU wrote it once.
        None => PRESENT,
    };
    Ok(Run { start, end: stop, flags, offset })
}

/// Whether pages of a mapping may come late: it is of no file, not shared, and not of huge pages.
fn can_be_lazy(vma: &Vma) -> bool {
    const WANTED: u32 = (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE) as u32;
    const OTHERS: u32 = (libc::MAP_LOCKED | libc::MAP_HUGETLB) as u32;
    vma.flags & (WANTED | OTHERS) == WANTED
}

/// Adds an extent, or makes the last one longer.
fn add(extents: &mut Vec<Extent>, start: u64, end: u64, offset: u64) {
    let len = end - start;
    if let Some(last) = extents.last_mut()
        && last.start + last.len == start
        && last.offset + last.len == offset
    {
        last.len += len;
        return;
    }
    extents.push(Extent { start, len, offset, page_size: PAGE as u32, content: Extent::SOURCE });
}
