//! What an input goes through before it meets the codes: signs, then a Hadamard transform.
//! Page: `formats/transform.md`.
//!
//! The same functions turn a weight's rows when they are coded and its activation when it is used.
//! They only add, subtract and scale, in one order, so their bits are the same on every machine.

mod fast;
mod paley;
pub mod plain;

use std::ops::{Add, Mul, Sub};

use crate::bail;
use crate::error::Result;
use crate::types::Basis;

pub use paley::{ORDER_MAX, Paley};

/// `len` signs, +1 or -1, for the inputs of a weight: bit 63 of the outputs of `SplitMix64`.
///
/// Sign `i` depends on `seed` and `i` alone, so a longer list begins with every shorter one. Seed 0
/// stands for signs that are all +1.
pub fn signs(seed: u64, len: usize) -> Vec<i8> {
    if seed == 0 {
        return vec![1; len];
    }
    // https://prng.di.unimi.it/splitmix64.c: the state steps by a constant, the output mixes it.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..len).map(|_| if next() >> 63 == 1 { -1 } else { 1 }).collect()
}

/// Whether rows of `cols` values can be in this basis.
///
/// # Errors
/// If a block is no power of two or does not divide the row, or no matrix of the order is known.
pub fn check(basis: Basis, cols: usize) -> Result<()> {
    let block = match basis {
        Basis::Original => return Ok(()),
        Basis::Hadamard { block } | Basis::Kronecker { block, .. } => block,
        Basis::Parted { high } => {
            if high == 0 || high as usize >= cols {
                bail!("expected a loud part within {cols} values, found one of {high}");
            }
            return Ok(());
        }
    };
    if !block.is_power_of_two() {
        bail!("expected a Hadamard block that is a power of two, found {block}");
    }
    if let Basis::Kronecker { order, .. } = basis {
        if u64::from(order) * u64::from(block) != cols as u64 {
            bail!("expected a transform of {cols} values, found one of {order} * {block}");
        }
        if Paley::get(order).is_none() {
            bail!("expected a Hadamard order of Paley's up to {ORDER_MAX}, found {order}");
        }
    } else if !cols.is_multiple_of(block as usize) {
        bail!("expected a Hadamard block that divides {cols} values, found {block}");
    }
    Ok(())
}

/// Whether signs are those of a basis that fits them: +1 or -1, twice that for as many inputs as
/// the loud part has.
///
/// # Errors
/// If one is something else, or there are more or fewer loud inputs.
pub fn check_signs(basis: Basis, signs: &[i8]) -> Result<()> {
    let high = match basis {
        Basis::Parted { high } => high as usize,
        Basis::Original | Basis::Hadamard { .. } | Basis::Kronecker { .. } => 0,
    };
    let is_sign = |sign: i8| matches!(sign, 1 | -1) || high > 0 && matches!(sign, 2 | -2);
    if let Some(at) = signs.iter().position(|&sign| !is_sign(sign)) {
        let twice = if high > 0 { ", or twice that" } else { "" };
        bail!("sign {at} is {}, expected 1 or -1{twice}", signs[at]);
    }
    let found = signs.iter().filter(|&&sign| is_loud(sign)).count();
    if found != high {
        bail!("{found} loud inputs, expected {high}");
    }
    Ok(())
}

/// Marks inputs as loud in signs that are all +1 or -1.
pub fn mark(signs: &mut [i8], loud: &[bool]) {
    assert_eq!(signs.len(), loud.len(), "a mark for every input");
    signs.iter_mut().zip(loud).filter(|(_, loud)| **loud).for_each(|(sign, _)| *sign *= 2);
}

fn is_loud(sign: i8) -> bool {
    sign.unsigned_abs() == 2
}

/// Every basis that rows of `cols` values can be in: the original one, Hadamard blocks from 16 up,
/// then the Kronecker product of the smallest Paley order with a power of two, if there is one.
pub fn choices(cols: usize) -> Vec<Basis> {
    let powers = (4..31).map(|bits| 1_u32 << bits);
    let blocks = powers.filter(|&block| cols.is_multiple_of(block as usize) && cols > 0);
    let blocks = blocks.map(|block| Basis::Hadamard { block });
    let kronecker = (1..=ORDER_MAX / 4).map(|k| 4 * k).find_map(|order| {
        let block = u32::try_from(cols / order as usize).ok()?;
        let basis = Basis::Kronecker { order, block };
        // A Paley order that is a power of two offers nothing that the blocks do not.
        (!order.is_power_of_two() && check(basis, cols).is_ok()).then_some(basis)
    });
    std::iter::once(Basis::Original).chain(blocks).chain(kronecker).collect()
}

/// Brings a row of the original basis into `basis`, in place: signs, Hadamard, normalisation.
///
/// `signs` has the length of the row, or none for no signs. The bits of the result are those of
/// [`plain::forward`].
///
/// # Panics
/// If the basis does not fit the row (see [`check`]) or the signs do not.
pub fn forward(basis: Basis, signs: &[i8], row: &mut [f32]) {
    turn(FAST, basis, signs, row);
}

/// Brings a row back from `basis`, in place: the transposed Hadamard matrix, normalisation, signs.
///
/// # Panics
/// As [`forward`].
pub fn inverse(basis: Basis, signs: &[i8], row: &mut [f32]) {
    turn_back(FAST, basis, signs, row);
}

/// [`forward`] in double precision, plain: for the moments of an activation.
///
/// # Panics
/// As [`forward`].
pub fn forward_f64(basis: Basis, signs: &[i8], row: &mut [f64]) {
    turn(plain::steps(), basis, signs, row);
}

/// For each place of a parted row the input that comes there: the quiet ones, then the loud ones.
pub fn parted_order(signs: &[i8]) -> impl Iterator<Item = usize> + '_ {
    let quiet = (0..signs.len()).filter(|&i| !is_loud(signs[i]));
    quiet.chain((0..signs.len()).filter(|&i| is_loud(signs[i])))
}

/// Values of a block of each of two parts: the largest power of two that divides the part.
pub fn parted_blocks(low: usize, high: usize) -> [u32; 2] {
    [low, high].map(|len| 1 << len.trailing_zeros())
}

/// The two steps of a transform, not normalised.
#[derive(Clone, Copy)]
struct Steps<T> {
    /// Sylvester's matrix on every run of so many values.
    sylvester: fn(&mut [T], usize),
    /// Paley's matrix, by its places of +1, across runs of so many values.
    kronecker: fn(&mut [T], usize, &[Vec<u8>]),
}

/// A number that can be turned.
trait Number: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    fn of(value: f64) -> Self;
}

impl Number for f32 {
    fn of(value: f64) -> f32 {
        value as f32
    }
}

impl Number for f64 {
    fn of(value: f64) -> f64 {
        value
    }
}

const FAST: Steps<f32> = Steps { sylvester: fast::sylvester, kronecker: fast::kronecker };

fn turn<T: Number>(steps: Steps<T>, basis: Basis, signs: &[i8], row: &mut [T]) {
    if let Basis::Parted { high } = basis {
        let signed = |i: usize| row[i] * T::of(f64::from(signs[i].signum()));
        let parted: Vec<T> = parted_order(signs).map(signed).collect();
        row.copy_from_slice(&parted);
        turn_parts(steps, high, row);
        return;
    }
    if basis != Basis::Original {
        flip(signs, row);
        hadamard(steps, basis, false, row);
    }
}

fn turn_back<T: Number>(steps: Steps<T>, basis: Basis, signs: &[i8], row: &mut [T]) {
    if let Basis::Parted { high } = basis {
        turn_parts(steps, high, row);
        let parted = row.to_vec();
        let (mut low, mut loud) = (0, row.len() - high as usize);
        for (value, &sign) in row.iter_mut().zip(signs) {
            let at = if is_loud(sign) { &mut loud } else { &mut low };
            *value = parted[*at] * T::of(f64::from(sign.signum()));
            *at += 1;
        }
        return;
    }
    if basis != Basis::Original {
        hadamard(steps, basis, true, row);
        flip(signs, row);
    }
}

/// Sylvester's matrix, which is its own inverse, on runs of each part.
fn turn_parts<T: Number>(steps: Steps<T>, high: u32, row: &mut [T]) {
    let (low, high) = row.split_at_mut(row.len() - high as usize);
    let blocks = parted_blocks(low.len(), high.len());
    for (part, block) in [low, high].into_iter().zip(blocks) {
        let basis = Basis::Hadamard { block };
        hadamard(steps, basis, false, part);
    }
}

fn flip<T: Number>(signs: &[i8], row: &mut [T]) {
    if signs.is_empty() {
        return;
    }
    assert_eq!(signs.len(), row.len(), "a sign for every value of a row");
    for (value, &sign) in row.iter_mut().zip(signs) {
        *value = *value * T::of(f64::from(sign));
    }
}

/// The orthonormal transform without signs, or its transpose.
fn hadamard<T: Number>(steps: Steps<T>, basis: Basis, transpose: bool, row: &mut [T]) {
    if let Err(error) = check(basis, row.len()) {
        panic!("{error}");
    }
    let (paley, block) = match basis {
        Basis::Original => return,
        Basis::Hadamard { block } => (None, block),
        Basis::Kronecker { order, block } => (Paley::get(order), block),
        Basis::Parted { .. } => unreachable!("its parts are turned one by one"),
    };
    (steps.sylvester)(row, block as usize);
    let mut width = f64::from(block);
    if let Some(paley) = paley {
        let plus = if transpose { paley.plus_transposed() } else { paley.plus() };
        (steps.kronecker)(row, block as usize, plus);
        width *= plus.len() as f64;
    }
    // The one rounding that is not an addition comes last, on every value.
    let scale = T::of(1.0 / width.sqrt());
    row.iter_mut().for_each(|value| *value = *value * scale);
}
