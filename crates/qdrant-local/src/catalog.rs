//! The collections and aliases of one data directory.
//!
//! Every method that changes something is synchronous: it runs to its end on a
//! blocking thread even if the caller goes away, so the manifest, the files and
//! what is in memory can't part company half-way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

use qdrant_edge::PayloadFieldSchema;

use crate::error::{Error, StartError};
use crate::manifest::{CollectionSpec, Manifest, sync_dir};
use crate::store::Store;

/// Directory of the engine shards inside the data directory.
const COLLECTIONS_DIR: &str = "collections";

/// File whose lock says who owns the data directory.
const LOCK_FILE: &str = "lock";

/// A data directory, opened and locked.
#[derive(Debug)]
pub(crate) struct Catalog {
    data_dir: PathBuf,
    /// What is on disk. Locked for the whole of a change, so changes queue.
    manifest: Mutex<Manifest>,
    /// What requests see. Locked for a look-up or a swap, never over I/O.
    open: RwLock<Open>,
    /// Released by the operating system too, if the process dies.
    lock: Mutex<Option<File>>,
}

#[derive(Debug, Default)]
struct Open {
    stores: BTreeMap<String, Arc<Store>>,
    aliases: BTreeMap<String, String>,
}

/// One step of an alias change.
#[derive(Debug)]
pub(crate) enum AliasAction {
    Create { alias: String, collection: String },
    Rename { old: String, new: String },
    Delete { alias: String },
}

impl Catalog {
    /// Locks `data_dir` (made if missing), removes what a crash left behind and
    /// opens every collection.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, StartError> {
        let collections_dir = data_dir.join(COLLECTIONS_DIR);
        fs::create_dir_all(&collections_dir)
            .map_err(StartError::io(format!("create {}", collections_dir.display())))?;
        let Acquired { lock, left_open } = acquire(data_dir)?;
        if left_open {
            tracing::info!("the last server was not stopped properly: repairing");
        }
        let manifest = Manifest::load(data_dir)?;
        remove_strays(&collections_dir, &manifest)?;

        let mut stores = BTreeMap::new();
        for (name, spec) in &manifest.collections {
            let store = Store::open(collections_dir.join(&spec.dir), spec.clone(), left_open);
            let store = store
                .map_err(|error| StartError::Collection { collection: name.clone(), reason: error.to_string() })?;
            stores.insert(name.clone(), store);
        }
        let open = Open { stores, aliases: manifest.aliases.clone() };
        Ok(Self {
            data_dir: data_dir.to_owned(),
            manifest: Mutex::new(manifest),
            open: RwLock::new(open),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Finds a collection by name or alias.
    pub(crate) fn resolve(&self, name: &str) -> Result<Arc<Store>, Error> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let real = open.aliases.get(name).map_or(name, String::as_str);
        open.stores.get(real).cloned().ok_or_else(|| Error::CollectionNotFound(name.to_owned()))
    }

    /// Returns the names of all collections, sorted.
    pub(crate) fn collections(&self) -> Vec<String> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.stores.keys().cloned().collect()
    }

    /// Returns (alias, collection) pairs, sorted by alias.
    pub(crate) fn aliases(&self) -> Vec<(String, String)> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.aliases.clone().into_iter().collect()
    }

    /// Creates an empty collection; durable when it returns.
    pub(crate) fn create(&self, name: &str, mut spec: CollectionSpec) -> Result<(), Error> {
        let mut manifest = self.manifest();
        if manifest.collections.contains_key(name) || manifest.aliases.contains_key(name) {
            return Err(Error::CollectionExists(name.to_owned()));
        }
        let mut next = manifest.clone();
        spec.dir = next.reserve_dir();
        next.collections.insert(name.to_owned(), spec.clone());

        let collections_dir = self.data_dir.join(COLLECTIONS_DIR);
        let store = Store::create(collections_dir.join(&spec.dir), spec)?;
        let saved = sync_dir(&collections_dir).and_then(|()| next.save(&self.data_dir));
        if let Err(error) = saved {
            store.remove();
            return Err(Error::Internal(format!("save manifest: {error}")));
        }
        *manifest = next;
        self.open_mut().stores.insert(name.to_owned(), store);
        Ok(())
    }

    /// Deletes a collection and its aliases. Returns whether there was one.
    pub(crate) fn delete(&self, name: &str) -> Result<bool, Error> {
        let mut manifest = self.manifest();
        let mut next = manifest.clone();
        if next.collections.remove(name).is_none() {
            return Ok(false);
        }
        next.aliases.retain(|_, collection| collection != name);
        self.save(&mut manifest, next)?;
        let store = {
            let mut open = self.open_mut();
            open.aliases = manifest.aliases.clone();
            open.stores.remove(name)
        };
        if let Some(store) = store {
            store.remove();
        }
        Ok(true)
    }

    /// Applies all actions or none; a reader never sees a part of them.
    pub(crate) fn change_aliases(&self, actions: Vec<AliasAction>) -> Result<(), Error> {
        let mut manifest = self.manifest();
        let mut next = manifest.clone();
        for action in actions {
            apply_alias_action(&mut next, action)?;
        }
        self.save(&mut manifest, next)?;
        self.open_mut().aliases = manifest.aliases.clone();
        Ok(())
    }

    /// Sets a collection's indexing threshold, in KiB.
    pub(crate) fn set_indexing_threshold(&self, collection: &str, kib: u64) -> Result<(), Error> {
        let store = self.resolve(collection)?;
        let mut manifest = self.manifest();
        let mut next = manifest.clone();
        let name = next.aliases.get(collection).map_or(collection, String::as_str).to_owned();
        let spec = next.collections.get_mut(&name).ok_or_else(|| Error::CollectionNotFound(collection.to_owned()))?;
        spec.indexing_threshold = Some(kib);
        self.save(&mut manifest, next)?;
        store.set_indexing_threshold(kib);
        Ok(())
    }

    /// Notes that a collection now has, or no longer has, a payload index.
    pub(crate) fn record_index(
        &self,
        collection: &str,
        key: String,
        schema: Option<PayloadFieldSchema>,
    ) -> Result<(), Error> {
        let mut manifest = self.manifest();
        let mut next = manifest.clone();
        let name = next.aliases.get(collection);
        let name = name.map_or(collection, String::as_str).to_owned();
        let spec = next.collections.get_mut(&name).ok_or_else(|| Error::CollectionNotFound(collection.to_owned()))?;
        match schema {
            Some(schema) => spec.indexes.insert(key, schema),
            None => spec.indexes.remove(&key),
        };
        self.save(&mut manifest, next)
    }

    /// Flushes and closes every collection and releases the directory. Later
    /// requests are answered that the server is closing.
    pub(crate) fn close(&self) {
        let stores = std::mem::take(&mut self.open_mut().stores);
        let mut clean = true;
        for (name, store) in stores {
            if let Err(error) = store.close() {
                tracing::error!(%error, collection = name, "close collection");
                clean = false;
            }
        }
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = lock.take()
            && clean
            && let Err(error) = lock.set_len(0)
        {
            tracing::warn!(%error, "clear the lock file: the next start will repair");
        }
    }

    fn save(&self, manifest: &mut Manifest, next: Manifest) -> Result<(), Error> {
        next.save(&self.data_dir).map_err(|error| Error::Internal(format!("save manifest: {error}")))?;
        *manifest = next;
        Ok(())
    }

    fn manifest(&self) -> MutexGuard<'_, Manifest> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_mut(&self) -> RwLockWriteGuard<'_, Open> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply_alias_action(manifest: &mut Manifest, action: AliasAction) -> Result<(), Error> {
    match action {
        AliasAction::Create { alias, collection } => {
            if !manifest.collections.contains_key(&collection) {
                return Err(Error::CollectionNotFound(collection));
            }
            if manifest.collections.contains_key(&alias) {
                return Err(Error::CollectionExists(alias));
            }
            manifest.aliases.insert(alias, collection);
        }
        AliasAction::Rename { old, new } => {
            if manifest.collections.contains_key(&new) {
                return Err(Error::CollectionExists(new));
            }
            let Some(collection) = manifest.aliases.remove(&old) else {
                return Err(Error::AliasNotFound(old));
            };
            manifest.aliases.insert(new, collection);
        }
        AliasAction::Delete { alias } => {
            manifest.aliases.remove(&alias);
        }
    }
    Ok(())
}

/// A locked data directory.
struct Acquired {
    lock: File,
    /// Whether the last owner went without closing it: its process number is
    /// still in the lock file.
    left_open: bool,
}

fn acquire(data_dir: &Path) -> Result<Acquired, StartError> {
    let path = data_dir.join(LOCK_FILE);
    let context = format!("lock {}", path.display());
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(StartError::io(context.clone()))?;
    let locked = file.try_lock();
    let mut owner = String::new();
    file.read_to_string(&mut owner).map_err(StartError::io(context.clone()))?;
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StartError::InUse { dir: data_dir.to_owned(), pid: owner.trim().to_owned() });
        }
        Err(TryLockError::Error(error)) => return Err(StartError::io(context)(error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .and_then(|()| file.sync_all())
        .map_err(StartError::io(context))?;
    Ok(Acquired { lock: file, left_open: !owner.trim().is_empty() })
}

/// Removes shard directories that no collection owns: a creation or a deletion
/// that a crash interrupted.
fn remove_strays(collections_dir: &Path, manifest: &Manifest) -> Result<(), StartError> {
    let owned: BTreeSet<&str> = manifest.collections.values().map(|spec| spec.dir.as_str()).collect();
    let context = format!("clean {}", collections_dir.display());
    let entries = fs::read_dir(collections_dir).map_err(StartError::io(context.clone()))?;
    for entry in entries {
        let entry = entry.map_err(StartError::io(context.clone()))?;
        if owned.contains(entry.file_name().to_string_lossy().as_ref()) {
            continue;
        }
        tracing::info!(dir = %entry.path().display(), "remove a directory no collection owns");
        fs::remove_dir_all(entry.path()).map_err(StartError::io(context.clone()))?;
    }
    Ok(())
}
