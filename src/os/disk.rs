//! A directory of files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use redb::backends::FileBackend;

use crate::error::{Context, Fault};
use crate::io::{Backend, Disk};

/// The name of the file whose lock says that a process owns the directory.
const LOCK: &str = "lock";
/// Who may do what with a data directory that is made here, and with files in it: whoever can read them can read every key, and
/// what users' tokens are signed with.
const OWNERS_DIR: u32 = 0o700;
const OWNERS_FILE: u32 = 0o600;

/// A node's data directory, locked for this process.
pub struct DataDir {
    dir: PathBuf,
    /// Every open file has it, too: the directory is in use until the last is closed.
    lock: Arc<File>,
}

impl DataDir {
    /// Takes `dir`, making it if needed.
    ///
    /// # Errors
    /// It cannot be made or written, or another process holds it.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        let say = |verb: &str| format!("{verb} the data directory {}", dir.display());
        make_durably(dir).context(|| say("make"))?;
        let lock = writable().open(dir.join(LOCK)).context(|| say("write to"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), lock: Arc::new(lock) }),
            Err(fs::TryLockError::WouldBlock) => Err(Fault::new(format!(
                "the data directory {} is in use by another node; stop that one, or choose another with --data-dir",
                dir.display()
            ))),
            Err(fs::TryLockError::Error(error)) => Err(Fault::because(say("lock"), error)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        assert!(!name.contains('/') && !name.starts_with('.'), "{name:?} is not a plain file name");
        self.dir.join(name)
    }
}

/// Makes a directory, and those above it, so that they are there after a power cut.
fn make_durably(dir: &Path) -> io::Result<()> {
    let missing = dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
    let above: Vec<PathBuf> = missing.filter_map(Path::parent).map(Path::to_owned).collect();
    DirBuilder::new().recursive(true).mode(OWNERS_DIR).create(dir)?;
    above.iter().try_for_each(|dir| {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir)?.sync_all()
    })
}

/// How a file is opened that is made if it is not there.
fn writable() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(OWNERS_FILE);
    options
}

fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Disk for DataDir {
    fn open(&self, name: &str) -> io::Result<Backend> {
        let path = self.path(name);
        let file = writable().open(&path).map_err(at(&path))?;
        // What an earlier process could not write to the device may be in memory as if it had been, and no later sync says so: what
        // is read here is what the device has.
        file.sync_all().map_err(at(&path))?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(|error| at(&path)(error.into()))?;
        let backend = FileBackend::new(file).map_err(|error| at(&path)(io::Error::other(error)))?;
        Ok(Backend(Box::new(backend), self.lock.clone()))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(at(&self.dir))? {
            if let Ok(name) = entry?.file_name().into_string()
                && name != LOCK
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        let path = self.path(name);
        fs::metadata(&path).map(|metadata| metadata.len()).map_err(at(&path))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        fs::remove_file(&path).map_err(at(&path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let path = self.path(from);
        fs::rename(&path, self.path(to)).map_err(at(&path))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(at(&self.dir))
    }

    fn reserve(&self, name: &str, bytes: u64) -> io::Result<()> {
        let path = self.path(name);
        let file = writable().truncate(true).open(&path).map_err(at(&path))?;
        let len = i64::try_from(bytes).map_err(io::Error::other)?;
        let taken = nix::fcntl::posix_fallocate(&file, 0, len).map_err(io::Error::from);
        taken.and_then(|()| file.sync_all()).map_err(|error| {
            let _ = fs::remove_file(&path);
            at(&path)(error)
        })?;
        self.sync_dir()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.dir).map_err(io::Error::from).map_err(at(&self.dir))?;
        #[allow(clippy::unnecessary_cast)] // the fields are narrower on other targets
        Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
    }

    fn describe(&self) -> String {
        self.dir.display().to_string()
    }
}

/// The disk of a program that has none: every call is refused.
pub struct NoDisk;

impl NoDisk {
    fn refuse<T>() -> io::Result<T> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a client has no data directory"))
    }
}

impl Disk for NoDisk {
    fn open(&self, _: &str) -> io::Result<Backend> {
        Self::refuse()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Self::refuse()
    }

    fn size(&self, _: &str) -> io::Result<u64> {
        Self::refuse()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Self::refuse()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Self::refuse()
    }

    fn sync_dir(&self) -> io::Result<()> {
        Self::refuse()
    }

    fn reserve(&self, _: &str, _: u64) -> io::Result<()> {
        Self::refuse()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Self::refuse()
    }

    fn describe(&self) -> String {
        "no data directory".into()
    }
}
