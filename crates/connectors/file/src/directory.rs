//! The directories of files that are written.

use std::fs::{File, create_dir_all};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

use brigade_core::connector::ConnectorError;
use rustix::io::Errno;

use crate::writer::failed;

/// The file that a path means in the end, whatever links lead there; it need not be there yet, its
/// directory is made.
pub(crate) fn resolved(path: &Path) -> std::result::Result<PathBuf, ConnectorError> {
    const LINKS_MAX: usize = 40;
    let wrong = |error: std::io::Error| failed(path, &error);
    let mut found = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        let directory = named(found.parent().unwrap_or(Path::new("")));
        make(directory).map_err(wrong)?;
        let name = found.file_name().ok_or_else(|| {
            ConnectorError::permanent(format!("{} is not a file's name", found.display()))
        })?;
        let directory = directory.canonicalize().map_err(wrong)?;
        let whole = directory.join(name);
        match std::fs::read_link(&whole) {
            Ok(target) => found = directory.join(target),
            Err(_) => return Ok(whole),
        }
    }
    let path = path.display();
    Err(ConnectorError::permanent(format!("cannot write {path}: its links lead in a circle")))
}

/// Makes a directory, and those above that are not there, so that they outlast a loss of power.
fn make(directory: &Path) -> Result<()> {
    let missing = directory.ancestors().take_while(|place| !named(place).exists());
    let missing: Vec<&Path> = missing.collect();
    create_dir_all(directory)?;
    missing.into_iter().try_for_each(|made| sync(made.parent()))
}

/// Makes what names are in a directory outlast a loss of power.
pub(crate) fn sync(directory: Option<&Path>) -> Result<()> {
    let Some(directory) = directory else { return Ok(()) };
    match File::open(named(directory)).and_then(|directory| directory.sync_all()) {
        // One that may be written and not listed cannot be opened, and some file systems sync none.
        Err(error) if is_never(&error) => Ok(()),
        other => other,
    }
}

/// Whether an error says that this cannot be done here, now or later.
fn is_never(error: &Error) -> bool {
    let kinds = [ErrorKind::PermissionDenied, ErrorKind::InvalidInput, ErrorKind::Unsupported];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(Errno::BADF.raw_os_error())
}

/// A directory as the system is asked for it.
pub(crate) fn named(directory: &Path) -> &Path {
    if directory.as_os_str().is_empty() { Path::new(".") } else { directory }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_are_not_there_are_made() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("some/where/out.jsonl");
        for _ in 0..2 {
            let found = resolved(&path).unwrap();
            assert_eq!(found, place.path().canonicalize().unwrap().join("some/where/out.jsonl"));
        }
        assert!(path.parent().unwrap().is_dir());
        sync(path.parent()).unwrap();
        assert!(sync(Some(&path)).is_err(), "it is not there");
    }
}
