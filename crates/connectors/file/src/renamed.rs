//! Files that were written and have another name by now.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use brigade_core::connector::ConnectorError;

use crate::kept::Account;
use crate::ledger::{identity, inode_of_born};
use crate::writer::{LOCK_MAX, cut_dead, failed, lock_until};

/// A file that has another name now.
pub(crate) struct Renamed {
    path: PathBuf,
    /// None where it may not be read any more, as after a rotation that says whose it is: then nobody writes it
    /// either.
    file: Option<File>,
}

impl Renamed {
    /// Cuts off what is not committed of the file of this identity. Where it may not be written any more it stays,
    /// and this is told: what was not committed is written again, so nothing is lost.
    fn cut(&self, wanted: &str, committed: u64) -> Result<(), ConnectorError> {
        let wrong = |error: Error| failed(&self.path, &error);
        if self.path.symlink_metadata().map_err(wrong)?.len() <= committed {
            return Ok(());
        }
        let file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                tracing::warn!(
                    file = %self.path.display(),
                    committed,
                    "the file that a process which may have died had open has another name and may not be written any \
                     more: what was not committed stays in it, after this many bytes"
                );
                return Ok(());
            }
            file => file.map_err(wrong)?,
        };
        if identity(&file.metadata().map_err(wrong)?) != wanted {
            let path = self.path.display();
            let text = format!("{path} was renamed while what is not committed was to be cut off");
            return Err(ConnectorError::transient(text));
        }
        cut_dead(&file, &self.path, committed)
    }
}

/// Cuts off what dead writers left in files that had a path before another one and have some other
/// name in its directory now. Says which: they are locked.
///
/// Where the file system does not say when files were made none is looked for: one that has got the
/// inode of another may not be taken for it.
pub(crate) async fn cut(
    account: &Account,
    path: &Path,
    before: impl Iterator<Item = &String>,
) -> Result<Vec<Renamed>, ConnectorError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    for file in before {
        let Some(inode) = inode_of_born(file) else { continue };
        let renamed = find(directory, file, inode);
        let Some(renamed) = renamed.map_err(|(path, error)| failed(&path, &error))? else {
            tracing::warn!(
                file = account.name(),
                "the file that a process which may have died had open is in its directory no more: \
                 what was not committed stays in it"
            );
            continue;
        };
        // Another path may go on with it, perhaps in this process.
        let elsewhere = account.of(&renamed.path);
        if elsewhere.length_of(file).await?.is_none() {
            if let Some(open) = &renamed.file {
                lock_until(open, &renamed.path, Instant::now() + LOCK_MAX)?;
            }
            // Who had it locked may have committed more.
            let committed = account.length_of(file).await?;
            if let (Some(committed), None) = (committed, elsewhere.length_of(file).await?) {
                renamed.cut(file, committed)?;
            }
        }
        found.push(renamed);
    }
    Ok(found)
}

/// The file of a directory that this identity is of. In one that may not be listed nothing is found.
///
/// # Errors
/// The directory cannot be listed for another reason, or the file not be opened: which one, and why.
fn find(directory: &Path, wanted: &str, inode: u64) -> Result<Option<Renamed>, (PathBuf, Error)> {
    let of_directory = |error| (directory.to_owned(), error);
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(None),
        entries => entries.map_err(of_directory)?,
    };
    for entry in entries {
        let entry = entry.map_err(of_directory)?;
        if entry.ino() != inode || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        match open(&path, wanted) {
            Ok(None) => {}
            Ok(Some(file)) => return Ok(Some(Renamed { path, file })),
            // It has got another name since, or is deleted.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err((path, error)),
        }
    }
    Ok(None)
}

/// Opens a file if it is the one that is wanted, and may be read; others may be closed to who looks.
fn open(path: &Path, wanted: &str) -> std::io::Result<Option<Option<File>>> {
    if identity(&path.symlink_metadata()?) != wanted {
        return Ok(None);
    }
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(Some(None)),
        file => file?,
    };
    let is_wanted = identity(&file.metadata()?) == wanted;
    Ok(is_wanted.then_some(Some(file)))
}
