//! Which process a member is, so that others on this machine see at once when it is gone.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// The alive key's value for a member about which nothing else is known.
pub(super) const ALIVE: &str = "1";

/// A process as its alive key describes it, after [`ALIVE`]: where it runs, its number and when it
/// began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    /// The machine's boot and name, and the namespaces of processes and of time: where these are
    /// the same, numbers and times mean the same.
    place: String,
    id: u32,
    began: u64,
}

impl Process {
    /// This process; `None` where `/proc` does not show every process here.
    pub(super) fn current() -> Option<Self> {
        let id = std::process::id();
        // It shows another namespace's processes, or hides those of other users.
        if fs::read_link("/proc/self").ok()? != Path::new(&id.to_string()) || hides() {
            return None;
        }
        let (_, began) = state(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let read = |path: &str| Some(fs::read_to_string(path).ok()?.trim().to_owned());
        let namespace = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).ok();
        let parts = [
            read("/proc/sys/kernel/random/boot_id")?,
            read("/proc/sys/kernel/hostname")?,
            namespace("pid")?.to_str()?.to_owned(),
            // Older kernels have no namespaces of time.
            namespace("time").unwrap_or_default().to_str()?.to_owned(),
        ];
        Some(Self { place: parts.join("/"), id, began })
    }

    /// The value of its alive key.
    pub(super) fn alive(&self) -> String {
        let Self { place, id, began } = self;
        format!("{ALIVE} {place} {id} {began}")
    }

    /// Whether an alive key with this value belongs to a process that ran where this one does and
    /// is gone.
    pub(super) fn sees_gone(&self, alive: &str) -> bool {
        let mut parts = alive.split(' ');
        if parts.next() != Some(ALIVE) || parts.next() != Some(&self.place) {
            return false;
        }
        let numbers = (parts.next().map(str::parse::<u32>), parts.next().map(str::parse::<u64>));
        let (Some(Ok(id)), Some(Ok(began))) = numbers else { return false };
        match fs::read_to_string(format!("/proc/{id}/stat")) {
            Ok(stat) => state(&stat).is_some_and(|(runs, since)| !runs || since != began),
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }
}

/// Whether `/proc` is mounted so that it hides some processes, or that cannot be determined.
fn hides() -> bool {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return true };
    let mut at_proc = mounts.lines().filter(|line| line.split(' ').nth(1) == Some("/proc"));
    // The last mount is on top.
    at_proc.next_back().is_none_or(|line| line.contains("hidepid="))
}

/// From the contents of `/proc/ID/stat`: whether any of the process still runs, and when it began,
/// in ticks since the machine did.
fn state(stat: &str) -> Option<(bool, u64)> {
    // The name, in brackets, may contain any characters.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let (state, threads) = (*fields.first()?, *fields.get(17)?);
    // A zombie waits to be reaped; its other threads may run on.
    let ended = matches!(state, "Z" | "X") && threads.parse::<u64>().ok()? <= 1;
    Some((!ended, fields.get(19)?.parse().ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_gone_when_it_was_killed_and_not_before() {
        let here = Process::current().expect("/proc is there");
        assert!(!here.sees_gone(&here.alive()));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat is there");
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it runs");
        let (runs, began) = state(&stat).expect("it is as documented");
        assert!(runs);
        let other = Process { id: child.id(), began, ..here.clone() };
        assert!(!here.sees_gone(&other.alive()));
        let reused = Process { began: began + 1, ..other.clone() };
        assert!(here.sees_gone(&reused.alive()), "another process has its number");
        child.kill().expect("one's own child can be killed");
        child.wait().expect("one's own child can be waited for");
        assert!(here.sees_gone(&other.alive()));
    }

    #[test]
    fn of_what_runs_elsewhere_or_is_not_known_nothing_is_said() {
        let here = Process::current().expect("/proc is there");
        let elsewhere = Process { place: "other".into(), began: 0, ..here.clone() };
        assert!(!here.sees_gone(&elsewhere.alive()));
        let place = &here.place;
        for alive in ["1", "", "2 x 1 1", &format!("1 {place}"), &format!("1 {place} 1 x")] {
            assert!(!here.sees_gone(alive), "{alive}");
        }
    }

    #[test]
    fn the_state_of_a_process_is_read_whatever_its_name_is() {
        let rest = "1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 THREADS 0 12345 1 1";
        let stat = |state: &str, threads: &str| {
            format!("42 (a) b (c) {state} {}", rest.replace("THREADS", threads))
        };
        assert_eq!(state(&stat("S", "7")), Some((true, 12345)));
        assert_eq!(state(&stat("Z", "1")), Some((false, 12345)));
        assert_eq!(state(&stat("Z", "3")), Some((true, 12345)));
        assert_eq!(state("42 (a"), None);
    }
}
