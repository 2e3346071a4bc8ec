//! How much memory is free for this process: the lower of what the machine has available and what
//! the limits of its control groups leave.
//!
//! A group's limit counts its page cache, of which the inactive part is given back when memory is
//! asked for; limits of the groups above count too, as far up as they can be seen from here (in a
//! container: up to the container's own). A level without a limit, or that cannot be read, is left
//! out. What the machine has must be told: [`FreeMemory::sample`] fails without it.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Where to look, found once: a process stays in its control group.
#[derive(Debug)]
pub struct FreeMemory {
    levels: Vec<Level>,
}

impl FreeMemory {
    /// Finds this process's control groups.
    pub fn new() -> Self {
        // Without /proc, or on a kernel without control groups: no limits.
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        FreeMemory { levels: levels(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo")) }
    }

    /// Free memory now, in octets.
    pub fn sample(&self) -> io::Result<u64> {
        let machine = available(&fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))?;
        Ok(self.levels.iter().filter_map(Level::headroom).fold(machine, u64::min))
    }
}

/// A control group whose limit counts.
#[derive(Debug, PartialEq, Eq)]
struct Level {
    directory: PathBuf,
    names: &'static Names,
}

impl Level {
    fn headroom(&self) -> Option<u64> {
        let read = |name| fs::read_to_string(self.directory.join(name)).ok();
        let limit = limit(&read(self.names.limit)?)?;
        Some(headroom(
            limit,
            &read(self.names.usage)?,
            &read("memory.stat").unwrap_or_default(),
            self.names.reclaimable,
        ))
    }
}

/// How a version of control groups calls things.
#[derive(Debug, PartialEq, Eq)]
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`.
    reclaimable: &'static str,
}

const V1: Names =
    Names { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", reclaimable: "total_inactive_file" };
const V2: Names = Names { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };

/// MemAvailable of `/proc/meminfo`, in octets.
fn available(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A limit, if it is one: version 2 says `max` for none, version 1 a number beyond all memory.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&limit| limit < 1 << 60)
}

/// What a limit leaves.
fn headroom(limit: u64, usage: &str, stat: &str, reclaimable: &str) -> u64 {
    // Usage that cannot be read is none: the limit itself still counts.
    let usage: u64 = usage.trim().parse().unwrap_or(0);
    let cache = stat.lines().find_map(|line| line.strip_prefix(reclaimable)?.strip_prefix(' ')?.trim().parse().ok());
    limit.saturating_sub(usage.saturating_sub(cache.unwrap_or(0)))
}

/// The groups that a process is in, from its own up, by `/proc/self/cgroup` and
/// `/proc/self/mountinfo` (proc(5), cgroups(7)).
fn levels(membership: &str, mountinfo: &str) -> Vec<Level> {
    let mut levels = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let names = if number == "0" && controllers.is_empty() {
            &V2
        } else if controllers.split(',').any(|controller| controller == "memory") {
            &V1
        } else {
            continue;
        };
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).filter(|mount| mount.has(names)).collect();
        // The mount that shows the group; else any, whose own limit counts for all below it.
        let shown = mounts.iter().find_map(|mount| Some((mount, mount.below(path)?)));
        let Some((mount, below)) = shown.or_else(|| mounts.first().map(|mount| (mount, PathBuf::new()))) else {
            continue;
        };
        let own = mount.point.join(below);
        let up = own.ancestors().take_while(|directory| directory.starts_with(&mount.point));
        levels.extend(up.map(|directory| Level { directory: directory.to_owned(), names }));
    }
    levels
}

/// A line of `mountinfo`.
#[derive(Debug)]
struct Mount<'a> {
    /// What of the filesystem is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (unescape(mount.next()?), unescape(mount.next()?));
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        Some(Mount { root, point, kind, options: filesystem.nth(1).unwrap_or_default() })
    }

    fn has(&self, names: &Names) -> bool {
        match self.kind {
            "cgroup2" => *names == V2,
            "cgroup" => *names == V1 && self.options.split(',').any(|option| option == "memory"),
            _ => false,
        }
    }

    /// A group's path below the mount point, if it is shown there.
    fn below(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        // A group outside of the namespace is written with `..`.
        below.components().all(|component| matches!(component, Component::Normal(_))).then(|| below.to_owned())
    }
}

/// Spaces and others are written in octal, as in `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut unescaped = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        unescaped.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(u8::is_ascii) {
            Some(octet) => {
                unescaped.push(char::from(octet));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                unescaped.push('\\');
                rest = after;
            }
        }
    }
    unescaped.push_str(rest);
    unescaped.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo() {
        let usual =
            "MemTotal:       24683588 kB\nMemFree:         8694800 kB\nMemAvailable:   22442100 kB\nBuffers: 1 kB\n";
        for (text, octets) in [
            (usual, Some(22_442_100 << 10)),
            ("MemAvailable: 0 kB\n", Some(0)),
            ("MemTotal: 1 kB\nMemFree: 1 kB\n", None),
            ("MemAvailable: many kB\n", None),
            ("MemAvailable: 12\n", None),
            ("MemAvailable: 18446744073709551615 kB\n", None),
            ("", None),
        ] {
            assert_eq!(available(text), octets, "{text:?}");
        }
    }

    #[test]
    fn limits() {
        for (text, octets) in [
            ("max\n", None),
            ("104857600\n", Some(104_857_600)),
            ("0\n", Some(0)),
            ("9223372036854771712\n", None),
            ("-1\n", None),
            ("", None),
        ] {
            assert_eq!(limit(text), octets, "{text:?}");
        }
    }

    #[test]
    fn what_a_limit_leaves() {
        let stat = "anon 5\nfile 100\ninactive_anon 7\ninactive_file 60\nactive_file 40\ntotal_inactive_file 90\n";
        for (limit, usage, stat, names, octets) in [
            (1000, "300\n", stat, &V2, 1000 - (300 - 60)),
            (1000, "300\n", stat, &V1, 1000 - (300 - 90)),
            (1000, "300\n", "", &V2, 700),
            (1000, "300\n", "inactive_file many\n", &V2, 700),
            (1000, "300\n", "inactive_filed 9\n", &V2, 700),
            // Over the limit, or caches that are more than all usage: figures of different moments.
            (1000, "1200\n", "", &V2, 0),
            (1000, "50\n", stat, &V2, 1000),
            (1000, "", stat, &V2, 1000),
        ] {
            assert_eq!(headroom(limit, usage, stat, names.reclaimable), octets, "{limit} {usage:?} {stat:?}");
        }
    }

    const MOUNTS_V2: &str = "\
21 98 0:19 / /sys rw,nosuid - sysfs sysfs rw
25 21 0:22 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";
    const MOUNTS_V1: &str = "\
31 30 0:27 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
36 30 0:32 / /sys/fs/cgroup/memory rw shared:12 master:3 - cgroup cgroup rw,memory
40 30 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
    const MOUNTS_CONTAINER: &str = "\
700 690 0:32 /docker/abc /sys/fs/cgroup/memory ro,nosuid master:12 - cgroup cgroup rw,memory
";

    #[test]
    fn groups_and_those_above() {
        let v2 = |directory: &str| Level { directory: directory.into(), names: &V2 };
        let v1 = |directory: &str| Level { directory: directory.into(), names: &V1 };
        let table = [
            ("0::/\n", MOUNTS_V2, vec![v2("/sys/fs/cgroup")]),
            (
                "0::/system.slice/gatepost.service\n",
                MOUNTS_V2,
                vec![
                    v2("/sys/fs/cgroup/system.slice/gatepost.service"),
                    v2("/sys/fs/cgroup/system.slice"),
                    v2("/sys/fs/cgroup"),
                ],
            ),
            (
                "12:cpuset:/\n5:cpu,memory:/a:b/c\n1:name=systemd:/x\n",
                MOUNTS_V1,
                vec![v1("/sys/fs/cgroup/memory/a:b/c"), v1("/sys/fs/cgroup/memory/a:b"), v1("/sys/fs/cgroup/memory")],
            ),
            (
                "5:memory:/a\n0::/a\n",
                MOUNTS_V1,
                vec![
                    v1("/sys/fs/cgroup/memory/a"),
                    v1("/sys/fs/cgroup/memory"),
                    v2("/sys/fs/cgroup/unified/a"),
                    v2("/sys/fs/cgroup/unified"),
                ],
            ),
            // A container: what is mounted is its own group.
            ("5:memory:/docker/abc\n", MOUNTS_CONTAINER, vec![v1("/sys/fs/cgroup/memory")]),
            (
                "5:memory:/docker/abc/sub\n",
                MOUNTS_CONTAINER,
                vec![v1("/sys/fs/cgroup/memory/sub"), v1("/sys/fs/cgroup/memory")],
            ),
            // A group that cannot be seen from here.
            ("5:memory:/docker/other\n", MOUNTS_CONTAINER, vec![v1("/sys/fs/cgroup/memory")]),
            ("0::/../elsewhere\n", MOUNTS_V2, vec![v2("/sys/fs/cgroup")]),
            (
                "0::/a b\n",
                "1 2 0:1 / /my\\040groups rw - cgroup2 cgroup2 rw\n",
                vec![v2("/my groups/a b"), v2("/my groups")],
            ),
            ("0::/a\n", "", vec![]),
            ("", MOUNTS_V2, vec![]),
            ("nonsense\n0:\n", "1 2\n - \n1 2 3 4 5 6 - \n", vec![]),
        ];
        for (membership, mountinfo, expected) in table {
            assert_eq!(levels(membership, mountinfo), expected, "{membership:?}");
        }
    }

    #[test]
    fn escapes() {
        for (text, path) in [("/a", "/a"), ("/a\\040b\\134", "/a b\\"), ("/a\\", "/a\\"), ("\\9", "\\9"), ("", "")] {
            assert_eq!(unescape(text), Path::new(path), "{text}");
        }
    }

    /// Sees to it that files are read as they are named, and the lowest figure wins.
    #[test]
    fn the_lowest_of_all_levels() {
        let root = std::env::temp_dir().join(format!("gatepost-memory-{}", std::process::id()));
        let inner = root.join("inner");
        fs::create_dir_all(&inner).expect("a directory");
        let write = |directory: &Path, names: &Names, limit: &str, usage: &str, stat: &str| {
            for (name, text) in [(names.limit, limit), (names.usage, usage), ("memory.stat", stat)] {
                fs::write(directory.join(name), text).expect("a writable file");
            }
        };
        let gone = inner.join("gone");
        let sample = |names: &'static Names| {
            let levels = [&gone, &inner, &root].map(|directory| Level { directory: directory.clone(), names });
            FreeMemory { levels: levels.into() }.sample().expect("a machine with /proc")
        };
        // Far less than any machine has.
        for (names, stat) in [(&V1, "total_inactive_file 10\n"), (&V2, "inactive_file 10\n")] {
            write(&inner, names, "1000\n", "500\n", stat);
            write(&root, names, "2000\n", "1600\n", "");
            assert_eq!(sample(names), 400, "the outer one");
            write(&root, names, "max\n", "1600\n", "");
            assert_eq!(sample(names), 510, "the inner one");
            write(&inner, names, "9223372036854771712\n", "500\n", stat);
            assert!(sample(names) > 2000, "the machine");
        }
        fs::remove_dir_all(root).expect("tidying up");
    }

    #[test]
    fn this_machine_has_some() {
        assert!(FreeMemory::new().sample().expect("a machine with /proc") > 0);
    }
}
