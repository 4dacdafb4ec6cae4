//! The vector operations of every instruction set that the machine has.

use gridmill::simd::{Level, PairTable, Simd, WithSimd, exp, gelu, silu, tanh};

/// A function of `simd`, by its place in [`FUNCTIONS`], on every value.
struct Map<'a>(usize, &'a mut [f32]);

/// A name, what it is, and how far off it may be: of the result, and absolutely.
type Function = (&'static str, fn(f64) -> f64, f64, f64);

// The exponent of gelu is up to 88 and takes three roundings of 2^-24: 1.6e-5 of the result.
const FUNCTIONS: [Function; 4] = [
    ("exp", |x| x.clamp(-87.0, 88.0).exp(), 3e-7, 0.0),
    ("silu", |x| x / (1.0 + (-x).exp()), 6e-7, 1e-34),
    ("gelu", |x| x / (1.0 + (-2.0 * root() * (x + 0.044715 * x * x * x)).exp()), 1.6e-5, 1e-34),
    ("tanh", f64::tanh, 0.0, 3e-7),
];

fn root() -> f64 {
    (2.0 / std::f64::consts::PI).sqrt()
}

impl WithSimd for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        for values in self.1.chunks_exact_mut(S::LANES) {
            let at = values.as_mut_ptr();
            // SAFETY: the chunk is a vector.
            unsafe {
                let x = s.load(at);
                let y = match self.0 {
                    0 => exp(s, x),
                    1 => silu(s, x),
                    2 => gelu(s, x),
                    _ => tanh(s, x),
                };
                s.store(at, y);
            }
        }
    }
}

#[test]
fn functions_match_f64() {
    let inputs: Vec<f32> = (-4800..4800).map(|i| i as f32 / 100.0 + 0.003).collect();
    for level in Level::available() {
        for (i, (name, function, relative, absolute)) in FUNCTIONS.into_iter().enumerate() {
            let mut found = inputs.clone();
            level.dispatch(Map(i, &mut found));
            for (&x, &found) in inputs.iter().zip(&found) {
                let expected = function(f64::from(x));
                let bound = relative * expected.abs() + absolute;
                let error = (f64::from(found) - expected).abs();
                assert!(
                    error <= bound,
                    "{name}({x}) ({level}): expected {expected}, found {found}"
                );
            }
        }
    }
}

/// The sums of products of 64 int8 numbers, by `dot4` and by `dot4_signed`.
struct Dots<'a>(&'a [i8; 64], &'a [i8; 64]);

impl WithSimd for Dots<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> [f32; 2] {
        let total: i32 = self.1.iter().map(|&x| i32::from(x)).sum();
        let (mut biased, mut signed) = (s.first_i32(-S::BIAS * total), s.splat_i32(0));
        for at in (0..64).step_by(4 * S::LANES) {
            // SAFETY: a vector of the 64.
            unsafe {
                let w = s.load_bytes(self.0.as_ptr().add(at));
                let x = s.load_bytes(self.1.as_ptr().add(at));
                biased = s.dot4(biased, s.bias(w), x);
                signed = s.dot4_signed(signed, w, x);
            }
        }
        [biased, signed].map(|sum| s.sum(s.to_f32(sum)))
    }
}

#[test]
fn integer_products_are_exact() {
    let ramp = |step: i32| -> [i8; 64] {
        std::array::from_fn(|i| ((i as i32 * step + 40) % 255 - 127) as i8)
    };
    for level in Level::available() {
        for w in [[127; 64], [-127; 64], ramp(37), ramp(101), [0; 64]] {
            for x in [[127; 64], [-127; 64], ramp(53), ramp(7)] {
                let products = w.iter().zip(&x).map(|(&w, &x)| i32::from(w) * i32::from(x));
                let expected = products.sum::<i32>() as f32;
                assert_eq!(level.dispatch(Dots(&w, &x)), [expected; 2], "{level}");
            }
        }
    }
}

/// Looks the codes 0..=255 up, and gives the values without their bias.
struct LookUp<'a>(&'a PairTable);

impl WithSimd for LookUp<'_> {
    type Output = Vec<i8>;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> Vec<i8> {
        let codes: Vec<i8> = (0..=255_u8).map(u8::cast_signed).collect();
        let pairs = s.pairs(self.0);
        let mut found = Vec::new();
        for codes in codes.chunks_exact(4 * S::LANES) {
            // SAFETY: the chunk is a vector.
            let (low, high) =
                s.look_up_pairs(&pairs, self.0, unsafe { s.load_bytes(codes.as_ptr()) });
            for vector in [low, high] {
                // Each value times one, four at a time, would add up; so each gets its own turn.
                let mut lanes = vec![[0.0; 16]; 4];
                for (i, lane) in lanes.iter_mut().enumerate() {
                    let mut one = [0_i8; 64];
                    one.iter_mut().skip(i).step_by(4).for_each(|x| *x = 1);
                    // SAFETY: 64 bytes and 16 floats are the longest vectors.
                    unsafe {
                        let dot = s.dot4(s.splat_i32(-S::BIAS), vector, s.load_bytes(one.as_ptr()));
                        s.store(lane.as_mut_ptr(), s.to_f32(dot));
                    }
                }
                found.extend((0..4 * S::LANES).map(|i| lanes[i % 4][i / 4] as i8));
            }
        }
        found
    }
}

#[test]
fn pairs_are_looked_up_in_order() {
    let table: Vec<i8> = (0..512).map(|i| ((i * 89 + i / 7) % 255 - 127) as i8).collect();
    for level in Level::available() {
        let found = level.dispatch(LookUp(&PairTable::new(&table, level)));
        assert_eq!(found, table, "{level}");
    }
}

/// Bytes as numbers, and their halves as numbers.
struct Load<'a>(&'a [u8], &'a mut [Vec<f32>; 3]);

impl WithSimd for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        for bytes in self.0.chunks_exact(S::LANES) {
            let mut lanes = [[0.0; 16]; 3];
            // SAFETY: the chunk is a vector, and 16 floats are the longest one.
            unsafe {
                let (low, high) = s.load_u4(bytes.as_ptr());
                s.store(lanes[0].as_mut_ptr(), s.load_u8(bytes.as_ptr()));
                s.store(lanes[1].as_mut_ptr(), low);
                s.store(lanes[2].as_mut_ptr(), high);
            }
            for (all, lanes) in self.1.iter_mut().zip(&lanes) {
                all.extend(&lanes[..S::LANES]);
            }
        }
    }
}

#[test]
fn codes_are_loaded_as_numbers() {
    let bytes: Vec<u8> = (0..=255).collect();
    let expected = [|byte: u8| byte, |byte| byte & 15, |byte| byte >> 4]
        .map(|part| bytes.iter().map(|&byte| f32::from(part(byte))).collect::<Vec<f32>>());
    for level in Level::available() {
        let mut found = [const { Vec::new() }; 3];
        level.dispatch(Load(&bytes, &mut found));
        assert_eq!(found, expected, "{level}");
    }
}
