//! The project's own files, for the tests that hold its rules against them.

use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A file of the project.
pub(crate) struct Source {
    /// Relative to the root, with forward slashes.
    pub(crate) path: String,
    /// As it stands on disk.
    pub(crate) raw: String,
    /// Comments blanked, line for line.
    pub(crate) text: String,
    /// Comments, strings and characters blanked, line for line.
    pub(crate) code: String,
}

impl Source {
    /// A file of this name and text, be it on disk or not.
    pub(crate) fn new(path: &str, raw: &str) -> Source {
        let (text, code) = blank(raw);
        Source { path: path.into(), raw: raw.into(), text, code }
    }
}

/// Every file below `folder` (the root, if empty) whose name ends like one of `endings`, in order.
/// Build outputs, data and hidden folders other than `.ci` are left out.
pub(crate) fn sources(folder: &str, endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    visit(folder, &mut |path| {
        if endings.iter().any(|ending| path.ends_with(ending)) {
            let raw = fs::read_to_string(Path::new(ROOT).join(path));
            let raw = raw.unwrap_or_else(|error| panic!("{path}: {error}"));
            found.push(Source::new(path, &raw));
        }
    });
    found
}

fn visit(folder: &str, each: &mut dyn FnMut(&str)) {
    let Ok(entries) = fs::read_dir(Path::new(ROOT).join(folder)) else { return };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in names {
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if !Path::new(ROOT).join(&path).is_dir() {
            each(&path);
        } else if (!name.starts_with('.') || name == ".ci")
            && !["target", "tests/data", "models/weights"].contains(&path.as_str())
            && path != "tests/fuzz/target"
        {
            visit(&path, each);
        }
    }
}

/// Where `word` stands on its own: no letter, digit or underscore on either side.
pub(crate) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        // A word that ends in a bracket or a colon has its boundary inside.
        let open = word.ends_with(is_part) && after.is_some_and(is_part);
        !before.is_some_and(is_part) && !open
    })
}

/// The number of the line that holds the byte `at`, from 1.
pub(crate) fn line(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

/// The text without comments, and without strings and characters too. What is blanked turns into
/// spaces, so that lines and columns stay.
fn blank(raw: &str) -> (String, String) {
    let (mut text, mut code) = (String::new(), String::new());
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        let comment = comment_len(rest);
        let literal = if comment == 0 { literal_len(rest, &code) } else { 0 };
        let len = comment.max(literal).max(c.len_utf8());
        let (token, tail) = rest.split_at(len);
        let spaces = || token.chars().map(|c| if c == '\n' { '\n' } else { ' ' });
        if comment > 0 {
            text.extend(spaces())
        } else {
            text.push_str(token)
        }
        if comment + literal > 0 {
            code.extend(spaces())
        } else {
            code.push_str(token)
        }
        rest = tail;
    }
    (text, code)
}

/// Bytes of the comment that `rest` starts with, or 0. Block comments nest.
fn comment_len(rest: &str) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if !rest.starts_with("/*") {
        return 0;
    }
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Bytes of the string or character that `rest` starts with, or 0; `before` is the code so far.
fn literal_len(rest: &str, before: &str) -> usize {
    let in_word = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    if rest.starts_with('r') && (!in_word || before.ends_with('b')) {
        let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
        if rest[1 + hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            return rest[open..].find(&close).map_or(rest.len(), |at| open + at + close.len());
        }
    }
    let quote = match rest.chars().next() {
        Some('"') => '"',
        // A lifetime has no closing quote after its first letter.
        Some('\'') if rest[1..].starts_with('\\') => '\'',
        Some('\'') if rest[1..].chars().nth(1) == Some('\'') => '\'',
        _ => return 0,
    };
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !escaped && c == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    rest.len()
}

#[test]
fn comments_and_literals_are_blanked() {
    let check = |raw: &str, text: &str, code: &str| {
        assert_eq!(blank(raw), (text.to_string(), code.to_string()), "{raw}");
    };
    check("a // b\nc", "a     \nc", "a     \nc");
    check("a /* b /* c */ \n */ d", "a              \n    d", "a              \n    d");
    check(r#"f("a\"//", 'x', '\'')"#, r#"f("a\"//", 'x', '\'')"#, "f(       ,    ,     )");
    check("r#\"a\"b\"# + br\"\\\" c", "r#\"a\"b\"# + br\"\\\" c", "         + b     c");
    check("&'a str, 'b'", "&'a str, 'b'", "&'a str,    ");
}

#[test]
fn words_stand_alone() {
    assert_eq!(words("Q4_0 XQ4_0 Q4_0X (Q4_0)", "Q4_0").collect::<Vec<_>>(), [0, 18]);
    assert_eq!(words("println!(print!(", "print!").collect::<Vec<_>>(), [9]);
    assert_eq!(line("a\nb\nc", 4), 3);
}
