//! Which file system a directory is on: SQLite's locks, and the memory that its processes share, do
//! not work over a network.

use std::path::{Path, PathBuf};

/// File systems of other machines, and those of disks that several machines share.
const NETWORK: [&str; 22] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "davfs",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "orangefs",
    "panfs",
    "pvfs2",
    "smb3",
    "smbfs",
    "vboxsf",
    "wekafs",
];
/// A FUSE program may serve files from anywhere. These are known to serve them from a local disk.
const LOCAL: [&str; 10] = [
    "fuse.bindfs",
    "fuse.cryfs",
    "fuse.encfs",
    "fuse.fuse-overlayfs",
    "fuse.gocryptfs",
    "fuse.mergerfs",
    "fuse.ntfs-3g",
    "fuse.securefs",
    "fuse.unionfs",
    "fuse.unionfs-fuse",
];

/// A mount that is not known to be on this machine alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) place: PathBuf,
    pub(crate) kind: String,
}

/// The network file system that a directory is on, according to `/proc/self/mounts`.
pub(crate) fn network(mounts: &[u8], directory: &Path) -> Option<Network> {
    // Names that are not Unicode are compared as displayed: the replacement of their bytes is the
    // same.
    let directory = PathBuf::from(directory.to_string_lossy().into_owned());
    let mounts = String::from_utf8_lossy(mounts);
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((PathBuf::from(unescaped(fields.next()?)), fields.next()?))
    });
    let holding = mounts.filter(|(place, _)| directory.starts_with(place));
    // The last of several mounts at one place covers the others.
    let (place, kind) = holding.max_by_key(|(place, _)| place.as_os_str().len())?;
    let served = kind == "fuse" || kind.starts_with("fuse.");
    let network = NETWORK.contains(&kind) || served && !LOCAL.contains(&kind);
    network.then(|| Network { place, kind: kind.to_owned() })
}

/// Unescapes a field: blanks, tabs, line breaks and backslashes are written as `\` and three octal
/// digits.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte.filter(u8::is_ascii) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = r"/dev/sda1 / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
nas:/a /mnt/my\040share nfs4 rw,vers=4.2 0 0
nas:/b /mnt/a\134b\011c lustre rw 0 0
auto /auto autofs rw 0 0
nas:/c /auto nfs rw 0 0
/dev/sdb1 /auto/disk xfs rw 0 0
bucket /mnt/bucket fuse.s3fs rw 0 0
https://host/ /mnt/dav fuse rw 0 0
union /mnt/union fuse.mergerfs rw 0 0
/dev/sdc1 /mnt/stick fuseblk rw 0 0
nas:/d /mnt/nas ceph rw 0 0
";

    fn kind(directory: &str) -> Option<String> {
        network(MOUNTS.as_bytes(), Path::new(directory)).map(|found| found.kind)
    }

    #[test]
    fn what_lies_on_another_machine_is_found() {
        for (directory, told) in [
            ("/mnt/my share", "nfs4"),
            ("/mnt/my share/state", "nfs4"),
            ("/mnt/a\\b\tc/state", "lustre"),
            ("/auto/state", "nfs"),
            ("/mnt/bucket/state", "fuse.s3fs"),
            ("/mnt/dav", "fuse"),
            ("/mnt/nas/state", "ceph"),
        ] {
            assert_eq!(kind(directory).as_deref(), Some(told), "{directory}");
        }
        let place = PathBuf::from("/mnt/my share");
        let found = network(MOUNTS.as_bytes(), &place.join("state"));
        assert_eq!(found, Some(Network { place, kind: "nfs4".to_owned() }));
    }

    #[test]
    fn what_lies_on_this_machine_is_not() {
        for directory in [
            "/",
            "/home",
            "/mnt",
            "/mnt/my",
            "/mnt/nas2",
            "/auto/disk/state",
            "/mnt/union",
            "/mnt/stick/state",
        ] {
            assert_eq!(kind(directory), None, "{directory}");
        }
        assert_eq!(network(b"", Path::new("/home")), None, "where nothing is told");
    }

    #[test]
    fn names_that_are_no_text_do_not_hide_the_others() {
        let mounts = b"a /mnt/\xff\xfe nfs rw 0 0\nb /mnt/b nfs rw 0 0\n";
        let kind = |directory: &str| network(mounts, Path::new(directory)).map(|found| found.kind);
        assert_eq!(kind("/mnt/b/state").as_deref(), Some("nfs"));
        assert_eq!(kind("/mnt/c"), None);
    }

    #[test]
    fn fields_are_read_as_they_were() {
        for (field, was) in [
            ("/a", "/a"),
            (r"/a\040b", "/a b"),
            (r"\011\012\134\043", "\t\n\\#"),
            (r"\134040", r"\040"),
            (r"a\04", r"a\04"),
            (r"a\999", r"a\999"),
            ("a\\\u{fffd}", "a\\\u{fffd}"),
        ] {
            assert_eq!(unescaped(field), was, "{field}");
        }
    }
}
