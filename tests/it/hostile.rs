//! Files that must be refused, and what is said about them.

use std::fs;
use std::path::Path;

use gridmill::file::{Gguf, Metadata, NewTensor, Source, Value, Writer};
use gridmill::types::raw;

use crate::scratch::{KINDS, Raw, Scratch};

const TRUNCATED: Option<&str> = Some("the download may be incomplete");

/// The bytes must be refused with this message.
#[track_caller]
fn check(raw: &Raw, message: &str) {
    let error = Gguf::parse(&raw.0).expect_err(message);
    assert_eq!(error.to_string(), message);
}

#[track_caller]
fn check_hint(raw: &Raw, message: &str, hint: Option<&str>) {
    let error = Gguf::parse(&raw.0).expect_err(message);
    assert_eq!((error.to_string().as_str(), error.hint()), (message, hint));
}

/// A file with something of everything.
fn small() -> Raw {
    Raw::head(2, 4)
        .text("general.architecture")
        .u32(8)
        .text("llama")
        .entry("general.alignment", 32)
        .text("tokens")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("b")
        .text("sizes")
        .u32(9)
        .u32(5)
        .u64(2)
        .u64(1)
        .tensor("x", &[4, 2], 0, 0)
        .tensor("y", &[3], 24, 32)
        .data(35)
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = small().0;
    let parsed = Gguf::parse(&whole).expect("the whole file is right");
    assert_eq!((parsed.tensors.len(), parsed.metadata.len()), (2, 4));
    for len in 0..whole.len() {
        Gguf::parse(&whole[..len]).expect_err(&format!("cut to {len} bytes"));
    }
    let mut longer = whole.clone();
    longer.extend_from_slice(b"trailing bytes are ignored");
    Gguf::parse(&longer).expect("trailing bytes are ignored");
    // Every byte changed to every value that tends to matter: never a panic.
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, whole[at].wrapping_add(1)] {
            let mut changed = whole.clone();
            changed[at] = value;
            let _ = Gguf::parse(&changed);
        }
    }
}

#[test]
fn headers() {
    let raw = |bytes: &[u8]| Raw(bytes.to_vec());
    check(
        &raw(b"PK\x03\x04...."),
        r#"not a GGUF file: it starts with "PK\x03\x04", expected "GGUF""#,
    );
    check_hint(
        &raw(b"version https://git-lfs.github.com/spec/v1"),
        "not a GGUF file: it starts with \"vers\", expected \"GGUF\"",
        Some("this looks like a Git LFS pointer: fetch the file itself"),
    );
    let message = "header: the file ends at byte 2, but 4 bytes were expected from byte 0";
    check_hint(&raw(b"GG"), message, TRUNCATED);
    let version = |number| raw(b"GGUF").u32(number).u64(0).u64(0);
    check(&version(0), "GGUF version 0 is not supported, expected 2 or 3");
    check(&version(1), "GGUF version 1 is not supported, expected 2 or 3");
    check(&version(4), "GGUF version 4 is not supported, expected 2 or 3");
    check(
        &version(0x0300_0000),
        "the file is big-endian (version 0x3000000), expected little-endian",
    );
    assert_eq!(Gguf::parse(&version(2).0).expect("version 2 is read").version, 2);
    assert_eq!(Gguf::parse(&version(3).0).expect("an empty file is right").version, 3);
    check(
        &Raw::head(u64::MAX, 0),
        "the file declares 18446744073709551615 tensors, expected at most 1048576",
    );
    check(
        &Raw::head(0, 1 << 40),
        "the file declares 1099511627776 metadata entries, expected at most 65536",
    );
}

#[test]
fn entries() {
    let one = || Raw::head(0, 1);
    check(&one().entry("", 1), "metadata entry 0 has an empty key");
    check(&Raw::head(0, 2).entry("a", 1).entry("a", 2), "metadata key `a` occurs twice");
    check(
        &one().u64(1 << 40).bytes(b"x"),
        "metadata entry 0: a string at byte 24 has 1099511627776 bytes, expected at most 16777216",
    );
    check_hint(
        &one().u64(1 << 20).bytes(b"x"),
        "metadata entry 0: the file ends at byte 33, but 1048576 bytes were expected from byte 32",
        TRUNCATED,
    );
    check(
        &one().u64(3).bytes(b"a\xffb").u32(4).u32(1),
        "metadata entry 0: a string is not UTF-8 at byte 33",
    );
    check(&one().text("a").u32(13), "metadata key `a`: unknown value type 13, expected 0 to 12");
    check(
        &one().text("a").u32(7).u8(2),
        "metadata key `a`: a bool is stored as 2, expected 0 or 1",
    );
    let array = |kind, len| one().text("a").u32(9).u32(kind).u64(len);
    check(&array(9, 1), "metadata key `a`: an array of arrays, which GGUF does not allow");
    check(&array(77, 1), "metadata key `a`: unknown element type 77, expected 0 to 12");
    check(
        &array(0, 1 << 32),
        "metadata key `a`: an array of 4294967296 elements, expected at most 16777216",
    );
    check_hint(
        &array(10, 1 << 24),
        "metadata key `a`: the file ends at byte 49, but 134217728 bytes were expected from byte \
         49",
        TRUNCATED,
    );
    check_hint(
        &array(8, 1 << 24),
        "metadata key `a`: an array of 16777216 strings, but the file has 0 bytes left",
        TRUNCATED,
    );
    let aligned = |alignment| one().entry("general.alignment", alignment);
    check(&aligned(0), "`general.alignment` is 0, expected a power of two");
    check(&aligned(48), "`general.alignment` is 48, expected a power of two");
    check(
        &one().text("general.alignment").u32(10).u64(32),
        "`general.alignment` is u64, expected u32",
    );
}

#[test]
fn tensors() {
    let one = || Raw::head(1, 0);
    let shaped = |shape: &[u64]| one().tensor("x", shape, 0, 0).data(64);
    check_hint(&shaped(&[16, 2]), "tensor `x` ends at byte 224, but the file has 160", TRUNCATED);
    check(
        &shaped(&[1 << 30, 1 << 30]),
        "tensor `x`: shape [1073741824, 1073741824] has 1152921504606846976 values, expected at \
         most 17592186044416",
    );
    check(
        &shaped(&[u64::MAX, u64::MAX, u64::MAX]),
        "tensor `x`: shape [18446744073709551615, 18446744073709551615, 18446744073709551615] has \
         more than 2^128 values, expected at most 17592186044416",
    );
    // A zero cannot hide the other sizes.
    Gguf::parse(&shaped(&[1 << 60, 0]).0).expect_err("2^60 columns");
    Gguf::parse(&shaped(&[0, 5]).0).expect("no values are no error, as in llama.cpp");
    check(&shaped(&[1; 5]), "tensor `x`: 5 dimensions, expected at most 4");
    check(
        &one().tensor("x", &[33], 8, 0).data(64),
        "tensor `x`: rows of 33 values, expected a multiple of 32 for type Q8_0",
    );
    let name = "n".repeat(64);
    check(
        &one().tensor(&name, &[1], 0, 0).data(4),
        &format!("tensor 0: the name `{}...` has 64 bytes, expected at most 63", &name[1..]),
    );
    check(
        &Raw::head(2, 0).tensor("x", &[1], 0, 0).tensor("x", &[1], 0, 32).data(64),
        "tensor `x` occurs twice",
    );
    let fork = "tensor `x` before it may have been written by a fork with another layout for its \
                type number (here that is F16)";
    check_hint(
        &Raw::head(2, 0).tensor("x", &[1], 1, 0).tensor("y", &[1], 0, 64).data(128),
        "tensor `y` starts at byte 64 of the data, expected 32",
        Some(fork),
    );
    Gguf::parse(&one().tensor("x", &[], 0, 0).data(4).0).expect("no dimensions: one value");
}

#[test]
fn unknown_type_numbers() {
    let error = |kind| {
        let raw = Raw::head(1, 0).tensor("x", &[32, 3], kind, 0).data(64);
        let error = Gguf::parse(&raw.0).expect_err("an unknown type");
        let expected = format!("tensor `x`: unknown type number {kind}, of shape [32, 3]");
        assert_eq!(error.to_string(), expected);
        error.hint().expect("advice").to_string()
    };
    // The next one tells how many bytes it has.
    let two = |next| {
        let raw = Raw::head(2, 0).tensor("x", &[32, 3], 99, 0).tensor("y", &[1], 0, next).data(256);
        Gguf::parse(&raw.0).expect_err("an unknown type").to_string()
    };
    let expected = "tensor `x`: unknown type number 99, of shape [32, 3]";
    assert_eq!(two(160), format!("{expected}, in 160 bytes"));
    assert!(error(4).starts_with("number 4 was Q4_2 and has been removed"), "{}", error(4));
    assert!(error(31).starts_with("number 31 was Q4_0_4_4"), "{}", error(31));
    assert!(error(43).starts_with("the highest number known here is 42"), "{}", error(43));
    assert!(error(137).contains("belongs to a fork"), "{}", error(137));
    assert!(error(0x4851_ffff).contains("newer version of this program"));
    assert!(error(u32::MAX).contains("private types of its own"));
}

#[test]
fn paths_that_are_no_model() {
    let folder = Scratch::new();
    let check = |path: &Path, end: &str| {
        let error = Source::open(path).err().expect(end).to_string();
        assert_eq!(error, format!("{}: {end}", path.display()));
    };
    check(&folder.file("empty.gguf", b""), "the file is empty");
    check(&folder, "is a folder, expected a file");
    check(&folder.join("none.gguf"), "No such file or directory (os error 2)");
    let short = folder.file("short.gguf", b"GGUF\x03\0");
    check(&short, "header: the file ends at byte 6, but 4 bytes were expected from byte 4");
}

/// One shard: `split.no`, `split.count`, total, and one tensor.
fn shard(number: u32, count: u32, total: u32, tensor: &str) -> Raw {
    Raw::head(1, 3)
        .entry("split.no", number)
        .entry("split.count", count)
        .entry("split.tensors.count", total)
        .tensor(tensor, &[1], 0, 0)
        .data(4)
}

#[test]
fn shards() {
    let name = |number: u32| format!("m-{number:05}-of-00003.gguf");
    // Writes three shards, the given one replaced, and opens the second.
    let open = |replaced: u32, raw: Option<Raw>| {
        let folder = Scratch::new();
        for number in 1..=3 {
            let raw = if number == replaced { raw.clone() } else { None };
            let right = shard(number - 1, 3, 3, &format!("t{number}"));
            if number != replaced || raw.is_some() {
                folder.file(&name(number), &raw.unwrap_or(right).0);
            }
        }
        let opened = Source::open_with(folder.join(name(2)), KINDS);
        let prefix = format!("{}/", folder.display());
        (opened.map_err(|error| error.to_string().replace(&prefix, "")), folder)
    };
    let (source, folder) = open(0, None);
    let source = source.expect("three right shards");
    let names: Vec<&str> = source.tensors().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["t1", "t2", "t3"]);
    assert_eq!(source.shard_paths().next(), Some(folder.join(name(1)).as_path()));
    assert_eq!(source.raw_tensors().map(|raw| raw.shard).collect::<Vec<_>>(), [0, 1, 2]);

    let fails = |replaced, raw, message: &str| {
        assert_eq!(open(replaced, raw).0.err().expect(message), message);
    };
    fails(3, None, "m-00003-of-00003.gguf: shard 3 of 3 is missing");
    fails(3, Some(shard(1, 3, 3, "t3")), "m-00003-of-00003.gguf: `split.no` is 1, expected 2");
    fails(
        1,
        Some(shard(0, 2, 3, "t1")),
        "m-00001-of-00003.gguf: `split.count` is 2, but m-00002-of-00003.gguf says 3",
    );
    fails(
        1,
        Some(shard(0, 3, 9, "t1")),
        "m-00001-of-00003.gguf: `split.tensors.count` is 9, but the shards have 3 together",
    );
    fails(3, Some(shard(2, 3, 3, "t1")), "m-00003-of-00003.gguf: tensor `t1` occurs twice");
    fails(
        2,
        Some(shard(7, 3, 3, "t2")),
        "m-00002-of-00003.gguf: shard 8 of 3, but its name does not end in `-00008-of-00003.gguf`",
    );
    fails(
        2,
        Some(shard(1, 4_000_000, 3, "t2")),
        "m-00002-of-00003.gguf: `split.count` is 4000000, expected at most 99999",
    );
}

fn one_tensor(len: u64) -> Vec<NewTensor> {
    vec![NewTensor::new("x", &[len], raw::I8).expect("a right tensor")]
}

#[test]
fn targets_that_cannot_be_written() {
    let folder = Scratch::new();
    let source = folder.file("source.gguf", b"source");
    let fails = |target: &Path, message: &str| {
        let sources = [source.clone()];
        let made = Writer::create(target, &sources, &Metadata::new(), one_tensor(4));
        let prefix = format!("{}/", folder.display());
        let error = made.err().expect(message).to_string().replace(&prefix, "");
        assert_eq!(error, message);
    };
    fails(&source, "source.gguf: is the same file as the source source.gguf");
    fails(
        &folder.join("../").join(folder.file_name().expect("a name")).join("source.gguf"),
        &format!(
            "../{}/source.gguf: is the same file as the source source.gguf",
            folder.file_name().expect("a name").display()
        ),
    );
    fs::hard_link(&source, folder.join("hard.gguf")).expect("hard links work here");
    fails(&folder.join("hard.gguf"), "hard.gguf: is the same file as the source source.gguf");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&source, folder.join("soft.gguf")).expect("links work here");
        fails(&folder.join("soft.gguf"), "soft.gguf: is the same file as the source source.gguf");
        fails(Path::new("/dev/null"), "/dev/null: exists and is not a regular file");
    }
    fs::create_dir(folder.join("folder")).expect("the folder is new");
    fails(&folder.join("folder"), "folder: is a folder, expected the name of a file");
    let missing = folder.join("missing").join("out.gguf");
    let inner = folder.join("missing").display().to_string();
    let inner = inner.replace(&format!("{}/", folder.display()), "");
    fails(&missing, &format!("missing/out.gguf: the folder `{inner}` does not exist"));
    fails(Path::new("/"), "/: is not the name of a file");
    assert_eq!(fs::read(&source).expect("the source is there"), b"source");
    assert!(!folder.list().iter().any(|name| name.ends_with(".tmp")), "{:?}", folder.list());
}

#[test]
fn a_file_appears_only_when_it_is_whole() {
    let folder = Scratch::new();
    let target = folder.file("out.gguf", b"before");
    let create = || Writer::create(&target, &[], &Metadata::new(), one_tensor(4));
    let mut dropped = create().expect("a right target");
    dropped.write(&[1, 2]).expect("two of four bytes");
    assert_eq!(folder.list().len(), 2, "{:?}", folder.list());
    drop(dropped);
    assert_eq!(folder.list(), ["out.gguf"]);

    let mut short = create().expect("a right target");
    short.write(&[1, 2]).expect("two of four bytes");
    let error = short.finish().expect_err("two bytes are missing").to_string();
    assert!(error.ends_with("out.gguf: tensor `x` has 2 bytes written, expected 4"), "{error}");

    let mut long = create().expect("a right target");
    let error = long.write(&[0; 5]).expect_err("one byte too many").to_string();
    assert!(error.ends_with("out.gguf: 1 bytes more than its tensors have"), "{error}");
    drop(long);
    assert_eq!(folder.list(), ["out.gguf"]);
    assert_eq!(fs::read(&target).expect("the old file"), b"before");

    let mut whole = create().expect("a right target");
    whole.write(&[1, 2]).expect("the first half");
    whole.write(&[3, 4]).expect("the second half");
    whole.finish().expect("all four bytes");
    assert_eq!(folder.list(), ["out.gguf"]);
    let written = fs::read(&target).expect("the new file");
    assert_eq!(written.len() % 32, 0);
    Gguf::parse(&written).expect("what is written can be read");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_and_a_size_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let folder = Scratch::new();
    // More than any disk: the space is asked for before anything is written.
    let huge =
        Writer::create(&folder.join("huge.gguf"), &[], &Metadata::new(), one_tensor(1 << 44));
    if let Some(error) = huge.err() {
        let error = error.to_string();
        let full = error.contains("no space left on the device, 17592186044");
        let large = error.contains("the system does not allow a file of 17592186044");
        assert!(full || large, "{error}");
    }
    assert_eq!(folder.list(), [""; 0]);
    // Other tests write less than this limit at the same time.
    let before = getrlimit(Resource::Fsize);
    let limit = Rlimit { current: Some(1 << 32), maximum: before.maximum };
    setrlimit(Resource::Fsize, limit).expect("a lower limit is allowed");
    let tensors = one_tensor(1 << 33);
    let error = Writer::create(&folder.join("big.gguf"), &[], &Metadata::new(), tensors);
    let error = error.err().expect("above the limit");
    setrlimit(Resource::Fsize, before).expect("the old limit is allowed");
    let end = "big.gguf: 8589934656 bytes needed, but files are limited to 4294967296";
    assert!(error.to_string().ends_with(end), "{error}");
    assert_eq!(error.hint(), Some("see `ulimit -f`"));
}

#[test]
fn tensors_that_would_not_be_readable() {
    let fails = |name: &str, shape: &[u64], kind, message: &str| {
        let error = NewTensor::new(name, shape, kind).expect_err(message);
        assert_eq!(error.to_string(), message);
    };
    let name = "n".repeat(64);
    fails("", &[1], raw::I8, "tensor ``: the name has 0 bytes, expected 1 to 63");
    fails(
        &name,
        &[1],
        raw::I8,
        &format!("tensor `{name}`: the name has 64 bytes, expected 1 to 63"),
    );
    fails("x", &[1; 5], raw::I8, "tensor `x`: 5 dimensions, expected at most 4");
    let q8 = raw::find(8, &[]).expect("a stock type");
    fails("x", &[40], q8, "tensor `x`: rows of 40 values, expected a multiple of 32 for type Q8_0");
    let folder = Scratch::new();
    let twice = [one_tensor(1), one_tensor(2)].concat();
    let made = Writer::create(&folder.join("out.gguf"), &[], &Metadata::new(), twice);
    assert!(made.err().expect("twice").to_string().ends_with("tensor `x` is written twice"));
    let mut metadata = Metadata::new();
    metadata.set("", Value::U8(1));
    let made = Writer::create(&folder.join("out.gguf"), &[], &metadata, one_tensor(1));
    assert!(made.err().expect("empty").to_string().ends_with("a metadata key is empty"));
    assert_eq!(folder.list(), [""; 0]);
}
