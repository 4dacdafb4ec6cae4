//! The program: parses flags, calls one command, prints the error chain, chooses the exit code.

fn main() {}
