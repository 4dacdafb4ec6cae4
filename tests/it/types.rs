//! Tensor types: every one against gguf-py's numbers, its integer form and its own encoder.

use std::collections::HashSet;
use std::path::PathBuf;
use std::{env, fs};

use gridmill::types::raw::{self, RawType};
use gridmill::types::{Int8Row, Kernel, PRIVATE_IDS, Rows, SUB, TYPES, TensorType, by_id, by_name};
use half::{bf16, f16};
use sha2::{Digest, Sha256};

/// Where random bytes start, here and in `tests/data/types/make.py`.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// A line of `tests/data/types/ggml.tsv`: a number that ggml has given to a type.
struct GgmlType {
    id: u32,
    name: String,
    block: (usize, usize),
    /// `weight`; `activation` for what ggml makes while it multiplies; `number` for types that it
    /// multiplies no weight of; `removed`.
    purpose: String,
}

fn ggml_types() -> Vec<GgmlType> {
    let text = fs::read_to_string(data("types/ggml.tsv")).unwrap();
    let types: Vec<GgmlType> = text
        .lines()
        .skip(1)
        .map(|line| {
            let [id, name, len, bytes, purpose] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("five columns expected, found {line:?}")
            };
            let block = (len.parse().unwrap(), bytes.parse().unwrap());
            let (name, purpose) = (name.to_owned(), purpose.to_owned());
            GgmlType { id: id.parse().unwrap(), name, block, purpose }
        })
        .collect();
    assert!(types.iter().map(|kind| kind.id).eq(0..43), "ggml has numbers 0 to 42");
    types
}

/// Types that gguf-py reads and does not write, each with the error, as in [`recorded_rows`], of
/// llama.cpp's encoder (that of libgguf 0.2.2, which is the same code).
const OWN_ENCODERS: [(&str, f64); 3] =
    [("Q4_K", 0.000_982), ("Q5_K", 0.000_531), ("Q6_K", 0.000_261)];

#[test]
fn names_and_ids() {
    let names: HashSet<_> = TYPES.iter().map(|kind| kind.name().to_lowercase()).collect();
    let ids: HashSet<_> = TYPES.iter().map(|kind| kind.id()).collect();
    assert_eq!((names.len(), ids.len()), (TYPES.len(), TYPES.len()), "two types share one");
    for kind in TYPES {
        let name = kind.name().to_lowercase();
        assert_eq!(by_name(&name).map(|kind| kind.id()), Some(kind.id()));
    }
    assert!(by_name("Q4").is_none());
}

/// Every type that ggml multiplies weights of is one of ours, and its other numbers are not: nobody
/// may read a file that has them as if it had something else.
#[test]
fn every_type_of_ggml_has_a_type_here() {
    for GgmlType { id, name, block, purpose } in ggml_types() {
        let ours = by_id(id);
        let raw = raw::find(id, &[]);
        match purpose.as_str() {
            "weight" => {
                let ours = ours.unwrap_or_else(|| panic!("no type for number {id}, {name}"));
                let found = (ours.name(), (ours.block().len, ours.block().bytes));
                assert_eq!(found, (name.as_str(), block), "number {id}");
                assert_eq!(raw, Some(RawType::of(ours)), "number {id}");
            }
            "activation" | "number" => {
                assert!(ours.is_none(), "{name} is no type of weights");
                let (block_len, block_bytes) = (block.0 as u64, block.1 as u64);
                let raw = raw.unwrap_or_else(|| panic!("{name} cannot be listed"));
                let found = (raw.name, raw.block_len, raw.block_bytes);
                assert_eq!(found, (name.as_str(), block_len, block_bytes), "number {id}");
            }
            "removed" => {
                assert!(ours.is_none() && raw.is_none(), "{name} is no more");
                let advice = raw::explain_unknown(id);
                assert!(advice.contains(&format!("was {name} and has been removed")), "{advice}");
            }
            _ => panic!("{name}: {purpose:?} is no use of a type"),
        }
    }
    let stock = ggml_types().iter().filter(|kind| kind.purpose == "weight").count();
    assert_eq!(TYPES.iter().filter(|kind| kind.id() < PRIVATE_IDS).count(), stock);
}

#[test]
fn decode_and_encode_are_bit_exact_with_gguf_py() {
    let text = fs::read_to_string(data("types/golden.tsv")).unwrap();
    let mut checked = HashSet::new();
    for line in text.lines() {
        let [what, name, from, to] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("four columns expected, found {line:?}")
        };
        let kind = by_name(name).unwrap();
        match what {
            "decode" => {
                let from = from_hex(from);
                check_bits(kind, &from, &decode(kind, &from), &floats(&from_hex(to)));
            }
            "encode" => assert_eq!(encode(kind, &floats(&from_hex(from))), from_hex(to), "{line}"),
            "digest" => assert_eq!(digest(kind, from.parse().unwrap()), to, "{name}"),
            _ => panic!("decode, encode or digest expected, found {what:?}"),
        }
        checked.insert((what, kind.id()));
    }
    for kind in TYPES.iter().filter(|kind| kind.id() < PRIVATE_IDS) {
        let (name, id) = (kind.name(), kind.id());
        assert!(checked.contains(&("decode", id)), "{name} is not in golden.tsv");
        let expected = kind.can_encode() && !OWN_ENCODERS.iter().any(|(own, _)| *own == name);
        assert_eq!(checked.contains(&("encode", id)), expected, "{name}");
        // A block of one value has its codes in the lines above.
        assert_eq!(checked.contains(&("digest", id)), kind.block().len > 1, "{name}");
    }
}

/// The checksum of what blocks of random bytes decode to, where any not-a-number is one and the
/// same: so many blocks that each point of each table is among them.
fn digest(kind: &dyn TensorType, blocks: usize) -> String {
    let codes = Random(SEED).bytes(blocks * kind.block().bytes);
    let mut hash = Sha256::new();
    for value in decode(kind, &codes) {
        let bits = if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() };
        hash.update(bits.to_le_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every type's row in `tests/data/types.tsv`: name, number, block, and the error of a cosine
/// after `encode` and `decode`, as llama.cpp's test-quantize-fns measures it (square root of the
/// summed squares, over the number of values).
#[test]
fn recorded_rows() {
    let mut text = String::from("name\tid\tvalues\tbytes\terror\n");
    for kind in TYPES {
        let block = kind.block();
        let error =
            if kind.can_encode() { format!("{:.6}", cosine_error(*kind)) } else { "-".into() };
        let (name, id) = (kind.name(), kind.id());
        text += &format!("{name}\t{id}\t{}\t{}\t{error}\n", block.len, block.bytes);
    }
    let path = data("types.tsv");
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), text, "UPDATE=1 rewrites the rows");
}

#[test]
fn own_encoders_lose_no_more_than_llama_cpp() {
    for (name, bound) in OWN_ENCODERS {
        let error = cosine_error(by_name(name).unwrap());
        assert!(error <= bound, "{name}: expected at most {bound}, found {error:.6}");
    }
}

/// A group of one value or of values of one sign has no trap for a search of scales.
#[test]
fn groups_of_few_values_come_back() {
    for (name, _) in OWN_ENCODERS {
        for (low, high) in [(0.0, 0.0), (0.5, 0.5), (-0.5, -0.5), (1.0, 2.0), (-2.0, -1.0)] {
            let row: Vec<f32> = (0..512).map(|i| if i % 2 == 0 { low } else { high }).collect();
            let found = round_trip(by_name(name).unwrap(), &row);
            for (found, expected) in found.iter().zip(&row) {
                // Two values and their offset fit any number of levels; what remains is the
                // rounding of six-bit scales.
                let near = (found - expected).abs() <= 0.02 * expected.abs();
                assert!(near, "{name}: expected {expected}, found {found}");
            }
        }
    }
}

#[test]
fn every_half_precision_number_decodes() {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    let (kind, brain) = (by_name("F16").unwrap(), by_name("BF16").unwrap());
    let expected: Vec<f32> = halves.iter().map(|&bits| f16::from_bits(bits).to_f32()).collect();
    check_bits(kind, &bytes, &decode(kind, &bytes), &expected);
    let expected: Vec<f32> = halves.iter().map(|&bits| bf16::from_bits(bits).to_f32()).collect();
    check_bits(brain, &bytes, &decode(brain, &bytes), &expected);
}

/// The integer form is the decoded values to the bit, if the kernel rounds the product and the
/// sum apart as `decode` does; and no bytes make either of them panic.
#[test]
fn any_bytes_decode_and_the_integer_form_agrees() {
    let mut random = Random(SEED);
    for kind in TYPES {
        for count in [1, 3] {
            for _ in 0..100 {
                check_integer_form(*kind, count, 512, &mut random);
            }
        }
    }
}

/// Beyond the range of the scales the codes are of little use, but there is no panic.
#[test]
fn encode_takes_any_finite_values() {
    for kind in TYPES.iter().filter(|kind| kind.can_encode()) {
        for extreme in [f32::MAX, 1e30, 65520.0, 1e-8, 1e-38, f32::from_bits(1), 0.0] {
            let signs = [1.0, -1.0, 0.5, 0.0, -0.25, 1.0, -1.0, -0.0];
            let values: Vec<f32> = (0..512).map(|i| extreme * signs[i % signs.len()]).collect();
            let found = round_trip(*kind, &values);
            assert!(extreme != 0.0 || found.iter().all(|&x| x == 0.0), "{}", kind.name());
        }
    }
}

#[test]
fn no_rows_are_no_values() {
    for kind in TYPES {
        kind.decode(&Rows { group: group(*kind), ..Rows::stock(0, 512, &[]) }, &mut []);
    }
}

fn check_integer_form(kind: &dyn TensorType, count: usize, cols: usize, random: &mut Random) {
    let row_bytes = kind.row_bytes(cols).unwrap();
    let codes = random.bytes(count * row_bytes);
    let group = group(kind);
    let row_norms = (2 * cols).checked_div(group).unwrap_or(0);
    let norms = random.bytes(count * row_norms);
    let table = kind.table().unwrap_or_default();
    let rows = Rows { group, norms: &norms, table, ..Rows::stock(count, cols, &codes) };
    let mut expected = vec![0.0; count * cols];
    kind.decode(&rows, &mut expected);

    let Kernel::Int8 { group: shared, mins } = kind.kernel() else { return };
    let shared = if shared == 0 { group } else { shared };
    for (i, expected) in expected.chunks(cols).enumerate() {
        let (mut values, mut scales) = (vec![0; cols], vec![f32::NAN; cols / SUB]);
        // Where there are no minimums, unpack has to leave these as they are.
        let mut minimums = vec![0.0; cols / SUB];
        let codes = &codes[i * row_bytes..][..row_bytes];
        let norms = &norms[i * row_norms..][..row_norms];
        let row = Rows { count: 1, codes, norms, ..rows };
        let out = &mut Int8Row { values: &mut values, scales: &mut scales, mins: &mut minimums };
        kind.unpack(&row, out);
        let found: Vec<f32> = (0..cols)
            .map(|i| {
                let product = scales[i / SUB] * f32::from(values[i]);
                if mins { product + minimums[i / SUB] } else { product }
            })
            .collect();
        check_bits(kind, codes, &found, expected);
        let groups = scales.chunks(shared / SUB).chain(minimums.chunks(shared / SUB));
        for group in groups {
            assert!(group.iter().all(|x| x.to_bits() == group[0].to_bits()), "{}", kind.name());
        }
    }
}

/// Weights per norm, for the types that have norms.
fn group(kind: &dyn TensorType) -> usize {
    if kind.table().is_some() || matches!(kind.kernel(), Kernel::Int8 { group: 0, .. }) {
        64
    } else {
        0
    }
}

/// Equal to the bit, except that one not-a-number is as good as another.
#[track_caller]
fn check_bits(kind: &dyn TensorType, codes: &[u8], found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{}", kind.name());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(
            same,
            "{} value {i}: expected {expected:?}, found {found:?}, codes {codes:02x?}",
            kind.name()
        );
    }
}

fn decode(kind: &dyn TensorType, codes: &[u8]) -> Vec<f32> {
    let block = kind.block();
    let mut out = vec![0.0; codes.len() / block.bytes * block.len];
    kind.decode(&Rows::stock(1, out.len(), codes), &mut out);
    out
}

fn encode(kind: &dyn TensorType, values: &[f32]) -> Vec<u8> {
    let mut codes = vec![0xaa; kind.row_bytes(values.len()).unwrap()];
    kind.encode(values, values.len(), 0, &mut codes, &mut []);
    codes
}

fn cosine_error(kind: &dyn TensorType) -> f64 {
    const LEN: usize = 32 * 128;
    let signal: Vec<f32> = (0..LEN).map(|i| (0.1 + 2.0 * f64::cos(i as f64)) as f32).collect();
    let found = round_trip(kind, &signal);
    let squares = signal.iter().zip(found).map(|(a, b)| f64::from(a - b).powi(2));
    squares.sum::<f64>().sqrt() / LEN as f64
}

/// One row, coded and decoded.
fn round_trip(kind: &dyn TensorType, values: &[f32]) -> Vec<f32> {
    let (cols, group) = (values.len(), group(kind));
    let mut codes = vec![0xaa; kind.row_bytes(cols).unwrap()];
    let mut norms = vec![0xaa; (2 * cols).checked_div(group).unwrap_or(0)];
    kind.encode(values, cols, group, &mut codes, &mut norms);
    let table = kind.table().unwrap_or_default();
    let rows = Rows { group, norms: &norms, table, ..Rows::stock(1, cols, &codes) };
    let mut found = vec![0.0; cols];
    kind.decode(&rows, &mut found);
    found
}

fn data(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")).join(name)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Bytes from hexadecimal digits, with or without spaces.
pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.chars().filter(|&c| c != ' ').map(|c| c.to_digit(16).unwrap() as u8);
    let digits: Vec<u8> = digits.collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text:?}");
    digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
}

/// Marsaglia's xorshift64: the same bytes every time.
struct Random(u64);

impl Random {
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_be_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    }
}
