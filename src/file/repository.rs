//! A model repository of the Hugging Face hub as a folder: in the cache that other programs use,
//! too, and fetched into it where it is not there.
//!
//! ```text
//! models--OWNER--NAME/refs/REVISION             the commit that a branch or tag was
//! models--OWNER--NAME/snapshots/COMMIT/FILE     a link to
//! models--OWNER--NAME/blobs/CHECKSUM
//! ```

use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use super::download::Event;
use crate::bail;
use crate::error::{At, Error, Result};

/// Where the hub is, who asks, and where files are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Without a slash at the end.
    pub endpoint: String,
    /// The folder that has a folder per repository.
    pub cache: PathBuf,
    /// Opens what is not open to everybody.
    pub token: Option<String>,
    /// Whether nothing may be asked.
    pub is_offline: bool,
}

impl Access {
    /// As the variables say that the hub's own programs obey. Only `cli` reads the environment, so
    /// it passes the look-up in.
    ///
    /// # Errors
    /// If there is no place for a cache folder.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> Result<Access> {
        let text = |name| variable(name)?.into_string().ok().filter(|text| !text.is_empty());
        let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache_home = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        let cache_home = cache_home.or_else(|| path("LOCALAPPDATA"));
        let home = path("HF_HOME").or_else(|| Some(cache_home?.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let Some(cache) = cache.or_else(|| Some(home.as_ref()?.join("hub"))) else {
            bail!("no cache folder: none of HF_HUB_CACHE, HF_HOME and HOME is set");
        };
        let is_set = |name| text(name).is_some_and(|value| !["0", "false"].contains(&&*value));
        let kept = || {
            let path = path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")))?;
            fs::read_to_string(path).ok()
        };
        let kept = || if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { kept() };
        let token = text("HF_TOKEN").or_else(kept).map(|token| token.trim().to_string());
        let endpoint = text("HF_ENDPOINT").unwrap_or("https://huggingface.co".to_string());
        Ok(Access {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache,
            token: token.filter(|token| !token.is_empty()),
            is_offline: is_set("HF_HUB_OFFLINE"),
        })
    }
}

/// `OWNER/NAME` or `OWNER/NAME@REVISION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// User or organisation.
    pub owner: String,
    /// Of the repository.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl FromStr for Repository {
    type Err = Error;

    fn from_str(text: &str) -> Result<Repository> {
        let (place, revision) = text.split_once('@').unwrap_or((text, "main"));
        let expected = || format!("expected OWNER/NAME or OWNER/NAME@REVISION, found {text}");
        let (owner, name) = place.split_once('/').ok_or_else(|| Error::new(expected()))?;
        let is_word = |word: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty() && !word.starts_with('.') && word.chars().all(is_plain)
        };
        if !is_word(owner) || !is_word(name) || !revision.split('/').all(is_word) {
            bail!("{}", expected());
        }
        let [owner, name, revision] = [owner, name, revision].map(str::to_string);
        Ok(Repository { owner, name, revision })
    }
}

impl Repository {
    /// Its folder in the cache.
    pub(super) fn folder(&self, access: &Access) -> PathBuf {
        access.cache.join(format!("models--{}--{}", self.owner, self.name))
    }

    /// The model's files as a folder, fetched where they are not there yet. A hub that does not
    /// answer is done without if the cache has the revision.
    ///
    /// # Errors
    /// If the repository is not there, holds no safetensors, or a file is not what the hub says.
    pub fn fetch(&self, access: &Access, event: &mut dyn FnMut(Event)) -> Result<PathBuf> {
        let place = format!("{}/{}", self.owner, self.name);
        let found = match access.is_offline {
            true => Err(Error::new("HF_HUB_OFFLINE is set")),
            false => listed(self, access),
        };
        let error = match found {
            Ok(listing) => {
                return all_files(self, &listing, access, event).map_err(|error| error.at(place));
            }
            Err(error) => error,
        };
        let Some(snapshot) = self.cached(access) else {
            let hint =
                format!("revision {} is not in {} either", self.revision, access.cache.display());
            return Err(error.at(place).with_hint(hint));
        };
        event(Event::Status(&format!("{place} from the cache: {error}")));
        Ok(snapshot)
    }

    /// What the cache has of the revision.
    fn cached(&self, access: &Access) -> Option<PathBuf> {
        let folder = self.folder(access);
        let commit = fs::read_to_string(folder.join("refs").join(&self.revision));
        let commit = commit.unwrap_or_else(|_| self.revision.clone());
        let is_name =
            Path::new(commit.trim()).components().eq([Component::Normal(commit.trim().as_ref())]);
        let snapshot = folder.join("snapshots").join(commit.trim());
        (is_name && snapshot.is_dir()).then_some(snapshot)
    }
}

/// A commit, and the files of its root.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// Whether a file is one that a conversion reads.
fn is_wanted(name: &str) -> bool {
    const NAMES: [&str; 5] = [
        "config.json",
        "generation_config.json",
        "merges.txt",
        "vocab.json",
        "chat_template.jinja",
    ];
    const STARTS: [&str; 3] = ["tokenizer", "special_tokens_map", "added_tokens"];
    let is_text = name.ends_with(".json") || name.ends_with(".model");
    let is_weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    is_weights
        || NAMES.contains(&name)
        || is_text && STARTS.iter().any(|start| name.starts_with(start))
}

fn all_files(
    repository: &Repository,
    listing: &Listing,
    access: &Access,
    event: &mut dyn FnMut(Event),
) -> Result<PathBuf> {
    let is_file = |name: &&String| {
        is_wanted(name) && Path::new(name).components().eq([Component::Normal(name.as_ref())])
    };
    let mut files: Vec<&String> = listing.files.iter().filter(is_file).collect();
    if !files.iter().any(|name| name.ends_with(".safetensors")) {
        return Err(Error::new("the repository has no safetensors files")
            .with_hint("a GGUF file is converted when it is given by its path"));
    }
    // The small ones first: what is refused for its numbers is refused early.
    files.sort_by_key(|name| (name.ends_with(".safetensors"), *name));
    let folder = repository.folder(access);
    let snapshot = folder.join("snapshots").join(&listing.commit);
    fs::create_dir_all(&snapshot).at(snapshot.display())?;
    for name in files {
        let target = snapshot.join(name);
        if !target.exists() {
            let blob = fetched(repository, (&listing.commit, name), access, event)?;
            link(&blob, &target)?;
        }
    }
    if repository.revision != listing.commit {
        let reference = folder.join("refs").join(&repository.revision);
        let parent = reference.parent().expect("it lies in refs");
        fs::create_dir_all(parent).at(parent.display())?;
        fs::write(&reference, &listing.commit).at(reference.display())?;
    }
    Ok(snapshot)
}

/// Puts a blob under its name: as a link where there are links.
fn link(blob: &Path, target: &Path) -> Result<()> {
    // A link to a blob that went away is in the way.
    let _ = fs::remove_file(target);
    #[cfg(unix)]
    {
        let name = blob.file_name().expect("a blob has a name");
        let relative = Path::new("../../blobs").join(name);
        std::os::unix::fs::symlink(relative, target).at(target.display())
    }
    #[cfg(not(unix))]
    {
        fs::rename(blob, target).at(target.display())
    }
}

#[cfg(not(feature = "hub"))]
fn listed(_: &Repository, _: &Access) -> Result<Listing> {
    bail!("this program was built without access to the hub")
}

#[cfg(not(feature = "hub"))]
fn fetched(
    _: &Repository,
    _: (&str, &str),
    _: &Access,
    _: &mut dyn FnMut(Event),
) -> Result<PathBuf> {
    bail!("this program was built without access to the hub")
}

#[cfg(feature = "hub")]
use super::hub::{fetched, listed};
