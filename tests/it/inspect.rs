//! `inspect --json` against its page.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use crate::cli::{json, succeeds, text};
use crate::models::model_path;
use crate::scratch::Scratch;

/// Keys and types that the page lists under a heading.
fn listed(heading: &str) -> Vec<(String, String)> {
    let page = include_str!("../../docs/inspect.md");
    let section = page.split("\n## ").find_map(|section| section.strip_prefix(heading));
    let rows = section.expect("a section of the page").lines();
    let rows = rows.filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let first = |(key, rest): (&str, &str)| {
        (key.to_string(), rest.split(' ').next().unwrap_or_default().to_string())
    };
    rows.map(first).collect()
}

fn check(object: &Json, listed: &[(String, String)], seen: &mut BTreeSet<String>) {
    for (key, value) in object.as_object().expect("an object") {
        let kind = match value {
            Json::Number(_) => "number",
            Json::String(_) => "string",
            Json::Array(_) => "array",
            Json::Object(_) => "object",
            Json::Null | Json::Bool(_) => "something else",
        };
        let row = listed.iter().find(|(known, _)| known == key);
        let row = row.unwrap_or_else(|| panic!("`{key}` is not on the page"));
        assert_eq!(kind, row.1, "{key}");
        seen.insert(key.clone());
    }
}

#[test]
fn the_keys_are_those_of_the_page() {
    let folder = Scratch::new();
    let coded = folder.join("coded.gguf");
    succeeds(&["convert", text(&model_path("llama.gguf")), text(&coded), "--to", "higgs4"]);
    let found = json(&["inspect", text(&coded), "--json"]);
    let (file, tensor) = (listed("The file"), listed("A tensor"));
    let (mut of_file, mut of_tensors) = (BTreeSet::new(), BTreeSet::new());
    check(&found, &file, &mut of_file);
    let bases = crate::kv::bases(&folder);
    let bases = json(&["inspect", text(&bases), "--json"]);
    for found in [&found, &bases] {
        for object in found["tensors"].as_array().expect("a list") {
            check(object, &tensor, &mut of_tensors);
        }
    }
    // What is on the page is there.
    let keys = |listed: &[(String, String)]| -> BTreeSet<String> {
        listed.iter().map(|(key, _)| key.clone()).collect()
    };
    assert_eq!((of_file, of_tensors), (keys(&file), keys(&tensor)));
    assert!(found["metadata"]["tokenizer.ggml.tokens"]["array_len"] == 128);
    assert_eq!(found["metadata"]["general.architecture"], "llama");
}

/// What a file of bases says of each layer: directions of 8 bits, and what they hold.
#[test]
fn bases_of_a_cache_are_shown() {
    let folder = Scratch::new();
    let path = crate::kv::bases(&folder);
    let found = json(&["inspect", text(&path), "--json"]);
    assert_eq!(found["metadata"]["general.type"], "gridmill.kv_basis");
    assert_eq!(found["metadata"]["gridmill.kv_basis.fingerprint"], "test");
    let shown = succeeds(&["inspect", text(&path)]);
    let captures = found["metadata"]["gridmill.kv_basis.captures"].as_array().unwrap();
    assert_eq!(captures.len(), 4, "keys and values of two layers");
    for (at, name) in
        ["blk.0.keys", "blk.0.values", "blk.1.keys", "blk.1.values"].iter().enumerate()
    {
        let name = format!("{name}.basis");
        let tensors = found["tensors"].as_array().unwrap();
        let tensor = tensors.iter().find(|tensor| tensor["name"] == *name).unwrap();
        assert_eq!((&tensor["loud"], &tensor["capture"]), (&Json::from(8), &captures[at]));
        let capture = captures[at].as_f64().unwrap();
        assert!((0.5..1.0).contains(&capture), "8 of 16 directions hold {capture}");
        let line = shown.lines().find(|line| line.starts_with(&name)).unwrap();
        let words = format!("8 directions in 8 bits, {:.1}% of the squares", 100.0 * capture);
        assert!(line.contains(&words), "{line}");
    }
}
