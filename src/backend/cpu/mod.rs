//! The fast backend: SIMD kernels over a persistent pool.
