//! Numbers of safetensors files that GGUF has no type for, in one that holds them.

use half::f16;

use crate::types::{self, Bytes, TensorType};

/// The type that holds values of such a format, and the values in it; `None` if they are no floats.
///
/// Halves hold every number of 8 bits. Numbers of 64 bits are rounded to 32.
pub(super) fn held(dtype: &str, bytes: Bytes) -> Option<(&'static dyn TensorType, Bytes)> {
    let named = |name| types::by_name(name).expect("plain floats are always there");
    let small = |value: fn(u8) -> f16| {
        let table: Vec<[u8; 2]> = (0..=u8::MAX).map(|byte| value(byte).to_le_bytes()).collect();
        let all = bytes.clone();
        let make = move || all.iter().flat_map(|&byte| table[usize::from(byte)]).collect();
        Some((named("F16"), Bytes::made(2 * bytes.len(), make)))
    };
    match dtype {
        "F32" | "F16" | "BF16" => Some((named(dtype), bytes)),
        "F64" => {
            let len = bytes.len() / 2;
            let narrow = |&value: &[u8; 8]| (f64::from_le_bytes(value) as f32).to_le_bytes();
            let make = move || bytes.as_chunks::<8>().0.iter().flat_map(narrow).collect();
            Some((named("F32"), Bytes::made(len, make)))
        }
        "F8_E4M3" => small(of_e4m3),
        "F8_E5M2" => small(of_e5m2),
        _ => None,
    }
}

/// Four bits of exponent with bias 7, three of fraction, no infinities: the highest of each sign is
/// no number.
fn of_e4m3(byte: u8) -> f16 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7) / 8.0);
    let size = match (byte & 0x7f, exponent) {
        (0x7f, _) => f32::NAN,
        (_, 0) => fraction * 2.0_f32.powi(-6),
        _ => (1.0 + fraction) * 2.0_f32.powi(exponent - 7),
    };
    f16::from_f32(if byte >> 7 == 0 { size } else { -size })
}

/// The upper half of a half.
fn of_e5m2(byte: u8) -> f16 {
    f16::from_bits(u16::from(byte) << 8)
}
