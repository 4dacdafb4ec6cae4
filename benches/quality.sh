#!/usr/bin/env bash
# Perplexity and KL divergence of converted files against the unquantised model, in one table.
# usage: quality.sh GRIDMILL F32.gguf TEXT WINDOWS 'NAME:FLAGS OF CONVERT'...
# Bytes are those of the file, vocabulary and metadata included.
set -euo pipefail
gridmill=$1 model=$2 text=$3 windows=$4
shift 4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
score() { "$gridmill" perplexity "$1" "$text" --chunks "$windows" --json "${@:2}"; }
score "$model" --save-logits "$work/base" >"$work/base.json"
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"; }
echo "unquantised: $(stat -c %s "$model") bytes, perplexity $(field "$work/base.json" perplexity)"
echo
echo '| type | file bytes | perplexity | mean KL | same top-1 % |'
echo '|---|---|---|---|---|'
for row in "$@"; do
    name=${row%%:*} flags=${row#*:}
    # The flags are words by intent.
    # shellcheck disable=SC2086
    "$gridmill" convert "$model" "$work/out.gguf" $flags >/dev/null
    score "$work/out.gguf" --against "$work/base" >"$work/out.json"
    python3 - "$name" "$(stat -c %s "$work/out.gguf")" "$work/out.json" <<'PY'
import json, sys
name, size, path = sys.argv[1:]
score = json.load(open(path))
print(f"| {name} | {int(size):,} | {score['perplexity']:.3f} ± {score['perplexity_se']:.3f} "
      f"| {score['kl_mean']:.4f} ± {score['kl_mean_se']:.4f} | {100 * score['same_top1']:.1f} |")
PY
done
