//! Who may use whom, and what may stand where: `ARCHITECTURE.md` against the code.

use std::fs;

use gridmill::types::TYPES;

use crate::source::{Source, line, sources, words};

/// Every module, and the modules it may use besides itself, `error` and `limits`.
const LAYERS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("limits", &[]),
    ("simd", &[]),
    ("types", &["simd"]),
    ("transform", &["types"]),
    ("plan", &["types"]),
    ("backend", &["plan", "types", "transform", "simd"]),
    ("file", &["types", "transform"]),
    ("text", &[]),
    ("model", &["plan", "types", "file"]),
    ("run", &["simd", "types", "transform", "plan", "backend", "file", "text", "model"]),
    ("quant", &["simd", "types", "transform"]),
    ("convert", &["quant", "run", "model", "file", "types", "transform"]),
    ("serve", &["run", "text"]),
    ("cli", ALL),
    ("main", ALL),
    ("lib", ALL),
];

const ALL: &[&str] = &[
    "simd",
    "types",
    "transform",
    "plan",
    "backend",
    "file",
    "text",
    "model",
    "run",
    "quant",
    "convert",
    "serve",
    "cli",
];

/// What the crate's root offers besides modules.
const ROOT_NAMES: &[&str] = &["Error", "Result", "bail"];

/// Where there may be `unsafe`.
const UNSAFE: &[&str] =
    &["src/simd/", "src/types/", "src/backend/cpu/", "src/backend/gpu/device", "src/file/map"];

/// Lines above an `unsafe` block in which its reason may begin.
const SAFETY_LINES: usize = 6;

/// Where the outside world may be touched.
const RIM: &[&str] = &["src/cli/", "src/serve/", "src/main.rs"];

const RIM_WORDS: &[&str] = &[
    "println!",
    "eprintln!",
    "print!",
    "eprint!",
    "dbg!",
    "stdout()",
    "stderr()",
    "std::env",
    "env::",
    "process::exit",
    "process::abort",
];

/// Where a quantised type may be named.
const TYPE_FOLDERS: &[&str] = &["src/types/", "src/quant/", "shaders/types/", "formats/", "tests/"];

/// Types that do not quantise, and may be named anywhere.
const PLAIN_TYPES: &[&str] = &["F32", "F16", "BF16"];

/// Beginnings of the names of our own types.
const TYPE_PREFIXES: &[&str] = &["HIGGS_", "VPTQ_", "RESQ_"];

/// Where an architecture may be named.
const ARCHITECTURE_FOLDERS: &[&str] = &["models/", "tests/", "src/text/"];

#[test]
fn modules_use_what_the_table_allows() {
    let mut failures = Vec::new();
    for source in sources("src", &[".rs"]) {
        for (line, used) in uses(&source) {
            if !allowed(&source.path, &used) {
                failures.push(format!("{}:{line}: may not use `{used}`", source.path));
            }
        }
    }
    report(failures);
}

#[test]
fn only_the_rim_touches_the_world() {
    check_all("src", touches_the_world);
}

#[test]
fn unsafe_code_is_in_its_places_and_says_why() {
    check_all("src", unsafe_code);
}

#[test]
fn types_are_named_in_their_places() {
    check_all("", type_names);
}

#[test]
fn architectures_are_named_in_their_places() {
    let names = architectures();
    assert!(names.len() >= 4, "found only {names:?} in models/");
    check_all("", |source| architecture_names(source, &names));
}

fn check_all(folder: &str, check: impl Fn(&Source) -> Vec<String>) {
    report(sources(folder, &[".rs", ".wgsl"]).iter().flat_map(check).collect());
}

fn report(failures: Vec<String>) {
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn stands_in(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path.starts_with(place))
}

fn failures(source: &Source, places: Vec<(usize, String)>) -> Vec<String> {
    places.iter().map(|(line, what)| format!("{}:{line}: {what}", source.path)).collect()
}

/// The module a file belongs to: `src/text/bpe.rs` is in `text`.
fn module(path: &str) -> &str {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    path.split('/').next().unwrap_or_default()
}

fn allowed(path: &str, used: &str) -> bool {
    let own = module(path);
    used == own
        || ["error", "limits"].contains(&used)
        || ROOT_NAMES.contains(&used)
        || LAYERS.iter().any(|(name, may)| *name == own && may.contains(&used))
}

/// The names a file takes from the crate's root, with their lines: `crate::x`, `crate::{x, y}`,
/// and a chain of `super::` that reaches the root.
fn uses(source: &Source) -> Vec<(usize, String)> {
    let code = &source.code;
    let folders = source.path.matches('/').count() - 1;
    let depth = folders + usize::from(!source.path.ends_with("/mod.rs"));
    let to_root = "super::".repeat(depth);
    let mut found = Vec::new();
    for start in ["crate::", to_root.as_str()] {
        for at in words(code, start) {
            let longer = code[..at].ends_with("super::") || code[..at].ends_with('$');
            // Inside `mod tests` a chain is one step longer; only known modules count there.
            for name in first_names(&code[at + start.len()..]) {
                let is_module = LAYERS.iter().any(|(module, _)| *module == name);
                if !longer && (start == "crate::" || is_module) {
                    found.push((line(code, at), name));
                }
            }
        }
    }
    found
}

/// The first name of each path in a `use` tree.
fn first_names(tree: &str) -> Vec<String> {
    let name_of = |path: &str| -> String {
        path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = tree.strip_prefix('{') else { return vec![name_of(tree)] };
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                names.push(name_of(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn touches_the_world(source: &Source) -> Vec<String> {
    if stands_in(&source.path, RIM) {
        return Vec::new();
    }
    let found = RIM_WORDS.iter().flat_map(|word| {
        words(&source.code, word)
            .map(move |at| (line(&source.code, at), format!("`{word}` outside the rim")))
    });
    failures(source, found.collect())
}

fn unsafe_code(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.raw.lines().collect();
    let mut found = Vec::new();
    for at in words(&source.code, "unsafe") {
        let number = line(&source.code, at);
        if !stands_in(&source.path, UNSAFE) {
            found.push((number, "`unsafe` outside its places".into()));
        }
        let next = source.code[at + "unsafe".len()..].trim_start();
        let above = &lines[number.saturating_sub(SAFETY_LINES + 1)..number];
        let asks = next.starts_with('{') || next.starts_with("impl");
        if asks && !above.iter().any(|line| line.contains("SAFETY:")) {
            found.push((number, "`unsafe` without a `// SAFETY:` above".into()));
        }
    }
    failures(source, found)
}

fn type_names(source: &Source) -> Vec<String> {
    if stands_in(&source.path, TYPE_FOLDERS) {
        return Vec::new();
    }
    let text = source.raw.to_uppercase();
    let mut found = Vec::new();
    for kind in TYPES.iter().filter(|kind| !PLAIN_TYPES.contains(&kind.name())) {
        let name = kind.name().to_uppercase();
        found.extend(words(&text, &name).map(|at| (line(&text, at), format!("names {name}"))));
    }
    for prefix in TYPE_PREFIXES {
        let places = text.match_indices(prefix);
        found.extend(places.map(|(at, _)| (line(&text, at), format!("names a {prefix} type"))));
    }
    failures(source, found)
}

/// The names in `models/*.toml`.
fn architectures() -> Vec<String> {
    let name_of = |source: &Source| -> String {
        let name = source.raw.lines().find_map(|line| line.strip_prefix("name = \""));
        let name = name.and_then(|rest| rest.split('"').next());
        name.unwrap_or_else(|| panic!("{} has no name", source.path)).into()
    };
    sources("models", &[".toml"]).iter().map(name_of).collect()
}

fn architecture_names(source: &Source, names: &[String]) -> Vec<String> {
    if stands_in(&source.path, ARCHITECTURE_FOLDERS) {
        return Vec::new();
    }
    let text = &source.text;
    let mut found = Vec::new();
    for name in names {
        for at in words(text, name) {
            let number = line(text, at);
            let rest = &text[at + name.len()..];
            // The names of programs, and the line that embeds a description.
            let program = rest.starts_with(".cpp") || rest.starts_with(".c");
            let embeds = source.path == "src/model/arch.rs"
                && text.lines().nth(number - 1).is_some_and(|line| line.contains("include_str!"));
            if !program && !embeds {
                found.push((number, format!("names the architecture {name}")));
            }
        }
    }
    failures(source, found)
}

#[test]
fn every_module_has_its_row() {
    let lib = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    for module in lib.lines().filter_map(|line| line.strip_prefix("pub mod ")) {
        let module = module.trim_end_matches(';');
        assert!(LAYERS.iter().any(|(name, _)| *name == module), "{module} is not in the table");
    }
}

#[test]
fn planted_uses_are_found() {
    let check = |path: &str, raw: &str, expected: &[&str]| {
        let found = uses(&Source::new(path, raw));
        let found: Vec<_> = found.iter().filter(|(_, used)| !allowed(path, used)).collect();
        let found: Vec<_> = found.iter().map(|(line, used)| format!("{line} {used}")).collect();
        assert_eq!(found, expected, "{path}: {raw}");
    };
    check("src/types/a.rs", "use crate::simd::Level;\nuse crate::file::map;", &["2 file"]);
    check("src/text/a.rs", "fn f() -> crate::model::Arch {}", &["1 model"]);
    check("src/plan/a.rs", "use crate::{error::Result, run::{a, b}, types};", &["1 run"]);
    check("src/plan/mod.rs", "use super::backend;", &["1 backend"]);
    check("src/plan/a.rs", "use super::super::{types, model::Arch};", &["1 model"]);
    check("src/backend/cpu/mod.rs", "use super::plan; use super::super::run::a;", &["1 run"]);
    check("src/text/a.rs", "// crate::model\nlet a = \"crate::model\";", &[]);
    check(
        "src/simd/a.rs",
        "use crate::limits; use crate::bail; use crate::nothing;",
        &["1 nothing"],
    );
    check("src/cli/a.rs", "use crate::serve; use crate::types;", &[]);
}

#[test]
fn planted_violations_are_found() {
    type Check = fn(&Source) -> Vec<String>;
    let check = |check: Check, path: &str, raw: &str, expected: &[usize]| {
        let found = check(&Source::new(path, raw));
        let lines = expected.iter().map(|line| format!("{path}:{line}: "));
        assert_eq!(found.len(), expected.len(), "{raw}: {found:?}");
        assert!(found.iter().zip(lines).all(|(f, line)| f.starts_with(&line)), "{found:?}");
    };
    let world: Check = touches_the_world;
    check(world, "src/run/a.rs", "\nprintln!();", &[2]);
    check(world, "src/run/a.rs", "let out = io::stdout().lock();", &[1]);
    check(world, "src/file/a.rs", "env::var(\"HOME\")", &[1]);
    check(world, "src/file/a.rs", "std::process::exit(1)", &[1]);
    check(world, "src/file/a.rs", "std::process::id(); writeln!(f); env!(\"A\"); // dbg!", &[]);
    check(world, "src/cli/a.rs", "println!()", &[]);

    check(unsafe_code, "src/run/a.rs", "// SAFETY: no\nunsafe { f() }", &[2]);
    check(unsafe_code, "src/simd/a.rs", "unsafe { f() }", &[1]);
    check(unsafe_code, "src/simd/a.rs", "unsafe impl Send for A {}", &[1]);
    check(unsafe_code, "src/simd/a.rs", "// SAFETY: checked\nunsafe { f() }", &[]);
    check(unsafe_code, "src/simd/a.rs", "unsafe fn f() {} // unsafe {}", &[]);

    check(type_names, "src/run/a.rs", "if name == \"Q4_0\" {}", &[1]);
    check(type_names, "shaders/matmul.wgsl", "\n// q4_0\n", &[2]);
    check(type_names, "src/convert/a.rs", "\"HIGGS_P2_N256\"", &[1, 1]);
    check(type_names, "src/types/a.rs", "Q4_0", &[]);
    check(type_names, "src/run/a.rs", "F32, Q4_0X", &[]);

    let named: Check = |source| architecture_names(source, &["llama".into(), "qwen2".into()]);
    check(named, "src/run/a.rs", "\nif arch == \"llama\" {}", &[2]);
    check(named, "src/model/arch.rs", "Qwen::qwen2", &[1]);
    check(named, "src/model/arch.rs", "include_str!(\"../../models/qwen2.toml\"),", &[]);
    check(named, "src/run/a.rs", "// llama\n\"llama.cpp\" \"llama2.c\" \"llama_x\"", &[]);
    check(named, "src/text/a.rs", "\"llama\"", &[]);
}
