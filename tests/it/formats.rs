//! The pages in `formats/` are tests: what they say of a type's blocks is so, and their `vector`
//! blocks decode as written. `UPDATE=1` rewrites the values of the vectors.
//!
//! A vector is lines of `key: value`; an indented line goes on with the one before it. `type` and
//! `codes` are required; `norms` and `table` are bytes in hexadecimal like `codes` (the table is
//! the type's own where it is left out), `group` and `cols` are numbers (one row where `cols` is
//! left out), and `values` are what the codes decode to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use gridmill::types::{Rows, TYPES, TensorType, by_name};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/formats");

#[test]
fn vectors_decode_as_written() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let updated = map_vectors(&text, |vector| {
            let vector = Vector::parse(vector);
            let values = vector.decode();
            if env::var_os("UPDATE").is_none() {
                assert_eq!(
                    vector.values,
                    print_values(&values),
                    "{}: a vector of {}; expected is what decode gives, UPDATE=1 writes it",
                    page.display(),
                    vector.kind.name(),
                );
            }
            vector.values_from(&values)
        });
        if updated != text {
            fs::write(&page, updated).unwrap();
        }
    }
}

#[test]
fn every_type_has_a_row_and_a_vector() {
    let mut rows = BTreeMap::new();
    let mut vectors = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (name, block) in block_rows(&text) {
            assert!(rows.insert(name.clone(), block).is_none(), "{name} has two rows");
        }
        map_vectors(&text, |vector| {
            vectors.push(Vector::parse(vector).kind.name());
            vector.to_owned()
        });
    }
    for kind in TYPES {
        let (name, block) = (kind.name(), kind.block());
        let row = rows.remove(name).unwrap_or_else(|| panic!("{name} has no row in formats/"));
        assert_eq!(row, (block.len, block.bytes), "{name}: values and bytes of a block");
        assert!(vectors.contains(&name), "{name} has no vector in formats/");
    }
    assert_eq!(rows, BTreeMap::new(), "rows in formats/ that no type has");
}

#[test]
fn the_index_has_every_page() {
    let index = fs::read_to_string(Path::new(FOLDER).join("README.md")).unwrap();
    for page in pages() {
        let name = page.file_name().unwrap().to_str().unwrap();
        let link = format!("({name})");
        assert!(name == "README.md" || index.contains(&link), "formats/README.md lacks {link}");
    }
}

/// Every page, in the order of the names.
fn pages() -> Vec<PathBuf> {
    let entries = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    pages.sort();
    pages
}

/// The rows of the page's `| name | values | bytes |` tables.
fn block_rows(text: &str) -> Vec<(String, (usize, usize))> {
    let mut rows = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if cells(line) != ["name", "values", "bytes"] {
            continue;
        }
        for row in lines.by_ref().skip(1).map(cells).take_while(|row| !row.is_empty()) {
            rows.push((row[0].to_owned(), (row[1].parse().unwrap(), row[2].parse().unwrap())));
        }
    }
    rows
}

/// The cells of a line of a table, none for any other line.
fn cells(line: &str) -> Vec<&str> {
    let row = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|'));
    row.map_or(Vec::new(), |row| row.split('|').map(str::trim).collect())
}

/// The page with what `change` makes of each vector, the fences left out.
fn map_vectors(text: &str, mut change: impl FnMut(&str) -> String) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("```vector\n") {
        let (vector, after) = after.split_once("```").expect("a vector ends with its fence");
        out += &format!("{before}```vector\n{}```", change(vector));
        rest = after;
    }
    out + rest
}

/// A vector of a page.
struct Vector {
    kind: &'static dyn TensorType,
    fields: BTreeMap<String, String>,
    /// Everything before the values, as it stands.
    head: String,
    /// As [`print_values`] prints them.
    values: String,
}

impl Vector {
    fn parse(text: &str) -> Vector {
        let (head, values) = text.split_once("values:").unwrap_or((text, ""));
        let mut fields = BTreeMap::<String, String>::new();
        let mut key = "";
        for line in head.lines() {
            let mut text = line;
            if !line.starts_with(' ') {
                (key, text) = line.split_once(':').unwrap_or_else(|| panic!("no key in {line:?}"));
                let known = ["type", "codes", "norms", "table", "group", "cols"];
                assert!(known.contains(&key), "{key:?} is no key of a vector");
            }
            *fields.entry(key.to_owned()).or_default() += text.trim();
        }
        let name = fields.get("type").expect("a vector has a type");
        let kind = by_name(name).unwrap_or_else(|| panic!("no type is called {name:?}"));
        // Through the numbers, so that the way of writing them does not matter.
        let values: Vec<f32> = values.split_whitespace().map(|v| v.parse().unwrap()).collect();
        let values = print_values(&values);
        Vector { kind, head: head.to_owned(), fields, values }
    }

    fn number(&self, key: &str) -> Option<usize> {
        self.fields.get(key).map(|text| text.parse().unwrap())
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        self.fields.get(key).map_or(Vec::new(), |text| crate::types::from_hex(text))
    }

    fn decode(&self) -> Vec<f32> {
        let (codes, norms, table) = (self.bytes("codes"), self.bytes("norms"), self.bytes("table"));
        let block = self.kind.block();
        let cols = self.number("cols").unwrap_or(codes.len() / block.bytes * block.len);
        let bytes = self.kind.row_bytes(cols).expect("rows of whole blocks");
        assert!(codes.len().is_multiple_of(bytes), "the codes are whole rows");
        let len = codes.len() / bytes * cols * self.kind.row_block();
        let table: Vec<i8> = table.iter().map(|&byte| byte as i8).collect();
        let own = self.kind.table().unwrap_or_default();
        let rows = Rows {
            count: len / cols,
            cols,
            group: self.number("group").unwrap_or(0),
            codes: &codes,
            norms: &norms,
            table: if table.is_empty() { own } else { &table },
            ..Rows::stock(0, 0, &[])
        };
        let mut values = vec![0.0; len];
        self.kind.decode(&rows, &mut values);
        values
    }

    /// The same vector with other values.
    fn values_from(&self, values: &[f32]) -> String {
        format!("{}values:\n{}", self.head, print_values(values))
    }
}

/// A vector of a page as a weight, and what it decodes to.
#[cfg(feature = "gpu")]
pub(crate) struct Decoded {
    pub(crate) tensor: gridmill::types::Tensor,
    pub(crate) values: Vec<f32>,
}

/// The first row of every vector of every page.
#[cfg(feature = "gpu")]
pub(crate) fn vectors() -> Vec<Decoded> {
    let mut vectors = Vec::new();
    for page in pages() {
        map_vectors(&fs::read_to_string(&page).unwrap(), |text| {
            vectors.push(Vector::parse(text).decoded());
            text.to_owned()
        });
    }
    vectors
}

#[cfg(feature = "gpu")]
impl Vector {
    fn decoded(&self) -> Decoded {
        let mut values = self.decode();
        let cols = self.number("cols").unwrap_or(values.len());
        values.truncate(cols);
        let table = match self.bytes("table") {
            table if table.is_empty() => {
                self.kind.table().unwrap_or_default().iter().map(|&q| q.cast_unsigned()).collect()
            }
            table => table,
        };
        let tensor = gridmill::types::Tensor {
            name: self.kind.name().to_string(),
            kind: self.kind,
            rows: self.decode().len() / cols,
            cols,
            first: 0,
            basis: gridmill::types::Basis::Original,
            group: self.number("group").unwrap_or(0),
            codes: self.bytes("codes").into(),
            norms: self.bytes("norms").into(),
            table: table.into(),
            signs: gridmill::types::Bytes::empty(),
            columns: gridmill::types::ColumnPlanes::default(),
        };
        Decoded { tensor, values }
    }
}

/// Numbers that read back as the same bits, in indented lines of at most 100 columns.
fn print_values(values: &[f32]) -> String {
    let mut out = String::new();
    let mut line = String::new();
    for value in values {
        let word = format!(" {value:?}");
        if line.len() + word.len() > 99 {
            out += &format!(" {line}\n");
            line.clear();
        }
        line += &word;
    }
    out + &format!(" {line}\n")
}
