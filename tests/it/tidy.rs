//! The style that a machine can check, as tigerbeetle's `tidy.zig` does it. That every type has its
//! page and its recorded row is checked in `formats.rs` and `types.rs`.

use crate::source::{Source, line, sources, words};

const COLUMNS_MAX: usize = 100;
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// Files that a person writes.
const WRITTEN: &[&str] = &[".rs", ".wgsl", ".toml", ".md", ".sh", ".py", ".ci/run"];

/// Of those, the ones with a limit of width; tables in prose may be wide.
const NARROW: &[&str] = &[".rs", ".wgsl", ".toml", ".sh", ".ci/run"];

/// In two parts each, so that this file does not break its own rule.
const UNFINISHED: &[(&str, &str)] =
    &[("FIX", "ME"), ("XX", "X"), ("TO", "DO"), ("to", "do!"), ("unimplemen", "ted!")];

/// Beginnings of paths that only one machine has, in two parts.
const MACHINE_PATHS: &[(&str, &str)] = &[("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/")];

#[test]
fn lines_are_narrow_and_end_clean() {
    check_all(WRITTEN, lines);
}

#[test]
fn files_are_short() {
    check_all(&[".rs", ".wgsl"], file_len);
}

#[test]
fn functions_are_short() {
    check_all(&[".rs", ".wgsl"], function_lens);
}

#[test]
fn nothing_is_left_unfinished() {
    check_all(WRITTEN, unfinished);
}

#[test]
fn no_path_of_a_machine() {
    check_all(WRITTEN, machine_paths);
}

#[test]
fn pages_have_one_title() {
    check_all(&[".md"], titles);
}

#[test]
fn dependencies_have_their_reason() {
    check_all(&["Cargo.toml"], dependencies);
}

/// Watched, not bounded: run with `--nocapture` to see it.
#[expect(clippy::print_stdout, reason = "a count to watch, shown with --nocapture")]
#[test]
fn the_lines_are_counted() {
    for folder in ["src", "shaders", "tests", "formats", "models", "benches"] {
        let files = sources(folder, WRITTEN);
        let lines: usize = files.iter().map(|file| file.raw.lines().count()).sum();
        println!("{folder}: {lines} lines in {} files", files.len());
    }
}

fn check_all(endings: &[&str], check: fn(&Source) -> Vec<String>) {
    let files = sources("", endings);
    assert!(!files.is_empty(), "no file ends in {endings:?}");
    let failures: Vec<String> = files.iter().flat_map(check).collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn lines(source: &Source) -> Vec<String> {
    let path = &source.path;
    let narrow = NARROW.iter().any(|ending| path.ends_with(ending));
    let mut found = Vec::new();
    for (at, line) in source.raw.lines().enumerate() {
        let columns = line.chars().count();
        if narrow && columns > COLUMNS_MAX {
            found.push(format!("{path}:{}: {columns} columns, at most {COLUMNS_MAX}", at + 1));
        }
        if line.ends_with(char::is_whitespace) {
            found.push(format!("{path}:{}: white space at the end", at + 1));
        }
    }
    if !source.raw.ends_with('\n') || source.raw.ends_with("\n\n") {
        found.push(format!("{path}: expected one line end at the end of the file"));
    }
    found
}

fn file_len(source: &Source) -> Vec<String> {
    let lines = source.raw.lines().count();
    let failure = || format!("{}: {lines} lines, at most {FILE_LINES_MAX}", source.path);
    if lines > FILE_LINES_MAX { vec![failure()] } else { Vec::new() }
}

/// From `fn` to its closing brace.
fn function_lens(source: &Source) -> Vec<String> {
    let code = &source.code;
    let mut found = Vec::new();
    for at in words(code, "fn") {
        // A type (`fn(u32)`) has no name; a declaration ends before a body.
        let is_named = code[at + 2..].trim_start().starts_with(|c: char| c.is_alphabetic());
        let Some(end) = body_end(&code[at..]).filter(|_| is_named) else { continue };
        let (first, last) = (line(code, at), line(code, at + end));
        let lines = last - first + 1;
        if lines > FUNCTION_LINES_MAX {
            let path = &source.path;
            found.push(format!("{path}:{first}: {lines} lines, at most {FUNCTION_LINES_MAX}"));
        }
    }
    found
}

/// Where the body of the function that `code` starts with closes, if it has one.
fn body_end(code: &str) -> Option<usize> {
    let (mut braces, mut brackets) = (0, 0);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 && brackets == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
        if braces < 0 || brackets < 0 {
            return None;
        }
    }
    None
}

fn unfinished(source: &Source) -> Vec<String> {
    any_of(source, UNFINISHED, |text, word| words(text, word).collect())
}

fn machine_paths(source: &Source) -> Vec<String> {
    any_of(source, MACHINE_PATHS, |text, path| {
        // A folder of that name inside a URL or the repository is no path of a machine.
        let starts_here = |at: &usize| {
            !text[..*at].ends_with(|c: char| c.is_alphanumeric() || "._-~}".contains(c))
        };
        text.match_indices(path).map(|(at, _)| at).filter(starts_here).collect()
    })
}

fn any_of(
    source: &Source,
    words: &[(&str, &str)],
    find: impl Fn(&str, &str) -> Vec<usize>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (start, end) in words {
        let word = format!("{start}{end}");
        for at in find(&source.raw, &word) {
            found.push(format!("{}:{}: `{word}`", source.path, line(&source.raw, at)));
        }
    }
    found
}

fn titles(source: &Source) -> Vec<String> {
    let mut fenced = false;
    let mut titles = 0;
    for line in source.raw.lines() {
        fenced ^= line.trim_start().starts_with("```");
        titles += usize::from(!fenced && line.starts_with("# "));
    }
    let failure = || format!("{}: {titles} titles, expected one", source.path);
    if titles == 1 { Vec::new() } else { vec![failure()] }
}

/// A comment stands above each dependency, or above a run of them that belong together.
fn dependencies(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let (mut inside, mut has_reason) = (false, false);
    for (at, line) in source.raw.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.trim_matches(['[', ']']).ends_with("dependencies");
            has_reason = false;
        } else if line.starts_with('#') {
            has_reason = true;
        } else if line.is_empty() {
            has_reason = false;
        } else if inside && line.contains('=') && !has_reason {
            found.push(format!("{}:{}: a dependency without its reason", source.path, at + 1));
        }
    }
    found
}

#[test]
fn planted_faults_are_found() {
    type Check = fn(&Source) -> Vec<String>;
    let check = |check: Check, path: &str, raw: &str, expected: &[&str]| {
        let found = check(&Source::new(path, raw));
        assert_eq!(found, expected, "{path}: {raw}");
    };
    let wide = format!("{}\n", "x".repeat(101));
    check(lines, "a.rs", &wide, &["a.rs:1: 101 columns, at most 100"]);
    check(lines, "a.md", &wide, &[]);
    check(lines, "a.md", "a\nb \n", &["a.md:2: white space at the end"]);
    check(lines, "a.rs", "a", &["a.rs: expected one line end at the end of the file"]);

    check(file_len, "a.rs", &"\n".repeat(601), &["a.rs: 601 lines, at most 600"]);
    check(file_len, "a.rs", &"\n".repeat(600), &[]);

    let function = |lines: usize| format!("\nfn f(a: [u8; 2]) {{{}}}\n", "\n".repeat(lines - 1));
    check(function_lens, "a.rs", &function(71), &["a.rs:2: 71 lines, at most 70"]);
    check(function_lens, "a.rs", &function(70), &[]);
    let declared = format!("fn f();\n{}fn g() {{ \"}}\" }}", "\n".repeat(80));
    check(function_lens, "a.rs", &declared, &[]);

    for (start, end) in UNFINISHED {
        let word = format!("{start}{end}");
        check(unfinished, "a.rs", &format!("\n// {word}: x"), &[&format!("a.rs:2: `{word}`")]);
        check(unfinished, "a.rs", &format!("a{word}"), &[]);
    }
    for (start, end) in MACHINE_PATHS {
        let path = format!("{start}{end}");
        check(machine_paths, "a.md", &format!("\"{path}x\""), &[&format!("a.md:1: `{path}`")]);
        check(machine_paths, "a.md", &format!("https://example.org{path}"), &[]);
    }

    check(titles, "a.md", "# A\n```\n# comment\n```\n## B\n", &[]);
    check(titles, "a.md", "# A\n# B\n", &["a.md: 2 titles, expected one"]);
    check(titles, "a.md", "text\n", &["a.md: 0 titles, expected one"]);

    let bare = "[dependencies]\n# Why.\na = 1\nb = 1\n\nc = 1\n[features]\nd = []\n";
    check(dependencies, "Cargo.toml", bare, &["Cargo.toml:6: a dependency without its reason"]);
}
