//! The files that a queue's path names.

use std::ffi::OsStr;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use crate::directory::named;
use crate::settings::{BY_COMPONENT, GLOB, Settings};

/// What a path or a glob names, in order: files, and what may not be looked at.
pub(crate) type Found = Vec<Result<PathBuf, (PathBuf, Error)>>;

/// The files that a glob finds. The library passes over what it may not look at where no wildcard follows, so
/// each wildcard is expanded by itself.
pub(crate) fn find(pattern: &str) -> Result<Found, glob::PatternError> {
    glob::Pattern::new(pattern)?;
    let (base, rest) = match pattern.strip_prefix('/') {
        Some(rest) => (PathBuf::from("/"), rest),
        None => (PathBuf::new(), pattern),
    };
    let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    let mut found = Vec::new();
    expand(base, &parts, &mut found)?;
    found.sort_by(|one, other| path_of(one).cmp(path_of(other)));
    Ok(found)
}

fn path_of(found: &Result<PathBuf, (PathBuf, Error)>) -> &Path {
    match found {
        Ok(path) | Err((path, _)) => path,
    }
}

/// The first that a glob finds and may not look at, and why. With `follow` it may be later.
pub(crate) fn refused(settings: &Settings) -> Result<(), String> {
    if settings.follow {
        return Ok(());
    }
    let found = find(&settings.path).map_err(|error| error.to_string())?;
    match found.into_iter().find_map(Result::err) {
        Some((path, error)) => {
            Err(format!("{} cannot be read: {error}; see `path:`", path.display()))
        }
        None => Ok(()),
    }
}

fn expand(mut base: PathBuf, parts: &[&str], found: &mut Found) -> Result<(), glob::PatternError> {
    let literal = parts.iter().take_while(|part| !part.contains(GLOB)).count();
    base.extend(&parts[..literal]);
    let is_file = match named(&base).metadata() {
        Ok(metadata) => metadata.is_file(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(());
        }
        Err(error) => {
            found.push(Err((base, error)));
            return Ok(());
        }
    };
    let Some((wildcard, rest)) = parts[literal..].split_first() else {
        found.extend(is_file.then_some(Ok(base)));
        return Ok(());
    };
    // Whatever follows a `**` may be at any depth.
    let (wildcard, rest) = match *wildcard {
        "**" => (parts[literal..].join("/"), &[][..]),
        wildcard => (wildcard.to_owned(), rest),
    };
    let within = base.join("").display().to_string();
    for entry in glob::glob(&(glob::Pattern::escape(&within) + &wildcard))? {
        match entry {
            Ok(path) => expand(path, rest, found)?,
            Err(error) => found.push(Err((error.path().to_owned(), error.into()))),
        }
    }
    Ok(())
}

/// What a glob does not find as the name is not UTF-8, though its pattern is of it.
pub(crate) fn not_utf8(pattern: &Path) -> Vec<PathBuf> {
    let mut passed_over = Vec::new();
    for pattern in pattern.ancestors() {
        let name = pattern.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let parent = pattern.parent().and_then(Path::to_str).unwrap_or_default();
        let Ok(whole) = glob::Pattern::new(&pattern.to_string_lossy()) else { continue };
        if !name.contains(GLOB) || name == "**" {
            continue;
        }
        let directories: Vec<PathBuf> = match parent {
            "" => vec![PathBuf::new()],
            parent => glob::glob(parent).into_iter().flatten().filter_map(Result::ok).collect(),
        };
        let is_of = |path: &PathBuf| {
            whole.matches_path_with(Path::new(&*path.to_string_lossy()), BY_COMPONENT)
        };
        for directory in directories {
            passed_over.extend(names_not_utf8(&directory).filter(is_of));
        }
    }
    passed_over
}

fn names_not_utf8(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(named(directory)).into_iter().flatten().filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name());
    names.filter(|name| name.to_str().is_none()).map(|name| directory.join(name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(pattern: &Path) -> Vec<String> {
        let found = find(pattern.to_str().unwrap()).unwrap();
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        found
            .into_iter()
            .map(|one| one.map_or_else(|(path, _)| format!("not {}", name(path)), name))
            .collect()
    }

    #[test]
    fn a_glob_finds_files_wherever_its_wildcards_stand() {
        let directory = tempfile::tempdir().unwrap();
        let within = |path: &str| directory.path().join(path);
        for place in ["a[1]", "b/day", "c"] {
            fs::create_dir_all(within(place)).unwrap();
        }
        for file in ["a[1]/data.jsonl", "b/data.jsonl", "b/day/x.jsonl", "c/data.txt"] {
            fs::write(within(file), "1\n").unwrap();
        }
        assert_eq!(names(&within("*/data.jsonl")), ["data.jsonl"; 2]);
        assert_eq!(names(&within("*/day/*.jsonl")), ["x.jsonl"]);
        assert_eq!(names(&within("**/*.jsonl")), ["data.jsonl", "data.jsonl", "x.jsonl"]);
        assert_eq!(names(&within("c/*")), ["data.txt"]);
        assert_eq!(names(&within("c/data.txt/*")), [""; 0]);
        assert_eq!(names(&within("nowhere/*")), [""; 0]);
        assert!(find("a/[").is_err());
    }

    /// Root may look at everything, but nobody at a link that leads to itself.
    #[test]
    fn what_a_glob_may_not_look_at_is_said_wherever_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let within = |path: &str| directory.path().join(path);
        fs::create_dir(within("a")).unwrap();
        fs::write(within("a/data.jsonl"), "1\n").unwrap();
        std::os::unix::fs::symlink("b", within("b")).unwrap();
        assert_eq!(names(&within("*/data.jsonl")), ["data.jsonl", "not data.jsonl"]);
        assert_eq!(names(&within("*/*.jsonl")), ["data.jsonl", "not b"]);
        assert_eq!(names(&within("b/*.jsonl")), ["not b"]);
        assert_eq!(names(&within("*")), ["not b"]);
    }
}
