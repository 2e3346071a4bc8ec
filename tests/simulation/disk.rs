//! A disk that keeps only what it promised to keep.
//!
//! A running process sees the cached view: everything it wrote. What is on stable storage is
//! decided by the crash: a sector (512 octets) that no sync has covered is found in any of its
//! versions since the last one, each by itself; of the changes of names that no directory sync
//! has covered a prefix is found; a length that was not synced is found old, new, or between. A
//! sync that failed leaves its sectors in doubt for good: reads show what was written, later
//! syncs do not cover it.
//!
//! An operation is begun, and ends later: [`Disk::begin`], [`Disk::end`]. A crash may come
//! between.

use crate::random::Random;
use gatepost::queue::disk::Disk as QueueDisk;
use std::collections::BTreeMap;
use std::io;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// A file, whatever its name.
pub type FileId = u64;
/// An operation that has begun.
pub type OperationId = u64;

/// What a driver asks for.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Makes a file that must not exist, with so many octets reserved.
    Create { name: String, octets: u64 },
    /// Writes in one piece. `through`: and syncs what was written (O_DSYNC).
    Write { file: FileId, offset: u64, octets: Vec<u8>, through: bool },
    /// Cuts a file to so many octets.
    Truncate { file: FileId, octets: u64 },
    /// Syncs a file.
    Sync { file: FileId },
    /// Gives a file another name, replacing what has it.
    Rename { from: String, to: String },
    /// Removes a name.
    Remove { name: String },
    /// Syncs the directory.
    SyncDirectory,
}

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Well,
    /// Nothing is done.
    Refused(io::ErrorKind),
    /// A part was written, and the rest not: of no use to the caller.
    Short,
    /// All was written to the cache, and the sync failed.
    InDoubt,
}

#[derive(Clone, Debug)]
struct Begun {
    operation: Operation,
    fate: Fate,
    /// Of a write: what stood there before.
    before: Vec<u8>,
}

/// The versions of a sector that a crash may leave, the cached one last.
#[derive(Clone, Debug, Default)]
struct Unsynced {
    versions: Vec<Vec<u8>>,
    /// A sync of it failed.
    in_doubt: bool,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    cached: Vec<u8>,
    stable: Vec<u8>,
    unsynced: BTreeMap<usize, Unsynced>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Made(String, FileId),
    Renamed(String, String),
    Removed(String),
}

/// What befalls operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// So many of a hundred writes and syncs fail.
    pub failing_percent: u64,
    /// No more octets than are taken now.
    pub full: bool,
}

/// The directory of a shard.
#[derive(Debug)]
pub struct Disk {
    inodes: BTreeMap<FileId, Inode>,
    names: BTreeMap<String, FileId>,
    stable_names: BTreeMap<String, FileId>,
    unsynced_names: Vec<NameChange>,
    begun: BTreeMap<OperationId, Begun>,
    last_id: u64,
    random: Random,
    /// What befalls operations now.
    pub weather: Weather,
    /// It says that it has synced, and has not.
    pub lies: bool,
    /// So many operations of recovery are done, and no more.
    pub left_until_crash: Option<u64>,
}

impl Disk {
    /// An empty one.
    pub fn new(random: Random, lies: bool) -> Self {
        Disk {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            stable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            begun: BTreeMap::new(),
            last_id: 0,
            random,
            weather: Weather::default(),
            lies,
            left_until_crash: None,
        }
    }

    /// The names of its files, and their lengths.
    pub fn list(&self) -> Vec<(String, u64)> {
        let length = |id| self.inodes.get(id).map_or(0, |inode: &Inode| inode.cached.len() as u64);
        self.names.iter().map(|(name, id)| (name.clone(), length(id))).collect()
    }

    /// A file by its name.
    pub fn open(&self, name: &str) -> Option<FileId> {
        self.names.get(name).copied()
    }

    /// Begins an operation and waits for its end. The power may fail before it.
    fn now(&mut self, operation: Operation) -> io::Result<Option<FileId>> {
        if let Some(left) = &mut self.left_until_crash {
            let Some(fewer) = left.checked_sub(1) else { return Err(io::ErrorKind::Interrupted.into()) };
            *left = fewer;
        }
        let id = self.begin(operation);
        self.end(id)
    }

    /// Begins an operation.
    pub fn begin(&mut self, operation: Operation) -> OperationId {
        let fate = self.fate(&operation);
        let mut before = Vec::new();
        match (&operation, fate) {
            (_, Fate::Refused(_)) => {}
            (Operation::Create { name, octets }, _) => {
                self.last_id += 1;
                let id = self.last_id;
                self.inodes.insert(id, Inode { cached: vec![0; *octets as usize], ..Inode::default() });
                self.names.insert(name.clone(), id);
                self.unsynced_names.push(NameChange::Made(name.clone(), id));
            }
            (Operation::Write { file, offset, octets, .. }, fate) => {
                let taken =
                    if fate == Fate::Short { self.random.place(octets.len().saturating_sub(1)) } else { octets.len() };
                if let Some(inode) = self.inodes.get_mut(file) {
                    before = inode.write(*offset as usize, &octets[..taken]);
                }
            }
            (Operation::Truncate { file, octets }, _) => {
                if let Some(inode) = self.inodes.get_mut(file) {
                    inode.truncate(*octets as usize);
                }
            }
            (Operation::Rename { from, to }, _) => {
                if let Some(id) = self.names.remove(from) {
                    self.names.insert(to.clone(), id);
                    self.unsynced_names.push(NameChange::Renamed(from.clone(), to.clone()));
                }
            }
            (Operation::Remove { name }, _) => {
                if self.names.remove(name).is_some() {
                    self.unsynced_names.push(NameChange::Removed(name.clone()));
                }
            }
            (Operation::Sync { .. } | Operation::SyncDirectory, _) => {}
        }
        self.last_id += 1;
        self.begun.insert(self.last_id, Begun { operation, fate, before });
        self.last_id
    }

    fn fate(&mut self, operation: &Operation) -> Fate {
        let fails = self.random.percent(self.weather.failing_percent);
        match operation {
            Operation::Create { name, .. } if self.names.contains_key(name) => {
                Fate::Refused(io::ErrorKind::AlreadyExists)
            }
            Operation::Create { .. } if fails || self.weather.full => Fate::Refused(io::ErrorKind::StorageFull),
            Operation::Rename { from, .. } if !self.names.contains_key(from) => Fate::Refused(io::ErrorKind::NotFound),
            Operation::Remove { name } if !self.names.contains_key(name) => Fate::Refused(io::ErrorKind::NotFound),
            Operation::Rename { .. } | Operation::Remove { .. } if fails => Fate::Refused(io::ErrorKind::Other),
            Operation::Write { file, offset, octets, through } => {
                let end = *offset as usize + octets.len();
                let grows = self.inodes.get(file).is_none_or(|inode| end > inode.cached.len());
                if grows && self.weather.full {
                    return self.random.pick(&[Fate::Refused(io::ErrorKind::StorageFull), Fate::Short]);
                }
                let in_doubt = if *through { Fate::InDoubt } else { Fate::Short };
                if fails {
                    self.random.pick(&[Fate::Refused(io::ErrorKind::Other), Fate::Short, in_doubt])
                } else {
                    Fate::Well
                }
            }
            Operation::Sync { .. } | Operation::SyncDirectory if fails => Fate::InDoubt,
            _ => Fate::Well,
        }
    }

    /// An operation has ended. `Some`: the file it made.
    pub fn end(&mut self, id: OperationId) -> io::Result<Option<FileId>> {
        let Some(Begun { operation, fate, .. }) = self.begun.remove(&id) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        match (&operation, fate) {
            (_, Fate::Refused(kind)) => return Err(kind.into()),
            (Operation::Create { name, .. }, _) => return Ok(self.names.get(name).copied()),
            (Operation::Write { file, offset, octets, through }, fate) => {
                let lies = self.lies;
                let Some(inode) = self.inodes.get_mut(file) else { return Err(io::ErrorKind::NotFound.into()) };
                let range = sectors(*offset as usize, octets.len());
                match fate {
                    Fate::Well if *through && !lies => inode.sync(range),
                    Fate::Well => {}
                    _ => {
                        inode.doubt(range);
                        return Err(io::ErrorKind::StorageFull.into());
                    }
                }
            }
            (Operation::Sync { file }, fate) => {
                let lies = self.lies;
                let Some(inode) = self.inodes.get_mut(file) else { return Err(io::ErrorKind::NotFound.into()) };
                if fate != Fate::Well {
                    inode.doubt(0..usize::MAX);
                    return Err(io::ErrorKind::Other.into());
                }
                if !lies {
                    inode.sync(0..usize::MAX);
                }
            }
            (Operation::SyncDirectory, Fate::Well) => {
                if !self.lies {
                    self.unsynced_names.clear();
                    self.stable_names = self.names.clone();
                }
            }
            (Operation::SyncDirectory, _) => return Err(io::ErrorKind::Other.into()),
            (Operation::Rename { .. } | Operation::Remove { .. } | Operation::Truncate { .. }, _) => {}
        }
        Ok(None)
    }

    /// Reads a part of a file.
    pub fn read_at(&self, name: &str, offset: u64, octets: usize) -> io::Result<Vec<u8>> {
        let inode = self.inode(name)?;
        let start = offset as usize;
        let part = inode.cached.get(start..start + octets).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(part.to_vec())
    }

    fn inode(&self, name: &str) -> io::Result<&Inode> {
        self.names.get(name).and_then(|id| self.inodes.get(id)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The process is killed: what it wrote stays, but a write that was under way ends at a page.
    pub fn kill(&mut self) {
        for (_, Begun { operation, before, .. }) in std::mem::take(&mut self.begun) {
            let Operation::Write { file, offset, .. } = operation else { continue };
            let Some(inode) = self.inodes.get_mut(&file) else { continue };
            let (start, end) = (offset as usize, offset as usize + before.len());
            let pages = end.div_ceil(PAGE) - start / PAGE;
            let cut = (start / PAGE + self.random.place(pages)) * PAGE;
            let cut = cut.clamp(start, end);
            inode.take_back(cut, &before[cut - start..]);
        }
    }

    /// The power fails: only what was synced is there for sure.
    pub fn cut_power(&mut self) {
        self.begun.clear();
        let kept = self.random.place(self.unsynced_names.len());
        let mut names = std::mem::take(&mut self.stable_names);
        for change in self.unsynced_names.drain(..).take(kept) {
            match change {
                NameChange::Made(name, id) => drop(names.insert(name, id)),
                NameChange::Removed(name) => drop(names.remove(&name)),
                NameChange::Renamed(from, to) => {
                    if let Some(id) = names.remove(&from) {
                        names.insert(to, id);
                    }
                }
            }
        }
        self.inodes.retain(|id, _| names.values().any(|named| named == id));
        // Often all of it, or nothing, made it to the disk.
        let keep_percent = self.random.pick(&[0, 50, 50, 90, 100]);
        for inode in self.inodes.values_mut() {
            inode.cut_power(&mut self.random, keep_percent);
        }
        self.stable_names = names.clone();
        self.names = names;
    }

    /// Flips a bit of a file while nobody uses it.
    pub fn flip(&mut self, name: &str, bit: usize) {
        let Some(inode) = self.names.get(name).and_then(|id| self.inodes.get_mut(id)) else { return };
        if let Some(octet) = inode.cached.get_mut(bit / 8) {
            *octet ^= 1 << (bit % 8);
            inode.stable = inode.cached.clone();
            inode.unsynced.clear();
        }
    }
}

fn sectors(offset: usize, octets: usize) -> std::ops::Range<usize> {
    offset / SECTOR..(offset + octets).div_ceil(SECTOR)
}

impl Inode {
    /// Writes to the cache; returns what stood there.
    fn write(&mut self, offset: usize, octets: &[u8]) -> Vec<u8> {
        let end = offset + octets.len();
        if self.cached.len() < end {
            self.cached.resize(end, 0);
        }
        let before = self.cached[offset..end].to_vec();
        self.cached[offset..end].copy_from_slice(octets);
        for sector in sectors(offset, octets.len()) {
            let unsynced = self.unsynced.entry(sector).or_default();
            unsynced.versions.push(self.cached[sector * SECTOR..self.cached.len().min((sector + 1) * SECTOR)].to_vec());
            unsynced.in_doubt = false;
        }
        before
    }

    /// What was to be written from `offset` on never came to the cache, where `before` stays.
    fn take_back(&mut self, offset: usize, before: &[u8]) {
        self.cached[offset..offset + before.len()].copy_from_slice(before);
        for sector in sectors(offset, before.len()) {
            let Some(unsynced) = self.unsynced.get_mut(&sector) else { continue };
            unsynced.versions.pop();
            if unsynced.versions.is_empty() {
                self.unsynced.remove(&sector);
            }
        }
    }

    fn sync(&mut self, range: std::ops::Range<usize>) {
        self.stable.resize(self.cached.len(), 0);
        let (cached, stable) = (&self.cached, &mut self.stable);
        let covered: Vec<usize> =
            self.unsynced.range(range).filter(|(_, unsynced)| !unsynced.in_doubt).map(|(sector, _)| *sector).collect();
        for sector in covered {
            self.unsynced.remove(&sector);
            let (start, end) = (sector * SECTOR, cached.len().min((sector + 1) * SECTOR));
            if start < end {
                stable[start..end].copy_from_slice(&cached[start..end]);
            }
        }
    }

    fn doubt(&mut self, range: std::ops::Range<usize>) {
        for (_, unsynced) in self.unsynced.range_mut(range) {
            unsynced.in_doubt = true;
        }
    }

    fn cut_power(&mut self, random: &mut Random, keep_percent: u64) {
        let lengths = [self.stable.len(), self.cached.len()];
        let between =
            random.between(*lengths.iter().min().unwrap_or(&0) as u64, *lengths.iter().max().unwrap_or(&0) as u64);
        let length =
            random.pick(&[lengths[0], lengths[1], between as usize / PAGE * PAGE]).max(lengths[0].min(lengths[1]));
        let mut found = std::mem::take(&mut self.stable);
        found.resize(length, 0);
        for (sector, unsynced) in std::mem::take(&mut self.unsynced) {
            if !random.percent(keep_percent) {
                continue;
            }
            let version = &unsynced.versions[random.below(unsynced.versions.len() as u64) as usize];
            let start = sector * SECTOR;
            let end = found.len().min(start + version.len());
            if start < end {
                found[start..end].copy_from_slice(&version[..end - start]);
            }
        }
        self.cached = found.clone();
        self.stable = found;
    }

    fn truncate(&mut self, octets: usize) {
        self.cached.truncate(octets);
        self.unsynced.retain(|sector, _| sector * SECTOR < octets);
    }
}

impl QueueDisk for Disk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.names.keys().cloned().collect())
    }

    fn read(&self, name: &str, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        out.extend_from_slice(&self.inode(name)?.cached);
        Ok(())
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.inode(name).ok().map(|inode| inode.cached.len() as u64))
    }

    fn read_beginning(&self, name: &str, octets: usize, out: &mut Vec<u8>) -> io::Result<()> {
        self.read(name, out)?;
        out.truncate(octets);
        Ok(())
    }

    fn create(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        if self.names.contains_key(name) {
            self.now(Operation::Remove { name: name.to_owned() })?;
        }
        let made = self.now(Operation::Create { name: name.to_owned(), octets: 0 })?;
        let file = made.ok_or(io::ErrorKind::NotFound)?;
        self.now(Operation::Write { file, offset: 0, octets: octets.to_vec(), through: false })?;
        self.now(Operation::Sync { file })?;
        self.now(Operation::SyncDirectory).map(drop)
    }

    fn write_end(&mut self, name: &str, offset: u64, octets: &[u8]) -> io::Result<()> {
        let file = self.open(name).ok_or(io::ErrorKind::NotFound)?;
        self.now(Operation::Write { file, offset, octets: octets.to_vec(), through: false })?;
        self.now(Operation::Truncate { file, octets: offset + octets.len() as u64 })?;
        self.now(Operation::Sync { file }).map(drop)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.now(Operation::Rename { from: from.to_owned(), to: to.to_owned() }).map(drop)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.now(Operation::Remove { name: name.to_owned() }).map(drop)
    }
}
