//! Comparing maps.

use std::collections::{HashMap, HashSet};

use pervma_linux::{Counts, VmFlags};

/// The name of shared anonymous memory in the maps file.
pub(crate) const NAMELESS: &str = "/dev/zero (deleted)";
/// How the name begins that it has if it was given one.
const NAMED: &str = "[anon_shmem:";
/// The name of a page that every process has and no call changes.
const GATE: &str = "[vsyscall]";

/// Which inode of the kernel is which object of the model. Their numbers differ, but each pair must
/// stay a pair.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    inodes: HashMap<u64, u64>,
    objects: HashMap<u64, u64>,
}

impl Objects {
    fn are_one(&mut self, inode: u64, object: u64) -> bool {
        *self.inodes.entry(inode).or_insert(object) == object
            && *self.objects.entry(object).or_insert(inode) == inode
    }

    /// Whether the texts of the kernel's maps file and of the model's are the same.
    pub(crate) fn same_maps(&mut self, kernel: &str, model: &str) -> bool {
        let mut kernel = kernel.lines().filter(|line| !line.ends_with(GATE));
        let mut model = model.lines();
        loop {
            match (kernel.next(), model.next()) {
                (None, None) => return true,
                (Some(a), Some(b)) if a == b && !a.ends_with(NAMELESS) && !a.contains(NAMED) => {}
                (Some(a), Some(b)) if self.same_object(a, b) => {}
                _ => return false,
            }
        }
    }

    fn same_object(&mut self, kernel: &str, model: &str) -> bool {
        /// Range, access, offset, device, inode and name.
        fn fields(line: &str) -> Option<([&str; 4], u64, &str)> {
            let mut parts = line.splitn(6, ' ');
            let fields = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
            Some((fields, parts.next()?.parse().ok()?, parts.next()?.trim_start()))
        }
        match (fields(kernel), fields(model)) {
            (Some((a, inode, name)), Some((b, object, same))) => {
                let is_object = name == NAMELESS || name.starts_with(NAMED);
                is_object && name == same && a == b && self.are_one(inode, object)
            }
            _ => false,
        }
    }
}

/// The flags of each mapping in the text of `smaps`, but for soft-dirty tracking.
pub(crate) fn flags_of_smaps(smaps: &str) -> Vec<String> {
    let is_gate = |line: &str| line.ends_with(GATE);
    let end = smaps.lines().position(is_gate).unwrap_or(usize::MAX);
    let lines = smaps.lines().take(end);
    let flags = lines.filter_map(|line| line.strip_prefix("VmFlags:"));
    flags.map(|flags| flags.trim().replace(" sd", "")).collect()
}

/// The flags of the mapping that starts at an address, in the text of `smaps`.
pub(crate) fn flags_at(smaps: &str, start: usize) -> Option<VmFlags> {
    let first = format!("{start:08x}-");
    let lines = smaps.lines().skip_while(|line| !line.starts_with(&first));
    let flags = lines.into_iter().find_map(|line| line.strip_prefix("VmFlags:"))?;
    let known = flags.split_ascii_whitespace().filter_map(|flag| flag.parse().ok());
    Some(known.fold(VmFlags::default(), |all, flag: VmFlags| all | flag))
}

/// The lines that only one of two texts has, of each.
pub(crate) fn apart(kernel: &str, model: &str) -> [String; 2] {
    let only = |of: &str, other: &str| -> String {
        let others: HashSet<&str> = other.lines().collect();
        of.lines().filter(|line| !others.contains(line)).map(|line| format!("{line}\n")).collect()
    };
    [only(kernel, model), only(model, kernel)]
}

/// Counts as the kernel shows them, in units of 1024 bytes: those below 0 lose two bits by that.
pub(crate) fn counts_in_kib(counts: Counts) -> Counts {
    let left = |count: usize| count.wrapping_mul(4) / 4;
    let Counts { total, data, stack, exec, locked } = counts;
    Counts {
        total: left(total),
        data: left(data),
        stack: left(stack),
        exec: left(exec),
        locked: left(locked),
    }
}

/// The counts in the text of `status`.
pub(crate) fn counts_of_status(status: &str) -> Counts {
    let pages = |name: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_ascii_whitespace().next());
        number.and_then(|number| number.parse::<usize>().ok()).unwrap_or(0) / 4
    };
    Counts {
        total: pages("VmSize:"),
        data: pages("VmData:"),
        stack: pages("VmStk:"),
        exec: pages("VmExe:") + pages("VmLib:"),
        locked: pages("VmLck:"),
    }
}
