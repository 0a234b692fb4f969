//! A store on memory that is mapped as it is: a device-DAX device, shared by up to [`HOSTS`] hosts.
//!
//! Linux maps it shared only, in pieces of 2 MiB as a rule, so that a guest's writes would have to be kept
//! off by other means. It is never mapped into a guest: a restore copies what it needs out of it, and a
//! write finds the guest's own page.

mod layout;
mod slot;

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{major, minor};
use varve_memory_tiers::DeviceMap;
use varve_snapshot::Backing;

use crate::error::SharedError;
use crate::locks;
use crate::protocol::{
    Attach, Attaching, Fence, Publish, Release, Revoke, Revoking, State, Steps, Word,
};
use crate::store::{Attached, Freed, Held, Key, Store};
use layout::{BLOCK, DATA, Description, SLOTS, Superblock};
use slot::{Image, MappedSlot};

pub use layout::HOSTS;

/// The store, as one host sees it.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    size: u64,
    host: usize,
    state: PathBuf,
}

/// An image in use.
#[derive(Clone, Debug)]
pub struct DeviceImage {
    map: Arc<DeviceMap>,
    offset: u64,
    len: u64,
    /// Holds the lock that counts this process as a user.
    _user: Arc<File>,
}

impl Backing for DeviceImage {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.len);
        end.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        self.map.read((self.offset + offset) as usize, buf)
    }
}

/// A number that the kernel tells of a device.
fn attribute(path: &Path, rdev: u64, name: &str) -> Result<u64, SharedError> {
    let file = format!("/sys/dev/char/{}:{}/{name}", major(rdev), minor(rdev));
    let file = Path::new(&file);
    let text = fs::read_to_string(file).map_err(|_| {
        let cure = "it is no DAX device: varve tier devices shows those that there are";
        SharedError::place(path.display(), cure)
    })?;
    let text = text.trim();
    let number = text.strip_prefix("0x").map(|hex| u64::from_str_radix(hex, 16));
    let number = number.unwrap_or_else(|| text.parse());
    number.map_err(|e| SharedError::place(file.display(), e))
}

impl Device {
    /// The device at `path`, for host `host`, whose users and locks are written down in `state`.
    pub fn open(path: &Path, host: usize, state: &Path) -> Result<Device, SharedError> {
        let meta = fs::metadata(path).map_err(SharedError::io("open device", path))?;
        if !meta.file_type().is_char_device() {
            let problem = "it is no device; files on a DAX file system are named by dax:DIR";
            return Err(SharedError::place(path.display(), problem));
        }
        let size = attribute(path, meta.rdev(), "size")?;
        let align = attribute(path, meta.rdev(), "align")?;
        if align > BLOCK {
            let problem = format!(
                "it is mapped by {align} bytes; make it anew with an alignment of 2 MiB at most"
            );
            return Err(SharedError::place(path.display(), problem));
        }
        Ok(Device::over(path, size, host, state))
    }

    /// The same over anything that can be mapped shared, of which `size` bytes count: for tests.
    pub fn over(path: &Path, size: u64, host: usize, state: &Path) -> Device {
        let size = size / BLOCK * BLOCK;
        Device { path: path.into(), size, host, state: state.into() }
    }

    fn wrong(&self, problem: impl std::fmt::Display) -> SharedError {
        SharedError::place(self.path.display(), problem)
    }

    fn map(&self, writable: bool) -> Result<DeviceMap, SharedError> {
        let io = |what| SharedError::io(what, &self.path);
        let file = File::options().read(true).write(writable).open(&self.path);
        let len = usize::try_from(self.size).map_err(|e| self.wrong(e))?;
        DeviceMap::new(&file.map_err(io("open device"))?, 0, len, writable).map_err(io("map"))
    }

    /// Makes an empty store of the device, owned by this host. `force`: also if it has something else.
    pub fn init(&self, force: bool) -> Result<(), SharedError> {
        if self.size < DATA + BLOCK {
            return Err(self.wrong(format!(
                "it has {} bytes, and needs {}",
                self.size,
                DATA + BLOCK
            )));
        }
        let map = self.map(true)?;
        let mut head = [0; layout::SUPERBLOCK_BYTES];
        let io = SharedError::io("read", &self.path);
        map.flush(0, head.len()).and_then(|()| map.read(0, &mut head)).map_err(io)?;
        if !force && head.iter().any(|&b| b != 0) {
            let what = match Superblock::decode(&head, self.size) {
                Ok(_) => "it is a store already",
                Err(_) => "it holds something else",
            };
            return Err(self.wrong(format!("{what}: varve tier init --force gives that up")));
        }
        let write = |at: usize, bytes: &[u8]| {
            map.write(at, bytes).and_then(|()| map.flush(at, bytes.len()))
        };
        let superblock = Superblock { owner: self.host, size: self.size }.encode();
        // What is not whole is no store: its first bytes come last.
        let zeros = vec![0; BLOCK as usize];
        let done = write(0, &zeros)
            .and_then(|()| write(BLOCK as usize, &zeros))
            .and_then(|()| write(0, &superblock));
        done.map_err(SharedError::io("write", &self.path))
    }

    /// Takes the leases of a host that is dead, and will not come back with what it had in its caches; how
    /// many these were. By the owner.
    pub fn fence(&self, host: usize) -> Result<usize, SharedError> {
        let map = self.owned()?;
        let mut taken = 0;
        for (index, ..) in self.slots(&map)? {
            let mut slot = MappedSlot::new(&map, index);
            if slot.has_lease(host).map_err(SharedError::io("read", &self.path))? {
                let done = Fence::new(host).run(&mut slot);
                done.map_err(SharedError::io("write", &self.path))?;
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// The device mapped, once it is seen to be a store.
    fn store(&self, writable: bool) -> Result<(DeviceMap, Superblock), SharedError> {
        let map = self.map(writable)?;
        let mut head = [0; layout::SUPERBLOCK_BYTES];
        let io = SharedError::io("read", &self.path);
        map.flush(0, head.len()).and_then(|()| map.read(0, &mut head)).map_err(io)?;
        let superblock = Superblock::decode(&head, self.size).map_err(|e| self.wrong(e))?;
        Ok((map, superblock))
    }

    /// The same, to be changed: by its owner.
    fn owned(&self) -> Result<DeviceMap, SharedError> {
        let (map, superblock) = self.store(true)?;
        match superblock.owner == self.host {
            true => Ok(map),
            false => Err(self.wrong(format!(
                "host {} owns it, and alone publishes and frees there; this is host {}",
                superblock.owner, self.host
            ))),
        }
    }

    /// All slots that are not free.
    fn slots(
        &self,
        map: &DeviceMap,
    ) -> Result<Vec<(usize, Word, Option<Description>)>, SharedError> {
        let mut slots = Vec::new();
        for index in 0..SLOTS {
            let slot = MappedSlot::new(map, index);
            let (word, description) = slot.look().map_err(SharedError::io("read", &self.path))?;
            match Word::unpack(word) {
                Some(Word { state: State::Free, .. }) => {}
                Some(word) => slots.push((index, word, description)),
                None => {
                    return Err(self.wrong(format!(
                        "slot {index} is damaged: varve tier init --force makes the store anew"
                    )));
                }
            }
        }
        Ok(slots)
    }

    fn of_key(
        &self,
        map: &DeviceMap,
        key: &Key,
        state: State,
    ) -> Result<Vec<(usize, Description)>, SharedError> {
        let slots = self.slots(map)?.into_iter();
        let same = slots.filter(|(_, word, _)| word.state == state);
        let same = same.filter_map(|(slot, _, d)| Some((slot, d?)));
        Ok(same.filter(|(_, d)| d.key == *key).collect())
    }

    /// Where `bytes` are free, and a slot for them.
    fn room(&self, map: &DeviceMap, bytes: u64) -> Result<(usize, u64), SharedError> {
        let slots = self.slots(map)?;
        let free = (0..SLOTS).find(|i| slots.iter().all(|(slot, ..)| slot != i));
        let slot = free.ok_or_else(|| {
            self.wrong(format!("all of its {SLOTS} slots are used: varve tier gc"))
        })?;
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for (slot, _, description) in slots {
            let d = description.ok_or_else(|| self.wrong(format!("slot {slot} is damaged")))?;
            taken.push((d.offset, d.offset + d.key.bytes.next_multiple_of(BLOCK)));
        }
        taken.sort_unstable();
        let mut at = DATA;
        let need = bytes.max(1).next_multiple_of(BLOCK);
        for (start, end) in taken {
            if start.saturating_sub(at) >= need {
                break;
            }
            at = at.max(end);
        }
        if self.size.saturating_sub(at) < need {
            return Err(self.wrong(format!(
                "it has no {} MiB in one piece: revoke what is not used and run varve tier gc",
                need >> 20
            )));
        }
        Ok((slot, at))
    }

    fn lock_path(&self, slot: usize, what: &str) -> PathBuf {
        self.state.join(format!("slot-{slot}.{what}"))
    }

    /// Alone with a slot on this host, if no process here uses it.
    fn alone(&self, slot: usize) -> Result<Option<[File; 2]>, SharedError> {
        fs::create_dir_all(&self.state).map_err(SharedError::io("create folder", &self.state))?;
        let path = self.lock_path(slot, "lock");
        let users = File::options().create(true).append(true).open(&path);
        let users = users.map_err(SharedError::io("open lock", &path))?;
        match users.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(SharedError::io("lock", &path)(e)),
            Ok(()) => Ok(Some([users, locks::exclusive(&self.lock_path(slot, "attach"))?])),
        }
    }
}

impl Store for Device {
    fn put(
        &self,
        key: &Key,
        from: &File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), SharedError> {
        let (map, _) = self.store(false)?;
        if !self.of_key(&map, key, State::Published)?.is_empty() {
            return Ok(());
        }
        let map = self.owned()?;
        self.clean()?;
        let (index, offset) = self.room(&map, key.bytes)?;
        let image = Image { key: *key, offset, from, progress };
        let mut slot = MappedSlot::new(&map, index).with_image(image);
        let epoch = Publish::default().run(&mut slot);
        let epoch = epoch.map_err(SharedError::io("write", &self.path))?;
        if epoch.is_none() {
            return Err(
                self.wrong(format!("slot {index} was taken meanwhile: does another host own it?"))
            );
        }
        Ok(())
    }

    fn attach(&self, key: &Key) -> Result<Option<Attached>, SharedError> {
        let (map, _) = self.store(true)?;
        let io = |what| SharedError::io(what, &self.path);
        for (index, _) in self.of_key(&map, key, State::Published)? {
            let path = self.lock_path(index, "lock");
            fs::create_dir_all(&self.state)
                .map_err(SharedError::io("create folder", &self.state))?;
            let user = File::options().create(true).append(true).open(&path);
            let user = user.map_err(SharedError::io("open lock", &path))?;
            user.lock_shared().map_err(SharedError::io("lock", &path))?;
            let turn = locks::exclusive(&self.lock_path(index, "attach"))?;
            let mut slot = MappedSlot::new(&map, index);
            let attached = Attaching::new(self.host).run(&mut slot).map_err(io("read"))?;
            drop(turn);
            let description = slot.look().map_err(io("read"))?.1.filter(|d| d.key == *key);
            match (attached, description) {
                (Attach::Gone, _) | (_, None) => continue,
                (Attach::Damaged, _) => {
                    let cure =
                        "what is there is not what was published: revoke it, and publish it again";
                    return Err(self.wrong(cure));
                }
                (Attach::Attached(_), Some(description)) => {
                    // From here on nothing here can write to it.
                    let map = Arc::new(self.map(false)?);
                    let Description { key, offset, .. } = description;
                    let len = key.bytes;
                    let image = DeviceImage { map, offset, len, _user: Arc::new(user) };
                    return Ok(Some(Attached::Device(image)));
                }
            }
        }
        Ok(None)
    }

    fn list(&self) -> Result<Vec<Held>, SharedError> {
        let (map, _) = self.store(false)?;
        let held = |(slot, word, description): (usize, Word, Option<Description>)| {
            let published = word.state == State::Published;
            let users = locks::holders(&self.lock_path(slot, "lock"));
            let held = Held { key: description?.key, published, epoch: Some(word.epoch), users };
            (word.state != State::Writing).then_some(held)
        };
        let mut all: Vec<Held> = self.slots(&map)?.into_iter().filter_map(held).collect();
        all.sort_by_key(|h| h.key);
        Ok(all)
    }

    fn retire(&self, key: &Key) -> Result<(), SharedError> {
        // Revoking does it, and `free` finishes that.
        let map = self.owned()?;
        for (index, _) in self.of_key(&map, key, State::Published)? {
            let mut slot = MappedSlot::new(&map, index);
            // Also of hosts that use it: the state is written before leases are looked at.
            Revoking::new(HOSTS).run(&mut slot).map_err(SharedError::io("write", &self.path))?;
        }
        Ok(())
    }

    fn free(&self, key: &Key) -> Result<Freed, SharedError> {
        let map = self.owned()?;
        let io = |what| SharedError::io(what, &self.path);
        let mut in_use = None;
        for (index, _) in self.of_key(&map, key, State::Revoked)? {
            let mut slot = MappedSlot::new(&map, index);
            match self.alone(index)? {
                None => {
                    let users = locks::holders(&self.lock_path(index, "lock")).max(1);
                    in_use = Some(format!("{users} machines of this host"));
                    continue;
                }
                Some(_alone) => Release::new(self.host).run(&mut slot).map_err(io("write"))?,
            }
            match Revoking::new(HOSTS).run(&mut slot).map_err(io("write"))? {
                Revoke::Free => {}
                Revoke::InUse(host) => in_use = Some(format!("host {host}")),
            }
        }
        Ok(in_use.map_or(Freed::Yes, Freed::InUse))
    }

    /// On every host, leases of what it uses no longer; on the owner, also slots whose publisher died.
    fn clean(&self) -> Result<usize, SharedError> {
        let (map, superblock) = self.store(true)?;
        let io = |what| SharedError::io(what, &self.path);
        let mut cleaned = 0;
        for (index, word, _) in self.slots(&map)? {
            let mut slot = MappedSlot::new(&map, index);
            if slot.has_lease(self.host).map_err(io("read"))?
                && let Some(_alone) = self.alone(index)?
            {
                Release::new(self.host).run(&mut slot).map_err(io("write"))?;
                cleaned += 1;
            }
            if word.state == State::Writing && superblock.owner == self.host {
                Revoking::new(HOSTS).run(&mut slot).map_err(io("write"))?;
                cleaned += 1;
            }
        }
        Ok(cleaned)
    }
}
