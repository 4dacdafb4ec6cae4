//! `convert --hf` against a hub of our own on this machine.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use gridmill::file::repository::{Access, Repository};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::cli::{stderr, text};
use crate::folder::Folder;
use crate::models::open;
use crate::scratch::Scratch;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";

/// What the hub has and what it was asked.
#[derive(Default)]
struct State {
    files: HashMap<String, Vec<u8>>,
    /// What is stated of a file in place of the truth.
    checksums: HashMap<String, String>,
    /// Bytes after which the next answers with weights break off.
    breaks: Vec<usize>,
    /// Files, the ranges that were asked for, and whether with the token.
    asked: Vec<(String, Option<usize>, bool)>,
}

struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn new(folder: &Path) -> Server {
        let mut state = State::default();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().to_string();
            state.files.insert(name, fs::read(path).unwrap());
        }
        state.files.insert("README.md".to_string(), b"not wanted".to_vec());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &mut shared.lock().unwrap());
            }
        });
        Server { endpoint, state }
    }

    fn convert(&self, home: &Path, more: &[&str]) -> Output {
        self.convert_with(home, more, &[])
    }

    fn convert_with(&self, home: &Path, more: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", home).env("NO_PROXY", "*");
        command.env("HF_TOKEN", "secret").envs(variables.iter().copied());
        command.args(["convert", "--to", "Q8_0"]).args(more).output().unwrap()
    }

    /// What was asked since the last time, of the weights alone.
    fn asked(&self) -> Vec<Option<usize>> {
        let asked = std::mem::take(&mut self.state.lock().unwrap().asked);
        asked.into_iter().filter(|(name, ..)| name == WEIGHTS).map(|(_, from, _)| from).collect()
    }
}

/// One request, one answer.
fn answer(mut stream: TcpStream, state: &mut State) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    let headers: Vec<String> = lines
        .map(|line| line.unwrap().to_lowercase())
        .take_while(|line| !line.is_empty())
        .collect();
    let words: Vec<&str> = request.split(' ').collect();
    let (method, path) = (words[0], words[1]);
    let has_token = headers.contains(&"authorization: bearer secret".to_string());
    let mut say = |status: &str, headers: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n");
        // Whoever asked may have gone.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    if path.starts_with("/api/models/some/model/revision/") {
        let revision = path.rsplit('/').next().unwrap();
        if !["main", "v1", COMMIT].contains(&revision) {
            return say("404 Not Found", "Content-Length: 0\r\n", b"");
        }
        let names: Vec<_> = state.files.keys().map(|name| json!({"rfilename": name})).collect();
        let body = json!({"sha": COMMIT, "siblings": names}).to_string();
        return say("200 OK", &format!("Content-Length: {}\r\n", body.len()), body.as_bytes());
    }
    let direct = format!("/some/model/resolve/{COMMIT}/");
    let name = path.strip_prefix(&direct).or_else(|| path.strip_prefix("/kept/")).unwrap_or("");
    let Some(bytes) = state.files.get(name) else {
        return say("404 Not Found", "Content-Length: 0\r\n", b"");
    };
    let sha = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let sha = state.checksums.get(name).unwrap_or(&sha);
    let linked = format!("X-Linked-Etag: \"{sha}\"\r\nX-Linked-Size: {}\r\n", bytes.len());
    // Large files are at another host, small ones at another place of this one.
    match (method, name == WEIGHTS, path.starts_with("/kept/")) {
        ("HEAD", true, _) => {
            let elsewhere = "Location: http://localhost:9/elsewhere\r\n";
            return say("302 Found", &format!("{linked}{elsewhere}"), b"");
        }
        ("HEAD", false, false) => {
            return say("307 Temporary Redirect", &format!("Location: /kept/{name}\r\n"), b"");
        }
        ("HEAD", false, true) => {
            let headers = format!("ETag: \"{sha}\"\r\nContent-Length: {}\r\n", bytes.len());
            return say("200 OK", &headers, b"");
        }
        _ => {}
    }
    let range =
        headers.iter().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
    let from: Option<usize> = range.map(|from| from.parse().unwrap());
    state.asked.push((name.to_string(), from, has_token));
    let body = &bytes[from.unwrap_or(0)..];
    let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
    let sent = match name == WEIGHTS && !state.breaks.is_empty() {
        true => state.breaks.remove(0).min(body.len()),
        false => body.len(),
    };
    say(status, &format!("Content-Length: {}\r\n", body.len()), &body[..sent]);
}

fn hub() -> Server {
    let folder = Scratch::new();
    Folder::of("llama", "LlamaForCausalLM", json!({})).write(&folder);
    Server::new(&folder)
}

#[test]
fn a_repository_is_fetched_once_and_found_offline() {
    let (server, folder) = (hub(), Scratch::new());
    let (home, out) = (folder.join("home"), folder.join("out.gguf"));
    let output = server.convert(&home, &["--hf", "some/model", text(&out)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(server.asked(), [None]);
    let repository = home.join("hub/models--some--model");
    let snapshot = repository.join("snapshots").join(COMMIT);
    let mut names: Vec<_> =
        fs::read_dir(&snapshot).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let expected = ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names, expected, "what is not read is not fetched");
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    let blobs = fs::read_dir(repository.join("blobs")).unwrap().count();
    assert_eq!(blobs, 4);
    let first = fs::read(&out).unwrap();
    // Nothing is asked for a second time, by any of the names of the commit.
    for place in ["some/model", "some/model@v1", &format!("some/model@{COMMIT}")] {
        fs::remove_file(&out).unwrap();
        let output = server.convert(&home, &["--hf", place, text(&out)]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(server.asked().is_empty() && fs::read(&out).unwrap() == first);
    }
    // Without the hub: not asked, and not there.
    let cache = home.join("hub");
    for variables in [
        vec![("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:9")],
        vec![("HF_ENDPOINT", "http://127.0.0.1:9")],
        vec![
            ("HF_ENDPOINT", "http://127.0.0.1:9"),
            ("HF_HOME", "/"),
            ("HF_HUB_CACHE", text(&cache)),
        ],
    ] {
        fs::remove_file(&out).unwrap();
        let output = server.convert_with(&home, &["--hf", "some/model", text(&out)], &variables);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains("some/model from the cache"), "{}", stderr(&output));
        assert!(fs::read(&out).unwrap() == first);
    }
    let offline = [("HF_HUB_OFFLINE", "1")];
    let output = server.convert_with(&home, &["--hf", "some/other", text(&out)], &offline);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("some/other: HF_HUB_OFFLINE is set"), "{}", stderr(&output));
    assert!(open(&out).tensors().count() > 10);
}

#[test]
fn interrupted_downloads_go_on() {
    let (server, folder) = (hub(), Scratch::new());
    let (home, out) = (folder.join("home"), folder.join("out.gguf"));
    let args = ["--hf", "some/model@v1", text(&out)];
    // Breaks within a run are bridged, as long as bytes come.
    server.state.lock().unwrap().breaks = vec![1000, 500, 0, 0, 0];
    let output = server.convert(&home, &args);
    assert!(!output.status.success() && !out.exists());
    assert!(stderr(&output).contains("some/model: model.safetensors: "), "{}", stderr(&output));
    assert_eq!(server.asked(), [None, Some(1000), Some(1500), Some(1500), Some(1500)]);
    // The next run begins where the last one stopped.
    let output = server.convert(&home, &args);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(server.asked(), [Some(1500)]);
    let weights = home.join("hub/models--some--model/snapshots").join(COMMIT).join(WEIGHTS);
    assert!(fs::read(weights).unwrap() == server.state.lock().unwrap().files[WEIGHTS]);
}

#[test]
fn files_of_another_checksum_are_not_kept() {
    let (server, folder) = (hub(), Scratch::new());
    let (home, out) = (folder.join("home"), folder.join("out.gguf"));
    let args = ["--hf", "some/model", text(&out)];
    // Git's checksum, as of small files: of the empty one.
    let empty = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";
    for (name, wrong) in [(WEIGHTS, "0".repeat(64)), ("config.json", empty.to_string())] {
        let checksums = HashMap::from([(name.to_string(), wrong.clone())]);
        server.state.lock().unwrap().checksums = checksums;
        let output = server.convert(&home, &args);
        assert!(!output.status.success() && !out.exists());
        let expected = format!("some/model: {name}: has checksum ");
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
        assert!(stderr(&output).contains(&format!("the hub states {wrong}")));
        let blobs = fs::read_dir(home.join("hub/models--some--model/blobs")).unwrap();
        let blobs: Vec<PathBuf> = blobs.map(|entry| entry.unwrap().path()).collect();
        assert!(blobs.iter().all(|path| !text(path).contains(&*wrong)), "{blobs:?}");
        let _ = fs::remove_dir_all(&home);
    }
    // The right one of git is.
    let empty = HashMap::from([("tokenizer_config.json".to_string(), empty.to_string())]);
    let mut state = server.state.lock().unwrap();
    state.files.insert("tokenizer_config.json".to_string(), Vec::new());
    state.checksums = empty;
    drop(state);
    let output = server.convert(&home, &args);
    assert!(!stderr(&output).contains("checksum"), "{}", stderr(&output));
}

#[test]
fn tokens_and_refusals() {
    let (server, folder) = (hub(), Scratch::new());
    let (home, out) = (folder.join("home"), folder.join("out.gguf"));
    let fails = |place: &str, more: &[&str], message: &str| {
        let output = server.convert(&home, &[&["--hf", place, text(&out)], more].concat());
        assert!(!output.status.success());
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    };
    fails("some/model@v2", &[], "404 Not Found");
    fails("some/other", &[], "404 Not Found");
    fails("some", &[], "expected OWNER/NAME or OWNER/NAME@REVISION, found some");
    fails("some/model", &["second.gguf"], "--hf: expected one path, found second.gguf, too");
    assert!(server.convert(&home, &["--hf", "some/model", text(&out)]).status.success());
    let asked = std::mem::take(&mut server.state.lock().unwrap().asked);
    assert!(asked.len() == 4 && asked.iter().all(|(.., has_token)| *has_token), "{asked:?}");
    server.state.lock().unwrap().files.retain(|name, _| name != WEIGHTS);
    let other = folder.join("other");
    let output = server.convert(&other, &["--hf", "some/model", text(&out)]);
    assert!(stderr(&output).contains("the repository has no safetensors files"));
}

#[test]
fn what_the_variables_say() {
    let folder = Scratch::new();
    folder.file("token", b" kept\n");
    let home = text(&folder).to_string();
    let check = |variables: &[(&str, &str)], cache: Option<&str>, token: Option<&str>| {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name);
        let found = Access::new(|name| find(name).map(|(_, value)| value.into())).ok();
        let cache = cache.map(PathBuf::from);
        assert_eq!(found.as_ref().map(|access| access.cache.clone()), cache, "{variables:?}");
        let found = found.and_then(|access| access.token);
        assert_eq!(found.as_deref(), token, "{variables:?}");
    };
    check(&[], None, None);
    check(&[("HOME", "/h")], Some("/h/.cache/huggingface/hub"), None);
    check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")], Some("/c/huggingface/hub"), None);
    let hub = format!("{home}/hub");
    check(&[("HOME", "/h"), ("HF_HOME", &home)], Some(&hub), Some("kept"));
    check(&[("HF_HOME", &home), ("HF_TOKEN", "given")], Some(&hub), Some("given"));
    check(&[("HF_HOME", &home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], Some(&hub), None);
    check(&[("HF_HOME", &home), ("HF_HUB_CACHE", "/x")], Some("/x"), Some("kept"));
    for (text, expected) in [
        ("a/b", Some(["a", "b", "main"])),
        ("a/b@refs/pr/1", Some(["a", "b", "refs/pr/1"])),
        ("a/b@", None),
        ("a/b@../c", None),
        ("a/../b", None),
        ("/b", None),
        ("a/b/c", None),
    ] {
        let found = text.parse::<Repository>().ok();
        let found = found.map(|found| [found.owner, found.name, found.revision]);
        assert_eq!(found, expected.map(|words| words.map(str::to_string)), "{text}");
    }
}
