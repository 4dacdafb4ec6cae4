"""Each architecture's logits in Gridmill and in llama.cpp beside those of transformers.

    cargo test --test it models::logits_are -- --nocapture 2> distances.txt
    python3 benches/architectures.py distances.txt GRIDMILL

The models of `tests/data/models` are small and random; `make.py` there made them, and their logits with
transformers. A distance is the root of the mean squared difference over that of the logits; Gridmill's are
the largest of all ways to bring the two sequences through a model, and llama.cpp's is of whole sequences,
with a cache of floats: of the file as it is, and of what `gridmill export --to F32` makes of it, since
llama.cpp rounds what it multiplies with halves to halves.
"""

import collections
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from llama_cpp import Model

MODELS = pathlib.Path(__file__).parent.parent / "tests/data/models"
# Phi-3's, by which llama.cpp knows where spaces are stripped.
WANTED = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
DEVICES = {"Reference": "reference", "Cpu": "CPU", "Gpu": "GPU"}


def golden(path):
    """The sequences of a file: ids and `(tokens, vocabulary)` logits."""
    words = numpy.fromfile(path, numpy.uint32)
    vocabulary, count = words[:2]
    at = 2
    for _ in range(count):
        length = words[at]
        ids = words[at + 1:at + 1 + length]
        at += 1 + length
        logits = words[at:at + length * vocabulary].view(numpy.float32)
        at += length * vocabulary
        yield ids.tolist(), logits.reshape(length, vocabulary).astype(numpy.float64)


def distance(found, expected):
    return numpy.sqrt(((found - expected) ** 2).mean() / (expected ** 2).mean())


def ours(path):
    """By model and device, the largest distance that the test reports."""
    largest = collections.defaultdict(float)
    for line in open(path):
        found = re.match(r"([\w-]+), (\w+).*: distance ([\d.e+-]+)$", line)
        if found:
            key = (found[1], DEVICES[found[2]])
            largest[key] = max(largest[key], float(found[3]))
    return largest


def with_tokens(path, folder):
    """A copy that has the tokens which llama.cpp looks for in every model of this architecture."""
    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    tokens[-len(WANTED):] = WANTED
    copy = pathlib.Path(folder) / "copy.gguf"
    writer = GGUFWriter(copy, architecture)
    new = MetadataDetails(GGUFValueType.ARRAY, tokens, sub_type=GGUFValueType.STRING)
    copy_with_new_metadata(reader, writer, {"tokenizer.ggml.tokens": new}, [])
    return copy


def theirs(name, program=None):
    """The distance of a file in llama.cpp, exported by a program if one is given."""
    path = MODELS / f"{name}.gguf"
    with tempfile.TemporaryDirectory() as folder:
        if program:
            exported = pathlib.Path(folder) / "exported.gguf"
            command = [program, "export", path, exported, "--to", "F32"]
            subprocess.run(command, check=True, capture_output=True)
            path = exported
        # The context decides which factors of long texts llama.cpp takes.
        path = with_tokens(path, folder) if name.startswith("phi3") else path
        model = Model(path, context=64)
    pairs = golden(MODELS / f"{name}.golden")
    return f"{max(distance(model.logits(ids), logits) for ids, logits in pairs):.1e}"


def main():
    distances = ours(sys.argv[1])
    devices = list(DEVICES.values())
    heads = ["model", *devices, "llama.cpp", "llama.cpp, F32"]
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for path in sorted(MODELS.glob("*.gguf")):
        cells = [distances.get((path.stem, device)) for device in devices]
        cells = ["not run" if cell is None else f"{cell:.1e}" for cell in cells]
        cells += [theirs(path.stem), theirs(path.stem, sys.argv[2])]
        print("| " + " | ".join([path.stem, *cells]) + " |", flush=True)


main()
