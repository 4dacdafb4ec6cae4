//! Plain loops, one function per op, one thread, f32 and integers: the oracle.
