"""The pages' own vectors and tables, and the recorded lists of types."""

import unittest

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from gridmill import higgs, kinds, register_types, transform
from gridmill.planes import CODES, NORMS, TABLE
from support import DATA, bits, from_hex, grid, pages, table_rows, vectors

# Stock types that gguf 0.19.0 does not decode; the last it does not even know.
NOT_IN_GGUF = ("Q1_0", "Q2_0")


def decoded(vector: dict[str, str]) -> np.ndarray:
    """What the codes of a vector decode to, flat."""
    codes = from_hex(vector["codes"])
    kind = kinds.by_name(vector["type"])
    if kind is None:
        with np.errstate(all="ignore"):
            stock = GGMLQuantizationType[vector["type"]]
            return dequantize(codes.reshape(1, -1), stock).reshape(-1)
    group, cols = int(vector["group"]), int(vector["cols"])
    norms = from_hex(vector["norms"])
    # Norms are half precision, one for each group of a row.
    rows = norms.size // 2 // (cols // group)
    planes = {CODES: codes, NORMS: norms}
    if "table" in vector:
        planes[TABLE] = from_hex(vector["table"])
    elif kind.has_table:
        planes[TABLE] = grid(kind)
    for role, layout in kind.layouts(rows, cols, group).items():
        size = int(np.prod(layout.shape)) * (2 if role == NORMS else 1)
        assert planes[role].size == size, f"{kind.name}: {role}"
    return kind.decode(rows, cols, group, planes).reshape(-1)


class Pages(unittest.TestCase):
    def test_vectors_decode_as_written(self) -> None:
        seen = set()
        for page, text in pages():
            for vector in vectors(text):
                if vector["type"] in NOT_IN_GGUF:
                    continue
                with self.subTest(page=page, type=vector["type"]):
                    expected = np.array(vector["values"].split(), np.float32)
                    np.testing.assert_array_equal(bits(decoded(vector)), bits(expected))
                    seen.add(vector["type"])
        self.assertLessEqual({kind.name for kind in higgs.TYPES}, seen)
        self.assertIn("VPTQ_V4_K16", seen)
        self.assertIn("RESQ_P2_N256", seen)

    def test_blocks_are_those_of_the_page(self) -> None:
        text = dict(pages())["higgs.md"]
        rows = table_rows(text, ("name", "values", "bytes"))
        expected = {name: (int(values), int(size)) for name, values, size in rows}
        found = {kind.name: (kind.block_len, kind.block_bytes) for kind in higgs.TYPES}
        self.assertEqual(found, expected)

    def test_numbers_are_those_of_the_page(self) -> None:
        text = dict(pages())["higgs.md"]
        rows = table_rows(text, ("type", "number", "p", "bits per code"))
        expected = {row[0]: (int(row[1], 16), int(row[2]), int(row[3])) for row in rows}
        found = {kind.name: (kind.number, kind.p, kind.bits) for kind in higgs.TYPES}
        self.assertEqual(found, expected)

    def test_first_signs_of_seed_1(self) -> None:
        text = dict(pages())["transform.md"]
        line = text.split("first sixteen signs of seed 1:")[1].split("\n\n")[1]
        expected = [1 if sign == "+" else -1 for sign in line.split()]
        self.assertEqual(transform.signs_of_seed(1, 16).tolist(), expected)


class Records(unittest.TestCase):
    def test_types_are_those_of_the_recorded_list(self) -> None:
        register_types()
        lines = (DATA / "types.tsv").read_text().splitlines()[1:]
        for line in lines:
            name, number, values, size, _ = line.split("\t")
            if name == NOT_IN_GGUF[-1]:
                continue
            with self.subTest(type=name):
                kind = GGMLQuantizationType(int(number))
                self.assertEqual(kind.name, name)
                self.assertEqual(GGML_QUANT_SIZES[kind], (int(values), int(size)))

    def test_stock_types_decode_as_recorded(self) -> None:
        lines = (DATA / "types" / "golden.tsv").read_text().splitlines()
        cases = [line.split("\t")[1:] for line in lines if line.startswith("decode\t")]
        self.assertGreater(len(cases), 10)
        for name, codes, values in cases:
            if name in NOT_IN_GGUF:
                continue
            with self.subTest(type=name):
                found = decoded({"type": name, "codes": codes}).astype("<f4")
                expected = from_hex(values).view("<f4")
                np.testing.assert_array_equal(found, expected)


if __name__ == "__main__":
    unittest.main()
