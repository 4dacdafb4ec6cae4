//! Shader text: a kernel's file with its imports, constants, sections and unrolled loops.
//!
//! The files in `shaders/` are plain WGSL that a person can read. Four kinds of line give Rust a
//! say, all of them comments or constants, so that there is no conditional text:
//!
//! ```text
//! // import NAME      the file that this recipe gives NAME, or shared/NAME.wgsl
//! const ROWS = 8u;    at the margin: the value is the recipe's, if it has one
//! // unroll           the loop on the next line becomes that many blocks
//! // section          up to `// end section`: once per section, its names told apart by a number
//! ```
//!
//! Bindings are numbered in the order in which they appear, and known by their names.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};

/// The value of a constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Constant {
    /// `12u`.
    U32(u32),
    /// `1.5f`.
    F32(f32),
    /// `true`.
    Bool(bool),
}

impl From<usize> for Constant {
    fn from(value: usize) -> Constant {
        Constant::U32(u32::try_from(value).expect("sizes on a device have 32 bits"))
    }
}

impl From<u32> for Constant {
    fn from(value: u32) -> Constant {
        Constant::U32(value)
    }
}

impl From<f32> for Constant {
    fn from(value: f32) -> Constant {
        Constant::F32(value)
    }
}

impl From<bool> for Constant {
    fn from(value: bool) -> Constant {
        Constant::Bool(value)
    }
}

impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Constant::U32(value) => write!(f, "{value}u"),
            Constant::F32(value) => write!(f, "{value:?}f"),
            Constant::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// What fills the places that a text leaves open.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// The text for each import that is not a shared file of the same name.
    pub imports: Vec<(&'static str, &'static str)>,
    /// The value of each constant.
    pub constants: Vec<(&'static str, Constant)>,
}

impl Choices {
    /// Chooses a text for an import.
    #[must_use]
    pub fn import(mut self, name: &'static str, text: &'static str) -> Choices {
        self.imports.push((name, text));
        self
    }

    /// Chooses the value of a constant.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: impl Into<Constant>) -> Choices {
        self.constants.push((name, value.into()));
        self
    }
}

/// A kernel, and the choices that make it one shader.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The kernel: a file of `shaders/`, and its entry point.
    pub kernel: &'static str,
    /// For the whole text.
    pub choices: Choices,
    /// For each section.
    pub sections: Vec<Choices>,
}

impl Recipe {
    /// A kernel without sections.
    pub fn new(kernel: &'static str, choices: Choices) -> Recipe {
        Recipe { kernel, choices, sections: Vec::new() }
    }
}

/// A buffer that a shader uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its name in the text, with the number of its section.
    pub name: String,
    /// Whether the shader writes it.
    pub writes: bool,
}

/// A shader, ready for a device.
#[derive(Clone, Debug)]
pub struct Shader {
    /// WGSL.
    pub text: String,
    /// The buffers, by binding number.
    pub bindings: Vec<Binding>,
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../shaders/", $name, ".wgsl")))),*]
    };
}

/// Every kernel.
pub static KERNELS: &[(&str, &str)] = files![
    "add_norm",
    "angles",
    "attend",
    "attend_tile",
    "combine",
    "embed",
    "embed_float",
    "expert_mat_vec",
    "expert_mat_vec_float",
    "halves",
    "mat_mat",
    "mat_mat_f16",
    "mat_mat_float",
    "mat_vec",
    "mat_vec_float",
    "mix",
    "prepare",
    "rope",
    "route",
    "sample",
    "sample_peaks",
    "soft_cap",
    "top",
    "turn_back",
];

/// Texts that kernels import.
static SHARED: &[(&str, &str)] = files![
    "shared/activations",
    "shared/batch",
    "shared/bias_none",
    "shared/bias_some",
    "shared/candidates_kept",
    "shared/candidates_logits",
    "shared/cap",
    "shared/chosen",
    "shared/codes",
    "shared/dot_float",
    "shared/dot_packed",
    "shared/extent_logit_rows",
    "shared/extent_tokens",
    "shared/gather_all",
    "shared/gather_rows",
    "shared/head_own",
    "shared/head_turned",
    "shared/in_order",
    "shared/input_gated",
    "shared/input_rows",
    "shared/input_splits",
    "shared/line_shared",
    "shared/line_storage",
    "shared/norm_none",
    "shared/norm_rms",
    "shared/norms",
    "shared/out_add",
    "shared/out_set",
    "shared/pairs",
    "shared/product",
    "shared/read_codes",
    "shared/read_f16",
    "shared/read_f32",
    "shared/reduce_shared",
    "shared/reduce_subgroup",
    "shared/reduce_subgroup_fixed",
    "shared/run",
    "shared/signs",
    "shared/splits",
    "shared/store_f32",
    "shared/store_int8",
    "shared/sum",
    "shared/sylvester",
    "shared/turn_hadamard",
    "shared/turn_kronecker",
    "shared/turn_none",
    "shared/turn_parted",
    "shared/walk_points",
    "shared/walk_rows",
    "shared/write_codes",
    "shared/write_f16",
    "shared/write_f32",
];

/// The text of a file of `shaders/shared`.
///
/// # Panics
/// If there is none: names are ours.
pub fn shared(name: &str) -> &'static str {
    let is_it = |(path, _): &&(&str, &'static str)| path.strip_prefix("shared/") == Some(name);
    SHARED.iter().find(is_it).map(|(_, text)| *text).unwrap_or_else(|| panic!("no shared/{name}"))
}

/// The shader of a recipe.
///
/// # Panics
/// If the recipe names what is not there: recipes are ours.
pub fn assemble(recipe: &Recipe) -> Shader {
    let (_, kernel) = KERNELS
        .iter()
        .find(|(name, _)| *name == recipe.kernel)
        .unwrap_or_else(|| panic!("no kernel {}", recipe.kernel));
    let mut imported = HashSet::new();
    let lines = with_imports(kernel, &recipe.choices.imports, true, &mut imported);
    let lines = with_sections(&lines, &recipe.sections);
    let text = with_constants(&lines, &recipe.choices.constants).join("\n");
    let constants = numbers(&text);
    let text = unrolled(&text, &constants);
    with_bindings(&text)
}

/// Lines without comments, imports in their places; those in sections wait for their section.
fn with_imports(
    text: &str,
    choices: &[(&'static str, &'static str)],
    is_outside: bool,
    imported: &mut HashSet<&'static str>,
) -> Vec<String> {
    let mut lines = Vec::new();
    let mut in_section = false;
    for line in text.lines() {
        let directive = line.trim();
        match directive {
            "// section" => in_section = true,
            "// end section" => in_section = false,
            _ => {}
        }
        if let Some(name) = directive.strip_prefix("// import ") {
            if is_outside && in_section {
                lines.push(line.to_string());
                continue;
            }
            let chosen = choices.iter().find(|(known, _)| *known == name).map(|(_, text)| *text);
            let text = chosen.unwrap_or_else(|| shared(name));
            if imported.insert(text) {
                lines.extend(with_imports(text, choices, is_outside, imported));
            }
        } else if matches!(directive, "// unroll" | "// section" | "// end section") {
            lines.push(line.to_string());
        } else {
            let code = line.split("//").next().unwrap_or("").trim_end();
            if !code.is_empty() {
                lines.push(code.to_string());
            }
        }
    }
    lines
}

/// Section blocks, once per section.
fn with_sections(lines: &[String], sections: &[Choices]) -> Vec<String> {
    let mut blocks: Vec<(bool, Vec<String>)> = vec![(false, Vec::new())];
    for line in lines {
        match line.trim() {
            "// section" => blocks.push((true, Vec::new())),
            "// end section" => blocks.push((false, Vec::new())),
            _ => blocks.last_mut().expect("at least one").1.push(line.clone()),
        }
    }
    // A section's own text, imports and constants in place, for each of its blocks.
    let expand = |choices: &Choices| -> Vec<Vec<String>> {
        let mut imported = HashSet::new();
        let own = blocks.iter().filter(|(is_section, _)| *is_section).map(|(_, block)| {
            let text = block.join("\n");
            let lines = with_imports(&text, &choices.imports, false, &mut imported);
            with_constants(&lines, &choices.constants)
        });
        own.collect()
    };
    let expanded: Vec<_> = sections.iter().map(expand).collect();
    let mut result = Vec::new();
    let mut number = 0;
    for (is_section, block) in &blocks {
        if !is_section {
            result.extend_from_slice(block);
            continue;
        }
        for (section, blocks) in expanded.iter().enumerate() {
            let declared: HashSet<&str> =
                blocks.iter().flatten().filter_map(|line| declares(line)).collect();
            let renamed = blocks[number].iter().map(|line| rename(line, &declared, section));
            result.extend(renamed);
        }
        number += 1;
    }
    result
}

/// The name that a line at the margin declares.
fn declares(line: &str) -> Option<&str> {
    let plain = ["fn ", "struct ", "const "].iter().find_map(|word| line.strip_prefix(word));
    let variable = || {
        let is_variable = line.starts_with("var<") || line.starts_with("@group");
        line.split_once("> ").filter(|_| is_variable).map(|(_, rest)| rest)
    };
    plain.or_else(variable)?.split(|c| !is_word(c)).next()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Appends the number of a section to the names that it declares; members keep theirs.
fn rename(line: &str, declared: &HashSet<&str>, section: usize) -> String {
    let is_member_list = !line.contains("fn ") && !line.contains("var");
    let mut out = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(is_word) {
        out.push_str(&rest[..start]);
        let word_and_rest = &rest[start..];
        let end = word_and_rest.find(|c| !is_word(c)).unwrap_or(word_and_rest.len());
        let (word, after) = word_and_rest.split_at(end);
        let declares_member =
            is_member_list && after.trim_start().starts_with(':') && !line.starts_with("const");
        out.push_str(word);
        let is_member = out[..out.len() - word.len()].ends_with('.') || declares_member;
        if declared.contains(word) && !is_member {
            let _ = write!(out, "_{section}");
        }
        rest = after;
    }
    out + rest
}

/// Constants at the margin with the values that were chosen.
fn with_constants(lines: &[String], constants: &[(&'static str, Constant)]) -> Vec<String> {
    let substitute = |line: &String| {
        let name = line.strip_prefix("const ").and_then(|rest| rest.split([' ', ':', '=']).next());
        let chosen = name.and_then(|name| constants.iter().rev().find(|(known, _)| *known == name));
        match chosen {
            Some((name, value)) => format!("const {name} = {value};"),
            None => line.clone(),
        }
    };
    lines.iter().map(substitute).collect()
}

/// The constants at the margin that are whole numbers, or products and quotients of such.
fn numbers(text: &str) -> HashMap<String, u32> {
    let mut numbers = HashMap::new();
    for line in text.lines() {
        let Some((name, value)) = line.strip_prefix("const ").and_then(|rest| rest.split_once('='))
        else {
            continue;
        };
        let name = name.split(':').next().unwrap_or("").trim();
        if let Some(value) = evaluate(value.trim_end_matches(';'), &numbers) {
            numbers.insert(name.to_string(), value);
        }
    }
    numbers
}

fn evaluate(expression: &str, numbers: &HashMap<String, u32>) -> Option<u32> {
    let expression = expression.trim();
    // Both bind alike, from the left.
    if let Some(at) = expression.rfind(['*', '/']) {
        let (a, b) =
            (evaluate(&expression[..at], numbers)?, evaluate(&expression[at + 1..], numbers)?);
        return if expression[at..].starts_with('*') { a.checked_mul(b) } else { a.checked_div(b) };
    }
    let literal = expression.strip_suffix('u').unwrap_or(expression).parse().ok();
    literal.or_else(|| numbers.get(expression).copied())
}

/// Loops below `// unroll` as blocks, the inner ones too.
fn unrolled(text: &str, constants: &HashMap<String, u32>) -> String {
    let Some((before, rest)) = text.split_once("// unroll\n") else { return text.to_string() };
    let (head, rest) = rest.split_once('{').expect("a loop has a body");
    let mut depth = 1;
    let end = rest.char_indices().find(|(_, c)| {
        depth += i32::from(*c == '{') - i32::from(*c == '}');
        depth == 0
    });
    let end = end.expect("the body ends").0;
    let (body, after) = (&rest[..end], &rest[end + 1..]);
    let words: Vec<&str> = head.split_whitespace().collect();
    // for (var i = 0u; i < COUNT; i += 1u)
    let name = words.get(2).copied().expect("the loop has a variable");
    let bound = head.split(';').nth(1).and_then(|test| test.split('<').nth(1));
    let count = bound.and_then(|bound| evaluate(bound, constants));
    let count = count.unwrap_or_else(|| panic!("the bound of `{head}` is no number"));
    let body = unrolled(body, constants);
    let mut out = before.to_string();
    for i in 0..count {
        let _ = writeln!(out, "{{ const {name} = {i}u;{body}}}");
    }
    out + &unrolled(after, constants)
}

/// Numbers the bindings.
fn with_bindings(text: &str) -> Shader {
    let mut bindings = Vec::new();
    let mut out = String::new();
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("var<storage").filter(|_| line.starts_with('@')) {
            let name = rest.split_once("> ").and_then(|(_, rest)| rest.split(':').next());
            let name = name.expect("a binding has a name").to_string();
            let writes = rest.starts_with(", read_write>");
            let _ = writeln!(out, "@group(0) @binding({}) var<storage{rest}", bindings.len(),);
            bindings.push(Binding { name, writes });
        } else {
            let _ = writeln!(out, "{line}");
        }
    }
    Shader { text: out, bindings }
}
