//! The dozen vector operations the kernels need, one file per instruction set, chosen once.
//!
//! A loop is written once, over `S: Simd`, as the `with` of a [`WithSimd`], and every function it
//! calls is `#[inline(always)]`: so the whole loop is compiled inside the one function that is
//! entered with the instruction set switched on ([`Level::dispatch`]).

mod math;
#[macro_use]
mod ops;
mod portable;
pub mod products;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use math::{exp, gelu, sigmoid, silu, tanh};
pub use ops::{PairTable, Simd, WithSimd};

use std::fmt;
use std::sync::OnceLock;

/// An instruction set that the kernels are written for, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust: the oracle, and whatever machine has nothing better.
    Portable,
    /// 128-bit vectors of aarch64, with the integer dot product.
    Neon,
    /// 256-bit vectors, fused multiply-add and half-precision conversion.
    Avx2,
    /// 512-bit vectors with byte permutes (VBMI) and the integer dot product (VNNI).
    Avx512,
}

impl Level {
    /// Every instruction set, best last.
    pub const ALL: [Level; 4] = [Level::Portable, Level::Neon, Level::Avx2, Level::Avx512];

    /// As on the command line: `--simd avx2`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// The instruction set with this name.
    pub fn by_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        static AVAILABLE: OnceLock<[bool; 4]> = OnceLock::new();
        AVAILABLE.get_or_init(|| Level::ALL.map(Level::detect))[self as usize]
    }

    /// Runs a loop compiled for this instruction set.
    ///
    /// # Panics
    /// If this machine does not have it.
    pub fn dispatch<W: WithSimd>(self, work: W) -> W::Output {
        assert!(self.is_available(), "this machine has no {self}");
        match self {
            Level::Portable => work.with(portable::Portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the instructions are there, as just checked.
            Level::Avx2 => unsafe { avx2::enter(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the instructions are there, as just checked.
            Level::Avx512 => unsafe { avx512::enter(work) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the instructions are there, as just checked.
            Level::Neon => unsafe { neon::enter(work) },
            #[allow(unreachable_patterns, reason = "other machines have fewer levels")]
            _ => unreachable!("an available level has an arm"),
        }
    }

    fn detect(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.detect()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Level::Neon => {
                std::arch::is_aarch64_feature_detected!("neon")
                    && std::arch::is_aarch64_feature_detected!("dotprod")
                    && std::arch::is_aarch64_feature_detected!("fp16")
            }
            _ => false,
        }
    }

    /// The instruction sets of this machine, best last.
    pub fn available() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|level| level.is_available())
    }

    /// The best instruction set of this machine.
    pub fn best() -> Level {
        Level::available().last().expect("the portable level is always there")
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
