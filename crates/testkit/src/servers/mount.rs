use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;

/// A file system in memory, mounted on a directory until this is dropped: a disk that is soon full. It needs root.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts one of this size, as `mount` takes it (`24m`), on a directory that is there.
    ///
    /// # Panics
    /// It may not be mounted.
    pub fn new(directory: &Path, size: &str) -> Self {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        run(mount.arg(directory));
        Self(directory.to_owned())
    }

    /// Gives it another size; what is on it stays.
    ///
    /// # Panics
    /// It cannot have that size.
    pub fn resize(&self, size: &str) {
        let mut mount = Command::new("mount");
        run(mount.args(["-o", &format!("remount,size={size}")]).arg(&self.0));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
