//! How much memory is available.

use std::path::{Path, PathBuf};
use std::{fs, io};

use memmap2::MmapMut;

/// Returns how many bytes this process can still use without swapping and without exceeding the
/// limit of a control group; `None` where the kernel does not say.
pub(crate) fn available() -> Option<u64> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups_with_limits(&mounts, &groups);
    of_machine().into_iter().chain(groups.iter().filter_map(Group::left)).min()
}

/// Returns whether there is address space for another thread and for what threads allocate as they
/// start and end: the process aborts when that fails.
///
/// # Errors
///
/// When the address space is nearly full (`ulimit -v`).
pub(crate) fn headroom() -> io::Result<()> {
    // A stack of 2 MiB, and more than threads allocate as they start and end.
    const SPACE: usize = 3 << 20;
    // Of the kernel, and for a moment, not touched: an allocator may have as much in hand, for one
    // thread, with the address space full.
    MmapMut::map_anon(SPACE).map(drop)
}

fn of_machine() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The two versions of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A control group, which may have a limit of memory.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    version: Version,
    folder: PathBuf,
}

/// Returns the control groups that bound this process's memory: its own and those above it, of each
/// hierarchy, wherever that is mounted.
fn groups_with_limits(mounts: &str, groups: &str) -> Vec<Group> {
    let mut found = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let own = groups.lines().find_map(|line| {
            let (_, line) = line.split_once(':')?;
            let (controllers, path) = line.split_once(':')?;
            let of_this = match mount.version {
                Version::One => controllers.split(',').any(|name| name == "memory"),
                Version::Two => controllers.is_empty(),
            };
            of_this.then_some(path)
        });
        // Only a part of a hierarchy may be mounted; the groups outside cannot be seen.
        let own = own.and_then(|own| Path::new(own).strip_prefix(&mount.root).ok());
        let folder = mount.at.join(own.unwrap_or(Path::new("")));
        let above = folder.ancestors().take_while(|folder| folder.starts_with(&mount.at));
        found.extend(above.map(|folder| Group { version: mount.version, folder: folder.into() }));
    }
    found
}

/// Where a hierarchy of control groups is mounted.
struct Mount {
    version: Version,
    /// The group that is mounted there.
    root: PathBuf,
    at: PathBuf,
}

impl Mount {
    /// Reads a line of `mountinfo`; `None` if it is not about a hierarchy that bounds memory.
    fn parse(line: &str) -> Option<Self> {
        let (about, file_system) = line.split_once(" - ")?;
        let mut about = about.split(' ').skip(3);
        let (root, at) = (about.next()?, about.next()?);
        let mut file_system = file_system.split(' ');
        let version = match (file_system.next()?, file_system.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => {
                Version::One
            }
            _ => return None,
        };
        Some(Self { version, root: unescaped(root).into(), at: unescaped(at).into() })
    }
}

/// Decodes a path of `mountinfo`, which has a backslash and three octal digits for some characters.
fn unescaped(path: &str) -> String {
    let mut text = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let digits = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match digits {
            Some(byte) => text.push(char::from(byte)),
            None => text.push('\\'),
        }
        rest = if digits.is_some() { &after[3..] } else { after };
    }
    text + rest
}

impl Group {
    /// Returns how many bytes it has left, if it has a limit. The page cache of files counts as
    /// free: the kernel drops it first.
    fn left(&self) -> Option<u64> {
        let read = |name| fs::read_to_string(self.folder.join(name)).ok();
        let number = |name| read(name)?.trim().parse::<u64>().ok();
        let (limit, used, kept) = match self.version {
            Version::One => {
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            }
            Version::Two => ("memory.max", "memory.current", "inactive_file "),
        };
        let (limit, used) = (number(limit)?, number(used)?);
        let kept = read("memory.stat").and_then(|stat| {
            stat.lines().find_map(|line| line.strip_prefix(kept)?.trim().parse::<u64>().ok())
        });
        Some(limit.saturating_sub(used.saturating_sub(kept.unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, file: &str, text: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(file), text).unwrap();
    }

    fn left_in(mounts: &str, groups: &str) -> Option<u64> {
        groups_with_limits(mounts, groups).iter().filter_map(Group::left).min()
    }

    #[test]
    fn a_group_has_left_what_it_does_not_use() {
        let folder = tempfile::tempdir().unwrap();
        let group = Group { version: Version::Two, folder: folder.path().into() };
        let write = |file, text| write(folder.path(), file, text);
        assert_eq!(group.left(), None, "no such files, as in the root group");
        write("memory.current", "3000\n");
        write("memory.max", "max\n");
        assert_eq!(group.left(), None, "no limit");
        write("memory.max", "10000\n");
        assert_eq!(group.left(), Some(7000));
        write("memory.stat", "anon 5\ninactive_file 1000\nactive_file 3\n");
        assert_eq!(group.left(), Some(8000));
        write("memory.max", "10\n");
        assert_eq!(group.left(), Some(0));
    }

    #[test]
    fn both_versions_are_found_wherever_they_are_mounted() {
        let top = tempfile::tempdir().unwrap();
        let (one, two) = (top.path().join("memory one"), top.path().join("unified"));
        let mounts = format!(
            "30 23 0:26 / /sys rw - sysfs sysfs rw\n\
             31 23 0:27 / {}/cpu rw,relatime - cgroup cgroup rw,cpu\n\
             32 23 0:28 / {} rw,relatime shared:7 master:1 - cgroup cgroup rw,memory\n\
             33 23 0:29 / {} rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n",
            top.path().display(),
            one.display().to_string().replace(' ', "\\040"),
            two.display()
        );
        let groups = "9:name=systemd:/\n4:memory:/a/b\n1:cpu:/\n0::/c\n";
        assert_eq!(left_in(&mounts, groups), None);
        for (folder, limit) in [(one.join("a/b"), 9000), (one.join("a"), 8000), (one.clone(), 7000)]
        {
            write(&folder, "memory.usage_in_bytes", "1000\n");
            write(&folder, "memory.limit_in_bytes", &format!("{limit}\n"));
            assert_eq!(left_in(&mounts, groups), Some(limit - 1000), "{}", folder.display());
        }
        write(&two.join("c"), "memory.current", "500\n");
        write(&two.join("c"), "memory.max", "3000\n");
        assert_eq!(left_in(&mounts, groups), Some(2500));
        // The largest number of whole pages stands for no limit.
        write(&one, "memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(left_in(&mounts, "4:memory:/\n"), Some(9_223_372_036_854_770_712));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_top() {
        let top = tempfile::tempdir().unwrap();
        let at = top.path().display();
        write(top.path(), "memory.current", "0\n");
        write(top.path(), "memory.max", "5000\n");
        // Only its part of the hierarchy is mounted; or its path is outside of what it can see.
        for (root, path) in
            [("/docker/1", "/docker/1"), ("/", "/"), ("/", "/not/here"), ("/x", "/y")]
        {
            let mounts = format!("33 23 0:29 {root} {at} rw - cgroup2 cgroup2 rw\n");
            assert_eq!(left_in(&mounts, &format!("0::{path}\n")), Some(5000), "{root} {path}");
        }
    }

    #[test]
    fn paths_are_unescaped() {
        let paths = ["/a", "/a\\040b", "\\134\\011", "/a\\9", "\\"].map(unescaped);
        assert_eq!(paths, ["/a", "/a b", "\\\t", "/a\\9", "\\"]);
    }

    #[test]
    fn this_machine_has_some() {
        assert!(available().is_some_and(|bytes| bytes > 0));
    }
}
