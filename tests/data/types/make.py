"""Makes golden.tsv: what gguf-py decodes and encodes, for every stock tensor type.

Usage: python make.py > golden.tsv   (needs the packages numpy and gguf; made with gguf 0.19.0)

Each line is `decode NAME BLOCKS VALUES` or `encode NAME VALUES BLOCKS`, tab-separated; blocks are
hexadecimal bytes, values hexadecimal little-endian float32.
"""

import warnings

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

warnings.filterwarnings("ignore")  # overflows and not-a-numbers are meant

FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
SCALES = {  # where the half-precision numbers are in a block
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}
ENCODED = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]

# Pairs of half-precision numbers: ordinary, negative and subnormal, the smallest, the largest,
# zeros of both signs, an infinity, not a number.
HALVES = [
    (0x2E66, 0xB400), (0x8123, 0x03FF), (0x0001, 0x8001), (0x7BFF, 0x7BFF),
    (0x8000, 0x0000), (0x7C00, 0xFC00), (0x7E01, 0x3C00),
]


def words(values):
    return np.ascontiguousarray(values).tobytes().hex()


def blocks_of(name, rng):
    kind = GGMLQuantizationType[name]
    length, size = GGML_QUANT_SIZES[kind]
    if name in FLOATS:
        return rng.integers(0, 256, (1, 64 * size), dtype=np.uint8)
    # The long blocks have all their codes in the first; they get fewer of the extremes.
    halves = HALVES if length == 32 else HALVES[:2] + HALVES[5:6]
    blocks = rng.integers(0, 256, (len(halves), size), dtype=np.uint8)
    for block, pair in zip(blocks, halves):
        for at, half in zip(SCALES[name], pair):
            block[at : at + 2] = [half & 0xFF, half >> 8]
    return blocks


def values_to_encode(name, rng):
    signal = 0.1 + 2 * np.cos(np.arange(32))
    rows = [
        signal,
        rng.standard_normal(32) * 0.02,
        -np.abs(rng.standard_normal(32)) - 1,
        np.linspace(-7.5, 8, 32),  # halves, and the extreme at the end
        np.where(np.arange(32) % 2, 4.0, -4.0),  # two that are equally far from zero
        rng.standard_normal(32) * 1e-6,  # a subnormal scale
        rng.standard_normal(32) * 3e5,  # beyond the half-precision numbers
        np.full(32, -0.75),
        np.zeros(32),
        np.eye(32)[17] * 127,
    ]
    rows = np.array(rows, dtype=np.float32)
    return rows[:7] if name in FLOATS else rows


def main():
    for name in [*FLOATS, *SCALES]:
        rng = np.random.default_rng(list(name.encode()))
        kind = GGMLQuantizationType[name]
        for block in blocks_of(name, rng):
            values = quants.dequantize(block.reshape(1, -1), kind).astype("<f4")
            print("decode", name, words(block), words(values), sep="\t")
    for name in ENCODED:
        rng = np.random.default_rng(7)
        for row in values_to_encode(name, rng):
            coded = quants.quantize(row.reshape(1, -1), GGMLQuantizationType[name])
            print("encode", name, words(row.astype("<f4")), words(coded), sep="\t")


main()
