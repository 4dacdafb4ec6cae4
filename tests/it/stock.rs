//! A model whose matrices all have one stock type runs, and computes what the same weights in
//! single precision do.

use gridmill::file::Value;
use gridmill::run::{Device, Options};
use gridmill::types::raw::RawType;
use gridmill::types::{Kernel, PRIVATE_IDS, Rows, TYPES, TensorType, by_name};

use crate::cpu::Random;
use crate::models::{Parts, devices, distance, golden, open, whole};
use crate::scratch::Scratch;

/// RMS of the difference over RMS, where only the order of sums differs: as of the tiny models.
const FLOAT_TOLERANCE: f64 = 1e-4;

/// From the oracle to another backend: a sum that is rounded otherwise moves an eight-bit
/// activation now and then. Twice the largest that was found.
const BACKEND_TOLERANCE: f64 = 0.022;

/// From single precision to eight-bit activations. Twice the largest that was found.
const INT8_TOLERANCE: f64 = 0.05;

#[test]
fn a_model_of_every_stock_type_runs() {
    for &kind in TYPES.iter().filter(|kind| kind.id() < PRIVATE_IDS) {
        check(kind);
    }
}

fn check(kind: &dyn TensorType) {
    let sequences = golden("llama");
    let all = devices();
    let (oracle, others) = all.split_first().expect("the oracle is always there");
    assert!(matches!(oracle.device, Device::Reference), "the oracle is the first");
    let (coded, floats) = models(kind);
    let folders = [Scratch::new(), Scratch::new()];
    let floats = open(&floats.write(&folders[0]));
    let coded = open(&coded.write(&folders[1]));
    let exact = whole(&floats, oracle, &sequences).concat();
    let expected = whole(&coded, oracle, &sequences).concat();
    let is_float = kind.kernel() == Kernel::Float;
    let far = distance(&expected, &exact);
    let most = if is_float { FLOAT_TOLERANCE } else { INT8_TOLERANCE };
    assert!(far < most, "{}, from single precision: expected {most}, found {far}", kind.name());
    for options in others {
        let far = distance(&whole(&coded, options, &sequences).concat(), &expected);
        let Options { device, level, .. } = options;
        let most = if is_float { FLOAT_TOLERANCE } else { BACKEND_TOLERANCE };
        assert!(far < most, "{}, {device:?} {level}: expected {most}, found {far}", kind.name());
    }
}

/// The tiny model with wider rows, so that every block divides them, and with matrices of this
/// type; and the same with what these decode to.
fn models(kind: &dyn TensorType) -> (Parts, Parts) {
    let mut random = Random(u64::from(kind.id()));
    let blocks = blocks(kind, &mut random);
    let (mut coded, mut floats) = (widened(), widened());
    for (coded, floats) in coded.tensors.iter_mut().zip(&mut floats.tensors) {
        let &[cols, rows] = &coded.shape[..] else { continue };
        let (cols, rows) = (cols as usize, rows as usize);
        let count = rows * cols / kind.block().len;
        let pick = |_| &blocks[random.bits() as usize % blocks.len()][..];
        let codes = (0..count).map(pick).collect::<Vec<_>>().concat();
        let mut values = vec![0.0; rows * cols];
        kind.decode(&Rows::stock(rows, cols, &codes), &mut values);
        (coded.kind, coded.bytes) = (RawType::of(kind), codes);
        floats.kind = RawType::of(by_name("F32").unwrap());
        floats.bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    }
    (coded, floats)
}

/// Widths of 256 where the tiny model has 64 and 96, and all that depends on them.
fn widened() -> Parts {
    let wide = |size: u64| if size == 64 || size == 96 { 256 } else { size };
    let mut parts = Parts::of("llama");
    for key in ["embedding_length", "feed_forward_length"] {
        parts.set(&format!("llama.{key}"), Value::U32(256));
    }
    parts.set("llama.rope.dimension_count", Value::U32(64));
    for part in &mut parts.tensors {
        // Keys and values have as many rows as two of the four heads.
        let is_shared =
            part.name.ends_with("attn_k.weight") || part.name.ends_with("attn_v.weight");
        part.shape = match part.shape[..] {
            [cols, _] if is_shared => vec![wide(cols), 128],
            [cols, rows] => vec![wide(cols), wide(rows)],
            _ => {
                part.bytes = part.bytes.repeat(4);
                vec![256]
            }
        };
    }
    parts
}

/// Some blocks of random bytes whose values have about the size of weights.
fn blocks(kind: &dyn TensorType, random: &mut Random) -> Vec<Vec<u8>> {
    let block = kind.block();
    let mut found = Vec::new();
    let mut values = vec![0.0; block.len];
    while found.len() < 64 {
        let codes: Vec<u8> = (0..block.bytes).map(|_| random.bits() as u8).collect();
        kind.decode(&Rows::stock(1, block.len, &codes), &mut values);
        let squares = values.iter().map(|value| value * value).sum::<f32>();
        if (0.03..0.12).contains(&(squares / block.len as f32).sqrt()) {
            found.push(codes);
        }
    }
    found
}
