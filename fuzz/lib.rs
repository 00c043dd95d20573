//! What the fuzz targets share: a disk in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use cairn::io::{Backend, Disk};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

/// Files in memory. They live for as long as the disk.
#[derive(Default)]
pub struct MemoryDisk(Mutex<BTreeMap<String, Arc<InMemoryBackend>>>);

#[derive(Debug)]
struct Shared(Arc<InMemoryBackend>);

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

impl Disk for MemoryDisk {
    fn open(&self, name: &str) -> io::Result<Backend> {
        let mut files = self.0.lock().unwrap();
        let file = files.entry(name.into()).or_insert_with(|| Arc::new(InMemoryBackend::new()));
        Ok(Backend(Box::new(Shared(file.clone())), Arc::new(())))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.0.lock().unwrap().get(name).ok_or(io::ErrorKind::NotFound)?.len()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.into(), file);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn reserve(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.open(name)?.set_len(bytes)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}
