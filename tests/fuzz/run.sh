#!/bin/sh
# Coverage-guided fuzzing with the stable compiler: ./run.sh TARGET [SECONDS] [LIBFUZZER OPTIONS]
#
# cargo-fuzz wants a nightly compiler for the address sanitizer. The coverage instrumentation alone
# is an LLVM pass that stable accepts; Rust's own checks stand in for the sanitizer. The target
# triple is named so that build scripts are not instrumented.
set -eu
cd "$(dirname "$0")"
target=$1
seconds=${2:-600}
shift "$(($# < 2 ? $# : 2))"
host=$(rustc -vV | sed -n 's/^host: //p')
pass='-Cllvm-args=-sanitizer-coverage'
RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module $pass-level=4 \
$pass-inline-8bit-counters $pass-pc-table $pass-trace-compares" \
    cargo build --release --target "$host" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
exec "target/$host/release/$target" "corpus/$target" "-artifact_prefix=artifacts/$target/" \
    "-max_total_time=$seconds" -print_final_stats=1 "$@"
