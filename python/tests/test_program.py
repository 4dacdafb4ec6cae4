"""Files that the program writes, against what it decodes them to.

The variable GRIDMILL is the path of the program.
"""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np

from gridmill import Model, Weight, higgs, transform
from gridmill.planes import COLUMN_GROUPS, OUTLIER_CODES, SIGNS
from support import DATA, Sketch, bits

PROGRAM = os.environ.get("GRIDMILL")
MODELS = DATA / "models"

# Rows of 96 are no whole blocks of some types; there, their rotation is Kronecker's.
WIDE = ["--tensor-type", "ffn_down=HIGGS_P1_N32"]
KRONECKER = ["--tensor-type", "ffn_down=HIGGS_P2_N256", "--transform", "kronecker:12x8",
             "--group", "16"]


def cases() -> list[tuple[str, str, list[str]]]:
    """Model, type, and other options of conversions."""
    made = [
        ("qwen3", kind.name, [] if kind.block_len == 32 else WIDE) for kind in higgs.TYPES
    ]
    made += [
        ("llama", "HIGGS_P2_N256", KRONECKER),
        ("qwen3", "HIGGS_P2_N64", [*WIDE, "--native-types"]),
        ("qwen3", "HIGGS_P1_N64", ["--transform", "none", "--group", "32"]),
        ("qwen3", "higgs4", ["--seed", "77"]),
        ("gemma3", "HIGGS_P1_N16", []),
        ("qwen3", "VPTQ_V8_K256", []),
        ("qwen3", "VPTQ_V6_K64_R16", []),
        ("qwen3", "VPTQ_V5_K32", []),
        ("qwen3", "VPTQ_V6_K16_S", []),
        ("llama", "VPTQ_V16_K16_R4", ["--native-types", "--transform", "none"]),
        ("qwen3", "Q4_0", []),
    ]
    return made


def imported(type: str) -> Sketch:
    """A tiny model, one of whose weights has planes as imported checkpoints have."""
    sketch = Sketch(type, rows=96, cols=64)
    sketch.host = MODELS / "llama.gguf"
    outliers = sketch.kind.outliers
    if sketch.kind.has_groups:
        groups = np.arange(64) % sketch.kind.tables
        groups[: outliers.count if outliers else 0] = 255
        sketch.planes[COLUMN_GROUPS] = np.random.default_rng(2).permutation(groups).astype(np.uint8)
    if outliers:
        codes = sketch.planes[OUTLIER_CODES].view("<u2") % outliers.points
        sketch.planes[OUTLIER_CODES] = codes.astype("<u2").view(np.uint8)
    return sketch


@unittest.skipUnless(PROGRAM, "GRIDMILL is not set to the path of the program")
class Program(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def convert(self, source: Path, name: str, *options: str) -> Path:
        target = self.folder / f"{name}.gguf"
        self.run_program("convert", str(source), str(target), *options)
        return target

    def run_program(self, *arguments: str) -> str:
        done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr}")
        return done.stdout

    def check(self, path: Path) -> None:
        """Compares names, types, shapes, bytes and values, these to the bit."""
        model, plain = Model(path), Model(self.convert(path, "plain", "--to", "F32"))
        told = json.loads(self.run_program("inspect", "--json", str(path)))["tensors"]
        self.assertEqual([tensor.name for tensor in model], [entry["name"] for entry in told])
        for tensor, entry in zip(model, told):
            self.assertEqual(tensor.type, entry["type"])
            self.assertEqual(list(reversed(tensor.shape)), entry["shape"])
            expected = plain[tensor.name].values()
            np.testing.assert_array_equal(bits(tensor.values()), bits(expected), tensor.name)

    def test_conversions(self) -> None:
        for model, type, options in cases():
            with self.subTest(model=model, type=type, options=options):
                self.check(self.convert(MODELS / f"{model}.gguf", "own", "--to", type, *options))

    def test_sizes(self) -> None:
        for type in ["HIGGS_P2_N256", "VPTQ_V8_K256", "Q8_0"]:
            path = self.convert(MODELS / "qwen3.gguf", "own", "--to", type)
            told = json.loads(self.run_program("inspect", "--json", str(path)))["tensors"]
            expected = [(entry["bytes"], entry["bits_per_weight"]) for entry in told]
            found = [(tensor.bytes, tensor.bits_per_weight) for tensor in Model(path)]
            self.assertEqual(found, expected, type)

    def test_imported_types(self) -> None:
        for type in ["VPTQ_V4_K16_F16", "VPTQ_V3_K8_BF16N", "VPTQ_V7_K64_R8_F16N",
                     "VPTQ_V12_K4096_R256_G4_BF16", "VPTQ_V4_K16_O3V2K8_F16",
                     "VPTQ_V8_K256_R16_G3_O5V4K64_BF16N"]:
            with self.subTest(type=type):
                self.check(imported(type).write(self.folder / "own.gguf"))

    def test_signs_are_made_from_the_seed(self) -> None:
        path = self.convert(MODELS / "qwen3.gguf", "own", "--to", "higgs4", "--seed", "77")
        weights = [tensor for tensor in Model(path) if isinstance(tensor, Weight)]
        self.assertTrue(weights)
        for weight in weights:
            self.assertEqual(weight.record.sign_seed, 77)
            expected = transform.signs_of_seed(77, weight.record.cols)
            np.testing.assert_array_equal(weight.planes[SIGNS].view(np.int8), expected)


if __name__ == "__main__":
    unittest.main()
