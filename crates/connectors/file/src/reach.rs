//! Whether a file could be read or written, as far as that can be told without doing so.

use std::fs::{File, metadata};
use std::io::{ErrorKind, Result};
use std::path::Path;

use rustix::fs::{Access, access};

use crate::directory::named;

/// Whether a file can be read. One that is followed may come later.
pub(crate) fn can_be_read(path: &Path, follow: bool) -> Result<()> {
    match File::open(path).and_then(|file| file.metadata()) {
        Ok(found) if found.is_dir() => Err(ErrorKind::IsADirectory.into()),
        Err(error) if follow && error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// Whether a file can be written, or made, in a directory that may have to be made, too.
pub(crate) fn can_be_written(path: &Path) -> Result<()> {
    match metadata(path) {
        Ok(found) if found.is_dir() => Err(ErrorKind::IsADirectory.into()),
        Ok(_) => Ok(access(path, Access::READ_OK | Access::WRITE_OK)?),
        Err(error) if error.kind() == ErrorKind::NotFound => can_be_made_in(path.parent()),
        Err(error) => Err(error),
    }
}

/// Whether something can be made in a directory, or in the nearest one above that is there.
fn can_be_made_in(directory: Option<&Path>) -> Result<()> {
    let above = directory.into_iter().flat_map(Path::ancestors);
    for place in above.map(named) {
        match metadata(place) {
            Ok(found) if found.is_dir() => {
                return Ok(access(place, Access::WRITE_OK | Access::EXEC_OK)?);
            }
            Ok(_) => return Err(ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(result: Result<()>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn a_directory_can_be_neither_read_nor_written() {
        let place = tempfile::tempdir().unwrap();
        for follow in [true, false] {
            assert_eq!(kind(can_be_read(place.path(), follow)), Some(ErrorKind::IsADirectory));
        }
        assert_eq!(kind(can_be_written(place.path())), Some(ErrorKind::IsADirectory));
    }

    #[test]
    fn what_is_not_there_can_be_written_and_followed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("not/yet/out.jsonl");
        assert_eq!(kind(can_be_written(&path)), None);
        assert_eq!(kind(can_be_read(&path, true)), None);
        assert_eq!(kind(can_be_read(&path, false)), Some(ErrorKind::NotFound));
        std::fs::write(place.path().join("not"), "").unwrap();
        assert_eq!(kind(can_be_written(&path)), Some(ErrorKind::NotADirectory));
        assert_eq!(kind(can_be_written(&place.path().join("not"))), None);
    }
}
