//! Files from the Hugging Face hub over HTTP.
//!
//! The hub's answer for a file names its checksum and its size, and may lead on to another host.
//! What was fetched lies under a name of its own until it is whole and its checksum is right, so
//! that an interrupted download goes on where it was.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::{Client, ClientBuilder, RequestBuilder, Response};
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap, RANGE};
use reqwest::redirect::Policy;
use serde::Deserialize;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::hexadecimal;
use super::download::{Event, Hub};
use super::repository::{Access, Listing, Repository};
use crate::bail;
use crate::error::{At, Error, Result};
use crate::limits;

/// How long the hub may take to answer at all. A reachable one takes a second or two.
const ANSWER: Duration = Duration::from_secs(8);

/// How long a download may stand still.
const STALL: Duration = Duration::from_secs(60);

/// Times that a connection may break without a byte in between.
const FAILURES_MAX: usize = 3;

/// Places that the hub may lead on to, one after the other.
const REDIRECTS_MAX: usize = 5;

/// What the hub states of a file.
struct Stated {
    /// A SHA-256 of large files; of others git's, of a header and the bytes.
    checksum: String,
    bytes: u64,
}

/// The commit of a revision, and its files.
pub(super) fn listed(repository: &Repository, access: &Access) -> Result<Listing> {
    #[derive(Deserialize)]
    struct Answer {
        sha: String,
        siblings: Vec<Sibling>,
    }
    #[derive(Deserialize)]
    struct Sibling {
        rfilename: String,
    }
    let Repository { owner, name, revision } = repository;
    let revision = revision.replace('/', "%2F");
    let url = format!("{}/api/models/{owner}/{name}/revision/{revision}", access.endpoint);
    let response =
        send(allowed(client(Policy::limited(REDIRECTS_MAX))?.get(&url), access).timeout(ANSWER))?;
    let mut text = Vec::new();
    let mut body = response.take(limits::FOLDER_JSON_BYTES_MAX);
    body.read_to_end(&mut text).at(&url)?;
    let answer: Answer =
        serde_json::from_slice(&text).map_err(|error| Error::new(format!("{url}: {error}")))?;
    if !is_hexadecimal(&answer.sha) {
        bail!("{url}: expected the SHA of a commit, found {}", answer.sha);
    }
    let files = answer.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    Ok(Listing { commit: answer.sha, files })
}

/// A file of a commit as a blob of the cache.
pub(super) fn fetched(
    repository: &Repository,
    (commit, file): (&str, &str),
    access: &Access,
    event: &mut dyn FnMut(Event),
) -> Result<PathBuf> {
    let Repository { owner, name, .. } = repository;
    let url = format!("{}/{owner}/{name}/resolve/{commit}/{file}", access.endpoint);
    blob(&url, &repository.folder(access).join("blobs"), file, access, event)
}

/// The demo's file, checked against the SHA-256 that the hub states and moved to `folder`.
pub(super) fn fetch(
    hub: &Hub,
    folder: &Path,
    access: &Access,
    event: &mut dyn FnMut(Event),
) -> Result<PathBuf> {
    let Hub { owner, repository, revision, file } = hub;
    event(Event::Status(&format!("fetching {file} from the hub ({owner}/{repository})")));
    let url = format!("{}/{owner}/{repository}/resolve/{revision}/{file}", access.endpoint);
    let blob = blob(&url, &folder.join(".hub"), file, access, event)?;
    let target = folder.join(file);
    fs::rename(&blob, &target).at(target.display())?;
    Ok(target)
}

/// Fetches what is behind an address to `folder`, under its checksum, unless it is there.
fn blob(
    url: &str,
    folder: &Path,
    file: &str,
    access: &Access,
    event: &mut dyn FnMut(Event),
) -> Result<PathBuf> {
    let stated = stated(url, access)?;
    let path = folder.join(&stated.checksum);
    if fs::metadata(&path).is_ok_and(|found| found.len() == stated.bytes) {
        return Ok(path);
    }
    fs::create_dir_all(folder).at(folder.display())?;
    let part = folder.join(format!("{}.incomplete", stated.checksum));
    event(Event::Status(&format!("fetching {file}")));
    let mut failures = 0;
    loop {
        let before = fs::metadata(&part).map_or(0, |found| found.len());
        match more(url, &part, &stated, access, event) {
            Ok(()) => break,
            Err(error) => {
                let after = fs::metadata(&part).map_or(0, |found| found.len());
                failures = if after > before { 0 } else { failures + 1 };
                if failures == FAILURES_MAX {
                    return Err(error.at(file));
                }
            }
        }
    }
    event(Event::Status(&format!("checking {file}")));
    let found = checksum(&part, &stated)?;
    if found != stated.checksum {
        let _ = fs::remove_file(&part);
        bail!("{file}: has checksum {found}, but the hub states {}", stated.checksum);
    }
    fs::rename(&part, &path).at(path.display())?;
    Ok(path)
}

/// To other places of the same host, as small files and renamed repositories have them.
fn within_host() -> Policy {
    Policy::custom(|attempt| {
        let host = attempt.previous().first().and_then(|url| url.host_str());
        let stays = host == attempt.url().host_str() && attempt.previous().len() <= REDIRECTS_MAX;
        if stays { attempt.follow() } else { attempt.stop() }
    })
}

/// What the hub itself says of a file, before it leads on to another host.
fn stated(url: &str, access: &Access) -> Result<Stated> {
    let request = allowed(client(within_host())?.head(url), access);
    let response = send(request.timeout(ANSWER))?;
    let headers = response.headers();
    let text = |name: &str| header(headers, name);
    let etag = text("x-linked-etag").or_else(|| text(ETAG.as_str())).unwrap_or_default();
    let checksum = etag.trim_start_matches("W/").trim_matches('"').to_string();
    let bytes = text("x-linked-size").or_else(|| text(CONTENT_LENGTH.as_str()));
    let bytes = bytes.and_then(|text| text.parse().ok());
    match bytes {
        Some(bytes) if is_hexadecimal(&checksum) => Ok(Stated { checksum, bytes }),
        _ => bail!("{url}: expected a checksum and a size, found `{etag}` and {bytes:?}"),
    }
}

/// Fetches what is missing of a file.
fn more(
    url: &str,
    part: &Path,
    stated: &Stated,
    access: &Access,
    event: &mut dyn FnMut(Event),
) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(part).at(part.display())?;
    let mut done = file.metadata().at(part.display())?.len();
    if done > stated.bytes {
        restart(&file, part)?;
        done = 0;
    }
    if done == stated.bytes {
        return Ok(());
    }
    let mut request = allowed(client(Policy::limited(REDIRECTS_MAX))?.get(url), access);
    if done > 0 {
        request = request.header(RANGE, format!("bytes={done}-"));
    }
    let mut response = send(request)?;
    if done > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
        restart(&file, part)?;
        done = 0;
    }
    let mut piece = vec![0; 1 << 20];
    while done < stated.bytes {
        let count = response.read(&mut piece).at(url)?;
        if count == 0 {
            bail!("{url}: ended after {done} of {} bytes", stated.bytes);
        }
        // The answer may be longer than what was stated: what is written stays bounded.
        let count = count.min(usize::try_from(stated.bytes - done).unwrap_or(usize::MAX));
        file.write_all(&piece[..count]).at(part.display())?;
        done += count as u64;
        event(Event::Progress { done, total: stated.bytes });
    }
    file.sync_all().at(part.display())
}

fn restart(file: &File, part: &Path) -> Result<()> {
    file.set_len(0).at(part.display())
}

/// Of a file, in the kind that the stated one has.
fn checksum(path: &Path, stated: &Stated) -> Result<String> {
    let (mut large, mut git) = (Sha256::new(), Sha1::new());
    git.update(format!("blob {}\0", stated.bytes));
    let is_large = stated.checksum.len() == 64;
    let mut file = File::open(path).at(path.display())?;
    let mut piece = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut piece).at(path.display())?;
        if count == 0 {
            break;
        }
        match is_large {
            true => large.update(&piece[..count]),
            false => git.update(&piece[..count]),
        }
    }
    Ok(if is_large { hexadecimal(&large.finalize()) } else { hexadecimal(&git.finalize()) })
}

/// SHA-1 or SHA-256, in lower-case hexadecimal.
fn is_hexadecimal(text: &str) -> bool {
    [40, 64].contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

fn client(redirects: Policy) -> Result<Client> {
    let builder = ClientBuilder::new()
        .connect_timeout(ANSWER)
        // Of each read.
        .timeout(STALL)
        .redirect(redirects);
    builder.build().map_err(|error| Error::new(error.to_string()))
}

/// With a token, if there is one; it is not sent on to other hosts.
fn allowed(request: RequestBuilder, access: &Access) -> RequestBuilder {
    match &access.token {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}

fn send(request: RequestBuilder) -> Result<Response> {
    let response = request.send().map_err(|error| Error::new(without_url(error)))?;
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let error = Error::new(format!("{}: {status}", response.url()));
        let is_closed = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
        return Err(match is_closed {
            true => error.with_hint("HF_TOKEN opens what is not open to everybody"),
            false => error,
        });
    }
    Ok(response)
}

/// The innermost reason: the outer ones repeat the address.
fn without_url(error: reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = &error;
    while let Some(inner) = source.source() {
        source = inner;
    }
    source.to_string()
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_string())
}
