//! What an instruction set has to offer.

/// A loop that can be compiled for any instruction set.
pub trait WithSimd {
    /// What it returns.
    type Output;

    /// The loop; mark it `#[inline(always)]`.
    fn with<S: Simd>(self, simd: S) -> Self::Output;
}

/// 256 pairs of int8 values, as the lookups of the instruction sets want them.
#[derive(Clone, PartialEq, Eq)]
#[repr(align(64))]
pub struct PairTable {
    /// The first value of each pair, as a byte that [`Simd::dot4`] takes for a weight.
    pub(super) even: [u8; 256],
    /// The second value of each pair.
    pub(super) odd: [u8; 256],
    /// Both, first one low; gathers of 32 bits read one entry past the last.
    pub(super) both: [u16; 258],
}

impl PairTable {
    /// From the pairs `(256, 2)`; a -128, which the kernels cannot multiply, is read as -127.
    pub fn new(pairs: &[i8], level: super::Level) -> PairTable {
        assert_eq!(pairs.len(), 512, "a pair table has 256 pairs");
        let mut table = PairTable { even: [0; 256], odd: [0; 256], both: [0; 258] };
        let byte = |value: i8| value.max(-127) as u8 ^ if level.is_biased() { 0x80 } else { 0 };
        for (i, pair) in pairs.as_chunks::<2>().0.iter().enumerate() {
            (table.even[i], table.odd[i]) = (byte(pair[0]), byte(pair[1]));
            table.both[i] = u16::from_le_bytes([table.even[i], table.odd[i]]);
        }
        table
    }
}

impl super::Level {
    /// Whether [`Simd::BIAS`] is not zero.
    pub fn is_biased(self) -> bool {
        self == super::Level::Avx512
    }
}

/// The operations of one instruction set. A value of the type is the proof that the machine has it.
///
/// A vector has `LANES` floats or 32-bit integers, or `4 * LANES` bytes.
///
/// # Safety
/// Every `unsafe` method reads or writes as many elements at its pointer as its comment says; the
/// pointer must be valid for that, and need not be aligned.
#[allow(clippy::missing_safety_doc, reason = "said once, above")]
pub trait Simd: Copy {
    /// Floats of a vector.
    const LANES: usize;
    /// Added to the weights of [`Simd::dot4`], whose instruction wants them unsigned: 128 or 0. The
    /// caller subtracts `BIAS` times the sum of the other operand.
    const BIAS: i32;

    /// Floats.
    type F32: Copy;
    /// 32-bit integers.
    type I32: Copy;
    /// Bytes.
    type Bytes: Copy;
    /// A [`PairTable`] in registers, if they have room for it.
    type Pairs: Copy;
    /// 64 bytes, in as many vectors as they need.
    type Points: Copy + AsRef<[Self::Bytes]> + AsMut<[Self::Bytes]>;

    /// The same number in each lane.
    fn splat(self, x: f32) -> Self::F32;
    /// `LANES` floats.
    unsafe fn load(self, at: *const f32) -> Self::F32;
    /// `LANES` floats.
    unsafe fn store(self, at: *mut f32, x: Self::F32);
    /// `LANES` half-precision numbers.
    unsafe fn load_f16(self, at: *const u16) -> Self::F32;
    /// `LANES` half-precision numbers, rounded to nearest, halves to even.
    unsafe fn store_f16(self, at: *mut u16, x: Self::F32);
    /// `LANES` bfloat16 numbers.
    unsafe fn load_bf16(self, at: *const u16) -> Self::F32;
    /// `LANES` bytes, each a number from 0 to 255.
    unsafe fn load_u8(self, at: *const u8) -> Self::F32;
    /// `LANES` bytes, each two numbers from 0 to 15: those of the low halves, then of the others.
    unsafe fn load_u4(self, at: *const u8) -> (Self::F32, Self::F32);
    /// `LANES / 4` floats, each four times.
    unsafe fn load_spread(self, at: *const f32) -> Self::F32;
    /// a + b.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a - b.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a * b.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a / b.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a * b + c, rounded once where the instruction set can.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Without its sign.
    fn abs(self, a: Self::F32) -> Self::F32;
    /// The bits moved up by 23: a small integer becomes an exponent.
    fn shift_to_exponent(self, a: Self::F32) -> Self::F32;
    /// The sum of the lanes.
    fn sum(self, a: Self::F32) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::F32) -> f32;
    /// `LANES` int8 numbers, rounded to nearest, halves to even; x within -128..=127.
    unsafe fn store_codes(self, at: *mut i8, x: Self::F32);

    /// The same number in each lane.
    fn splat_i32(self, x: i32) -> Self::I32;
    /// One number and zeros.
    fn first_i32(self, x: i32) -> Self::I32;
    /// `LANES` 32-bit integers.
    unsafe fn load_i32(self, at: *const i32) -> Self::I32;
    /// As floats.
    fn to_f32(self, x: Self::I32) -> Self::F32;

    /// `4 * LANES` bytes.
    unsafe fn load_bytes(self, at: *const i8) -> Self::Bytes;
    /// `4 * LANES` bytes.
    unsafe fn store_bytes(self, at: *mut i8, x: Self::Bytes);
    /// Says that a byte will be read soon; any pointer will do.
    fn prefetch(self, at: *const u8);
    /// `2 * LANES` bytes, then zeros.
    unsafe fn load_half(self, at: *const i8) -> Self::Bytes;
    /// 4 bytes, in each lane.
    unsafe fn splat_4(self, at: *const i8) -> Self::Bytes;
    /// Signed weights as [`Simd::dot4`] takes them: `BIAS` added.
    fn bias(self, w: Self::Bytes) -> Self::Bytes;
    /// As [`Simd::dot4`], for weights without `BIAS`: slower, and exact in each lane.
    fn dot4_signed(self, sum: Self::I32, w: Self::Bytes, x: Self::Bytes) -> Self::I32;
    /// Adds to each lane the products of its four bytes: w within -127..=127 plus `BIAS`, x within
    /// -127..=127. Exact.
    fn dot4(self, sum: Self::I32, w: Self::Bytes, x: Self::Bytes) -> Self::I32;

    /// As [`Simd::dot4`], for weights within 0..=127 and without `BIAS`. Exact in each lane.
    fn dot4_unsigned(self, sum: Self::I32, w: Self::Bytes, x: Self::Bytes) -> Self::I32;

    /// `LANES` int8 numbers.
    unsafe fn load_i8(self, at: *const i8) -> Self::F32;
    /// `LANES / 2` int8 numbers, each twice.
    unsafe fn load_i8_twice(self, at: *const i8) -> Self::F32;
    /// Runs of 16 bytes, each twice and `stride` from the one before; once where a vector is one.
    unsafe fn load_twice(self, at: *const i8, stride: usize) -> Self::Bytes;
    /// Runs of 32 bytes, each `stride` from the one before; half a run where a vector is that.
    unsafe fn load_runs(self, at: *const i8, stride: usize) -> Self::Bytes;
    /// The same byte everywhere.
    fn splat_byte(self, x: i8) -> Self::Bytes;
    /// All bits of byte `i` are bit `i`, as far as the vector goes.
    fn spread_bits(self, bits: u64) -> Self::Bytes;
    /// The bits of both.
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// The bits of either.
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// a - b, without the bit that does not fit.
    fn sub_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each four bytes, as one number, moved down by the count of their lane, below 32.
    fn shift_down(self, a: Self::Bytes, counts: Self::I32) -> Self::Bytes;
    /// Each four bytes, as one number, moved up by the count of their lane, below 32.
    fn shift_up(self, a: Self::Bytes, counts: Self::I32) -> Self::Bytes;
    /// What the codes, below 16, are in a table of 16 bytes, which [`Simd::load_twice`] repeats.
    fn look_up_16(self, table: Self::Bytes, codes: Self::Bytes) -> Self::Bytes;

    /// The negatives of bytes within -127..=127 where `signs` has `bit`, one bit of every byte.
    fn negate(self, a: Self::Bytes, signs: Self::Bytes, bit: Self::Bytes) -> Self::Bytes;

    /// Eight points of eight numbers, turned: byte `4 * (8 * h + r) + i` is number r of point
    /// `4 * h + i`, so that a lane of [`Simd::dot4`] has one row's weights in four columns. The
    /// eight bytes before each may be read, too.
    unsafe fn points(self, at: [*const i8; 8]) -> Self::Points;
    /// The same of the sums of two points each, cut to -127..=127.
    unsafe fn point_sums(self, at: [*const i8; 8], more: [*const i8; 8]) -> Self::Points;
    /// 8 bytes, each four of them in the lanes that [`Simd::points`] has these columns in.
    unsafe fn spread_8(self, at: *const i8) -> Self::Points;

    /// Readies a table.
    fn pairs(self, table: &PairTable) -> Self::Pairs;
    /// Looks `4 * LANES` one-byte codes up: the values in order, biased.
    fn look_up_pairs(
        self,
        pairs: &Self::Pairs,
        table: &PairTable,
        codes: Self::Bytes,
    ) -> (Self::Bytes, Self::Bytes);
}

/// Methods of a [`Simd`] type written as plain functions of intrinsics.
macro_rules! ops {
    () => {};
    (fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $($body:tt)* } $($rest:tt)*) => {
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            #[allow(unused_unsafe, reason = "some bodies are plain Rust")]
            // SAFETY: `self` exists only where the instructions do.
            unsafe { $($body)* }
        }
        ops! { $($rest)* }
    };
    (
        unsafe fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $($body:tt)* }
        $($rest:tt)*
    ) => {
        #[inline(always)]
        unsafe fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            #[allow(unused_unsafe, reason = "some bodies are plain Rust")]
            // SAFETY: `self` exists only where the instructions do; the caller vouches for the
            // pointers.
            unsafe { $($body)* }
        }
        ops! { $($rest)* }
    };
}
