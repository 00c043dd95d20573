//! Files outside the data directory, for the command line.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

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
        let create = || {
            // Whoever can read it can read every key.
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)
        };
        let made = match create() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => give_up(&part).and_then(|()| create()),
            made => made,
        };
        // For as long as it is locked it is not given up.
        let file = made.and_then(|file| lock(&file).map(|()| file)).map_err(at(&part))?;
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
        // What is not whole is of no use. It is locked until it is closed.
        if let Some(file) = self.file.take() {
            let _ = fs::remove_file(&self.part);
            drop(file);
        }
    }
}

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::new(io::ErrorKind::ResourceBusy, "is being written"),
        TryLockError::Error(error) => error,
    })
}

/// Removes what of a file is left that somebody began and did not finish.
fn give_up(part: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(part)?;
    lock(&file)?;
    let (there, found) = (fs::symlink_metadata(part)?, file.metadata()?);
    if (there.dev(), there.ino()) != (found.dev(), found.ino()) {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "is being written"));
    }
    fs::remove_file(part)
}
