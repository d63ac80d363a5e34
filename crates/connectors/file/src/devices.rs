//! Files of file systems that are copies of each other: they have the same inodes and times of birth.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::ledger::{Positions, in_directory};

/// On which device, and in which directory, the file of an identity was found first.
#[derive(Debug, Default)]
pub(crate) struct Devices(HashMap<String, (u64, PathBuf)>);

impl Devices {
    /// The key of the position of a file with this identity. Where another directory has a file with the same one on
    /// another device, or once had, that directory belongs to it: the number of a device may be another after the next
    /// start. In the same directory another number means that the file system was mounted again.
    pub(crate) fn key(
        &mut self,
        positions: &Positions,
        identity: String,
        (device, path): (u64, &Path),
    ) -> String {
        let first = self.0.get(&identity);
        if first.is_some_and(|(first, _)| *first == device) && !positions.any_by_directory() {
            return identity;
        }
        let directory = directory_of(path);
        let is_other = first.is_some_and(|(first, of)| *first != device && *of != directory);
        let key = in_directory(&identity, &directory);
        if let Some(key) = key.filter(|key| is_other || positions.get(key).is_some()) {
            return key;
        }
        self.0.insert(identity.clone(), (device, directory));
        identity
    }
}

/// Where a file is, wherever a link to it stands.
fn directory_of(path: &Path) -> PathBuf {
    let real = path.canonicalize().or_else(|_| std::path::absolute(path));
    real.ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Position;
    use crate::settings::Form;

    /// The keys of the files of two mounts, in this order; positions are kept by them.
    fn keys(positions: &mut Positions, mounts: [(u64, &str); 2]) -> [String; 2] {
        let mut devices = Devices::default();
        mounts.map(|(device, path)| {
            let key = devices.key(positions, "born 7:5".to_owned(), (device, Path::new(path)));
            let empty = std::fs::File::open("/dev/null").unwrap();
            let position = Position::beginning(path, &empty, Form::LINES).unwrap();
            positions.insert(key.clone(), position);
            key
        })
    }

    #[test]
    fn of_two_file_systems_each_file_has_its_own_position_at_every_start() {
        let mut positions = Positions::new(Vec::new());
        let [first, second] = keys(&mut positions, [(1, "/m1/log"), (2, "/m2/log")]);
        assert_eq!((first.as_str(), second.as_str()), ("born 7:5", "born 7 in /m2:5"));
        // The devices have other numbers, and the second comes first.
        let swapped = keys(&mut positions, [(1, "/m2/log"), (3, "/m1/log")]);
        assert_eq!(swapped, [second, first.clone()]);
        assert!(positions.knows_inode(5));
        // In one file system it is one file, whatever its names are.
        let mut positions = Positions::new(Vec::new());
        assert_eq!(keys(&mut positions, [(1, "/a/log"), (1, "/b/log")]), [first.clone(), first]);
    }

    #[test]
    fn a_file_system_that_is_mounted_again_is_the_same() {
        let mut positions = Positions::new(Vec::new());
        let again = keys(&mut positions, [(1, "/m1/log"), (2, "/m1/log")]);
        assert_eq!(again, ["born 7:5", "born 7:5"]);
    }

    #[test]
    fn copies_are_told_apart_by_where_links_to_them_lead() {
        let place = tempfile::tempdir().unwrap();
        let links = ["one", "two"].map(|name| {
            let there = place.path().join(name);
            std::fs::create_dir(&there).unwrap();
            std::fs::write(there.join("log"), "").unwrap();
            let link = place.path().join(format!("{name}.log"));
            std::os::unix::fs::symlink(there.join("log"), &link).unwrap();
            link
        });
        let [first, second] = links.each_ref().map(|link| link.to_str().unwrap());
        let mut positions = Positions::new(Vec::new());
        let before = keys(&mut positions, [(1, first), (2, second)]);
        assert_ne!(before[0], before[1]);
        assert_eq!(keys(&mut positions, [(1, first), (2, second)]), before);
    }

    #[test]
    fn a_device_that_is_part_of_the_identity_says_it_all() {
        let (mut devices, positions) = (Devices::default(), Positions::new(Vec::new()));
        for device in [1, 2] {
            let key = devices.key(&positions, format!("{device}:5"), (device, Path::new("/a/b")));
            assert_eq!(key, format!("{device}:5"));
        }
    }
}
