//! Files outside the data directory, for the command line.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A path in front of what went wrong.
fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Reads a file from its beginning.
///
/// # Errors
/// What the file system says, with the path.
pub fn open(path: &Path) -> io::Result<impl Read + use<>> {
    File::open(path).map(|file| BufReader::with_capacity(1 << 20, file)).map_err(at(path))
}

/// A file that is there when it is whole, or not at all.
pub struct NewFile {
    path: PathBuf,
    part: PathBuf,
    file: Option<BufWriter<File>>,
}

impl NewFile {
    /// Begins a file where there is none.
    ///
    /// # Errors
    /// There is one, or what the file system says, with the path.
    pub fn create(path: &Path) -> io::Result<Self> {
        if path.exists() {
            return Err(at(path)(io::Error::new(io::ErrorKind::AlreadyExists, "is there already")));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        // Whoever can read it can read every key.
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&part).map_err(at(&part))?;
        // One that was given up may be there; one that is being written may not.
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => at(&part)(io::Error::new(io::ErrorKind::ResourceBusy, "is being written")),
            TryLockError::Error(error) => at(&part)(error),
        })?;
        file.set_len(0).map_err(at(&part))?;
        Ok(Self { path: path.to_owned(), part, file: Some(BufWriter::new(file)) })
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = self.file.as_mut().expect("it is finished once");
        file.write_all(bytes).map_err(at(&self.part))
    }

    /// Makes what was written durable; gives it for reading, as a check before [`Self::finish`].
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn sync(&mut self) -> io::Result<impl Read + use<>> {
        let file = self.file.as_mut().expect("it is finished once");
        file.flush().and_then(|()| file.get_ref().sync_all()).map_err(at(&self.part))?;
        open(&self.part)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn finish(mut self) -> io::Result<()> {
        fs::rename(&self.part, &self.path).map_err(at(&self.path))?;
        drop(self.file.take());
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // What is not whole is of no use.
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.part);
        }
    }
}
