//! `gridmill inspect`: what is in a file.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::print;
use crate::file::planes::transform_text;
use crate::file::{Array, Metadata, Source, Value};
use crate::run::kv_basis;
use crate::types::{Basis, Tensor};

/// Elements of an array that are shown.
const SHOWN: usize = 4;

/// Characters of a text that are shown.
const TEXT_SHOWN: usize = 72;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A GGUF file, or a shard of one
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn inspect(args: Args) -> anyhow::Result<()> {
    let source = Source::open(&args.file)?;
    if args.json { print::json(&as_json(&source)) } else { print::data(as_text(&source)) }
}

/// One tensor, whatever it is.
struct Line {
    name: String,
    kind: String,
    /// The contiguous dimension first, as GGUF writes it.
    shape: Vec<u64>,
    bytes: u64,
    /// How its inputs are turned, and the weights of a norm.
    turned: Option<(String, usize)>,
    /// What has more bits than the rest.
    loud: Option<Loud>,
}

/// The inputs of a weight, or the directions of a head, that have more bits than the others.
struct Loud {
    what: &'static str,
    count: usize,
    /// The share of all squares that they hold; 0 where nobody measured it.
    capture: f32,
}

impl Line {
    fn bits_per_weight(&self) -> f64 {
        let len: u64 = self.shape.iter().product();
        if len == 0 { 0.0 } else { 8.0 * self.bytes as f64 / len as f64 }
    }

    fn note(&self) -> String {
        let mut words = Vec::new();
        if let Some((transform, group)) = &self.turned {
            words.push(format!("{transform}, group {group}"));
        }
        if let Some(Loud { what, count, capture }) = self.loud.as_ref() {
            words.push(format!("{count} {what} in 8 bits"));
            if *capture > 0.0 {
                words.push(format!("{:.1}% of the squares", 100.0 * capture));
            }
        }
        words.join(", ")
    }
}

fn lines(source: &Source) -> Vec<Line> {
    let weights = source.tensors().map(|tensor| weight(source, tensor));
    let others = source.other_tensors().map(|raw| Line {
        name: raw.info.name.clone(),
        kind: raw.info.kind.name.to_string(),
        shape: raw.info.shape.clone(),
        bytes: raw.info.bytes,
        turned: None,
        loud: None,
    });
    weights.chain(others).collect()
}

fn weight(source: &Source, tensor: &Tensor) -> Line {
    let raw = source.raw_tensor(&tensor.name);
    let planes = vec![tensor.cols as u64, tensor.rows as u64];
    let turned = (tensor.group > 0).then(|| (transform_text(tensor.basis), tensor.group));
    let directions = || {
        let (count, capture) = kv_basis::about(source, &tensor.name)?;
        Some(Loud { what: "directions", count, capture })
    };
    let loud = match tensor.basis {
        Basis::Parted { high } => {
            let capture = source.capture(&tensor.name);
            Some(Loud { what: "inputs", count: high as usize, capture })
        }
        _ => directions(),
    };
    Line {
        name: tensor.name.clone(),
        kind: tensor.kind.name().to_string(),
        shape: raw.map_or(planes, |raw| raw.info.shape.clone()),
        bytes: tensor.bytes() as u64,
        turned,
        loud,
    }
}

fn as_json(source: &Source) -> Json {
    let tensors = lines(source).into_iter().map(|line| {
        let bits = line.bits_per_weight();
        let mut object = json!({
            "name": line.name,
            "type": line.kind,
            "shape": line.shape,
            "bytes": line.bytes,
            "bits_per_weight": bits,
        });
        let note = line.note();
        if !note.is_empty() {
            object["note"] = json!(note);
        }
        if let Some((transform, group)) = line.turned {
            object["transform"] = json!(transform);
            object["group"] = json!(group);
        }
        if let Some(Loud { count, capture, .. }) = line.loud {
            object["loud"] = json!(count);
            object["capture"] = json!(capture);
        }
        object
    });
    let metadata = source.metadata().iter().map(|(key, value)| (key.to_string(), json_of(value)));
    json!({
        "bytes": source.file_bytes(),
        "shards": source.shard_paths().count(),
        "metadata": metadata.collect::<serde_json::Map<String, Json>>(),
        "tensors": tensors.collect::<Vec<Json>>(),
    })
}

/// Long arrays are given by their length: a vocabulary is not something to read.
fn json_of(value: &Value) -> Json {
    match value {
        Value::Array(array) if array.len() > 64 => json!({ "array_len": array.len() }),
        Value::Array(array) => {
            (0..array.len()).filter_map(|i| array.get(i)).map(|value| json_of(&value)).collect()
        }
        Value::String(text) => json!(text),
        Value::Bool(flag) => json!(flag),
        Value::F32(number) => json!(number),
        Value::F64(number) => json!(number),
        value => match (value.as_u64(), value.as_i64()) {
            (Some(number), _) => json!(number),
            (None, number) => json!(number),
        },
    }
}

fn as_text(source: &Source) -> String {
    let mut text = format!("{}\n", source.path().display());
    let (bytes, shards) = (print::megabytes(source.file_bytes()), source.shard_paths().count());
    text += &format!("{bytes}, {shards} file{}\n\n", if shards == 1 { "" } else { "s" });
    text += &print::table(&metadata_rows(source.metadata()), &[]);
    let mut rows =
        vec![["tensor", "type", "shape", "bits", "bytes", ""].map(str::to_string).to_vec()];
    let lines = lines(source);
    for line in &lines {
        let bits = format!("{:.4}", line.bits_per_weight());
        let bits = bits.trim_end_matches('0').trim_end_matches('.').to_string();
        let shape = line.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let (name, kind, note) = (line.name.clone(), line.kind.clone(), line.note());
        rows.push(vec![name, kind, shape, bits, line.bytes.to_string(), note]);
    }
    let bytes: u64 = lines.iter().map(|line| line.bytes).sum();
    text + "\n"
        + &print::table(&rows, &[3, 4])
        + &format!("{} tensors, {bytes} bytes\n", lines.len())
}

fn metadata_rows(metadata: &Metadata) -> Vec<Vec<String>> {
    let row = |(key, value): (&str, &Value)| vec![key.to_string(), shown(value)];
    metadata.iter().map(row).collect()
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(array) => shown_array(array),
        Value::String(text) => {
            let short: String = text.chars().take(TEXT_SHOWN).collect();
            let more = if short.len() < text.len() { "..." } else { "" };
            format!("{:?}{more}", short)
        }
        value => json_of(value).to_string(),
    }
}

fn shown_array(array: &Array) -> String {
    let first = (0..array.len().min(SHOWN)).filter_map(|i| array.get(i));
    let mut shown: Vec<String> = first.map(|value| shown(&value)).collect();
    if array.len() > SHOWN {
        shown.push(format!("... {} in all", array.len()));
    }
    format!("[{}]", shown.join(", "))
}
