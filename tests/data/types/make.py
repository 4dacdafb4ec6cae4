"""Makes golden.tsv: what gguf-py decodes and encodes, for every stock tensor type; and ggml.tsv:
every number that ggml ever gave to a type.

Usage: python make.py > golden.tsv
       python make.py types > ggml.tsv   (both need numpy and gguf; made with gguf 0.19.0)

A line of golden.tsv is one of these, tab-separated; blocks are hexadecimal bytes, values
hexadecimal little-endian float32:

    decode NAME BLOCKS VALUES
    encode NAME VALUES BLOCKS
    digest NAME COUNT SHA256    of the values of so many blocks of random bytes, so that every point
                                of every table is in it; a not-a-number is 0x7fc00000

gguf 0.19.0 neither knows Q2_0 nor decodes Q1_0: these two are decoded here. All lines were compared
once with dequantize_row_* of ggml (commit d99724f2, 2026-08-21), compiled: they are its bits.

The tables in src/types/grids of the types that code eight or four values at once are
`quants.NAME.grid` of the package after `init_grid()`, as int8 (IQ1_M has that of IQ1_S):

    quants.IQ2_S.init_grid()
    quants.IQ2_S.grid.astype("i1").tofile("iq2_s.i8")
"""

import hashlib
import sys
import warnings

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

warnings.filterwarnings("ignore")  # overflows and not-a-numbers are meant

FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
SCALES = {  # where the half-precision numbers are in a block
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
    "IQ1_S": [0], "IQ1_M": [], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0],
    "IQ3_S": [0], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": [], "Q1_0": [0], "Q2_0": [0],
}
# The smallest, subnormal and largest scales, and those that are special, where scales are bytes.
BYTE_SCALES = {
    "MXFP4": [[0], [1], [2], [127], [254], [255]],
    "NVFP4": [[0x00, 0x7F, 0x80, 0xFF], [0x01, 0x07, 0x08, 0x7E], [0x38, 0x3F, 0x81, 0xFE]],
}
SIZES = {kind.name: size for kind, size in GGML_QUANT_SIZES.items()} | {"Q2_0": (64, 18)}
DIGEST_BLOCKS = 4096
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
    length, size = SIZES[name]
    if name in FLOATS:
        return rng.integers(0, 256, (1, 64 * size), dtype=np.uint8)
    if name in BYTE_SCALES:
        scales = BYTE_SCALES[name]
        blocks = rng.integers(0, 256, (len(scales), size), dtype=np.uint8)
        for block, scale in zip(blocks, scales):
            block[: len(scale)] = scale
        return blocks
    # The long blocks have all their codes in the first; they get fewer of the extremes.
    halves = HALVES if length <= 128 else HALVES[:2] + HALVES[5:6]
    blocks = rng.integers(0, 256, (len(halves), size), dtype=np.uint8)
    for block, pair in zip(blocks, halves):
        for at, half in zip(SCALES[name], pair):
            block[at : at + 2] = [half & 0xFF, half >> 8]
        if name == "IQ1_M":  # its half-precision number is in the high halves of four bytes
            for i in range(4):
                block[49 + 2 * i] = block[49 + 2 * i] & 0xF | pair[0] >> 4 * i << 4 & 0xF0
    return blocks


def decode(name, blocks):
    if name not in ("Q1_0", "Q2_0"):
        return quants.dequantize(blocks, GGMLQuantizationType[name]).astype("<f4")
    scale = blocks[:, :2].copy().view("<f2").astype("<f4")
    bits = 1 if name == "Q1_0" else 2
    codes = blocks[:, 2:, None] >> np.arange(0, 8, bits, dtype=np.uint8) & (2**bits - 1)
    codes = codes.reshape(len(blocks), -1).astype("<f4")
    return scale * (2 * codes - 1 if bits == 1 else codes - 1)


def random_bytes(count):
    """Marsaglia's xorshift64, the top byte of each number; as in tests/it/types.rs."""
    state, out = 0x9E3779B97F4A7C15, bytearray()
    for _ in range(count):
        state ^= state << 13 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 7
        state ^= state << 17 & 0xFFFFFFFFFFFFFFFF
        out.append(state >> 56)
    return np.frombuffer(bytes(out), np.uint8)


def digest(name):
    size = SIZES[name][1]
    values = decode(name, random_bytes(DIGEST_BLOCKS * size).reshape(-1, size)).view("<u4")
    values = np.where(values & 0x7FFFFFFF > 0x7F800000, np.uint32(0x7FC00000), values)
    return hashlib.sha256(values.astype("<u4").tobytes()).hexdigest()


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


def golden():
    for name in [*FLOATS, *SCALES]:
        rng = np.random.default_rng(list(name.encode()))
        for block in blocks_of(name, rng):
            values = decode(name, block.reshape(1, -1))
            print("decode", name, words(block), words(values), sep="\t")
    for name in ENCODED:
        rng = np.random.default_rng(7)
        for row in values_to_encode(name, rng):
            coded = quants.quantize(row.reshape(1, -1), GGMLQuantizationType[name])
            print("encode", name, words(row.astype("<f4")), words(coded), sep="\t")
    for name in SCALES:
        print("digest", name, DIGEST_BLOCKS, digest(name), sep="\t")


# `enum ggml_type` of ggml.h (commit d99724f2) less what the package has. The package gives Q8_1 40
# bytes; block_q8_1 of ggml-common.h has 36.
REMOVED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}
ACTIVATIONS = ["Q8_1", "Q8_K"]  # ggml makes them while it multiplies; no file has them
NUMBERS = ["I8", "I16", "I32", "I64", "F64"]  # ggml multiplies no weight of these types


def types():
    names = {int(kind): kind.name for kind in GGML_QUANT_SIZES} | {42: "Q2_0"}
    sizes = SIZES | {"Q8_1": (32, 36)}
    print("id", "name", "values", "bytes", "use", sep="\t")
    for number, name in sorted((names | REMOVED).items()):
        length, size = sizes.get(name, (0, 0))
        use = "removed" if number in REMOVED else "weight"
        use = "activation" if name in ACTIVATIONS else "number" if name in NUMBERS else use
        print(number, name, length, size, use, sep="\t")


if sys.argv[1:] == ["types"]:
    types()
else:
    golden()
