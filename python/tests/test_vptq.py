"""Layers of checkpoints against what the method's own code makes of them, and names of types."""

import json
import unittest

import numpy as np

from gridmill import kinds, planes
from gridmill.kinds import Kind
from gridmill.planes import Planes
from support import DATA, bits, safetensors

FOLDER = DATA / "vptq"


class Layer:
    """A module of a checkpoint, and its planes as the page has them."""

    def __init__(self, file: str, config: dict) -> None:
        self.tensors = safetensors(FOLDER / file)
        self.rows, self.cols = config["out_features"], config["in_features"]
        self.v0, self.v = config["vector_lens"]
        self.k0, self.k = config["num_centroids"]
        self.residual = max(config["num_res_centroids"][1], 1)
        self.tables, self.group_len = config["group_num"], config["group_size"]
        self.outliers = config["outlier_size"]
        self.is_packed, self.has_norm = config["is_indice_packed"], config["enable_norm"]
        self.format = self.tensors["centroids.weight"][0]
        self.order = np.arange(self.cols)
        if config["enable_perm"]:
            dtype, _, data = self.tensors["perm"]
            self.order = np.frombuffer(data, "<u2" if dtype == "I16" else "<i8").astype(int)

    def kind(self) -> Kind:
        name = f"VPTQ_V{self.v}_K{self.k}"
        name += f"_R{self.residual}" if self.residual > 1 else ""
        name += f"_G{self.tables}" if self.tables > 1 else ""
        name += f"_O{self.outliers}V{self.v0}K{self.k0}" if self.outliers else ""
        return kinds.by_name(f"{name}_{self.format}{'N' if self.has_norm else ''}")

    def planes(self) -> Planes:
        """The planes by role, as bytes."""
        residual = self.data("res_centroids.weight") if self.residual > 1 else b""
        made = {planes.CODES: self.codes(), planes.TABLE: self.data("centroids.weight") + residual}
        if self.has_norm:
            made[planes.COLUMN_NORMS] = self.data("weight_scale")
            made[planes.COLUMN_MEANS] = self.data("weight_bias")
        if self.tables > 1 or self.outliers:
            groups = np.full(self.cols, 255, np.uint8)
            stored = np.arange(self.cols - self.outliers) // self.group_len
            groups[self.order[self.outliers :]] = stored
            made[planes.COLUMN_GROUPS] = groups.tobytes()
        if self.outliers:
            codes = np.frombuffer(self.data("outlier_indices"), "<u2").reshape(-1, self.outliers)
            columns = np.argsort(self.order[: self.outliers])
            made[planes.OUTLIER_CODES] = codes[:, columns].tobytes()
            made[planes.OUTLIER_TABLE] = self.data("outlier_centroids.weight")
        return {role: np.frombuffer(data, np.uint8) for role, data in made.items()}

    def codes(self) -> bytes:
        """The code plane: columns in the model's order, the lowest bit first."""
        width = (self.k.bit_length() - 1) + (self.residual.bit_length() - 1)
        stored = self.packed(width) if self.is_packed else self.apart()
        # (tables, blocks, columns of a group) to columns that stand group by group
        blocks = stored.shape[1]
        stored = stored.transpose(1, 0, 2).reshape(blocks, -1)
        codes = np.zeros((blocks, self.cols), np.uint32)
        codes[:, self.order[self.outliers :]] = stored
        places = codes[:, :, None] >> np.arange(width, dtype=np.uint32) & 1
        return np.packbits(places.reshape(-1).astype(np.uint8), bitorder="little").tobytes()

    def packed(self, width: int) -> np.ndarray:
        """Codes from words of 32 bits, the lowest bit first, both codes side by side."""
        data = np.frombuffer(self.data("indices"), np.uint8)
        words = np.unpackbits(data, bitorder="little").reshape(
            self.tables, -(-self.rows // self.v), -1
        )
        used = words[:, :, : self.group_len * width]
        codes = used.reshape(*used.shape[:2], self.group_len, width).astype(np.uint32)
        return (codes << np.arange(width, dtype=np.uint32)).sum(axis=3, dtype=np.uint32)

    def apart(self) -> np.ndarray:
        """Codes from two tensors of two bytes each."""
        shape = (self.tables, -1, self.group_len)
        codes = np.frombuffer(self.data("indices"), "<u2").reshape(shape).astype(np.uint32)
        if self.residual > 1:
            second = np.frombuffer(self.data("res_indices"), "<u2").reshape(shape)
            codes |= second.astype(np.uint32) << (self.k.bit_length() - 1)
        return codes

    def data(self, name: str) -> bytes:
        return self.tensors[name][2]

    def expected(self) -> np.ndarray:
        """What the method's own code gives, `(rows, cols)` float32."""
        dtype, shape, data = self.tensors["expected"]
        if dtype == "F16":
            return np.frombuffer(data, "<f2").astype(np.float32).reshape(shape)
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)


class Checkpoints(unittest.TestCase):
    def test_layers_decode_as_the_published_code_decodes_them(self) -> None:
        layers = json.loads((FOLDER / "layers.json").read_text())
        self.assertEqual(len(layers), 12)
        for entry in layers:
            layer = Layer(entry["file"], entry["config"])
            kind, made = layer.kind(), layer.planes()
            with self.subTest(layer=entry["file"], type=kind.name):
                layouts = kind.layouts(layer.rows, layer.cols, 0)
                self.assertEqual(set(layouts), set(made))
                for role, layout in layouts.items():
                    size = int(np.prod(layout.shape)) * (1 if layout.type.name == "I8" else 2)
                    self.assertEqual(made[role].size, size, role)
                kind.check(made, entry["file"])
                found = kind.decode(layer.rows, layer.cols, 0, made)
                np.testing.assert_array_equal(bits(found), bits(layer.expected()))


class Names(unittest.TestCase):
    def test_names_that_are_types(self) -> None:
        kind = kinds.by_name("vptq_v12_k4096_r256_g4_o64v4k1024_bf16n")
        self.assertEqual((kind.v, kind.bits, kind.width, kind.tables), (12, 12, 20, 4))
        self.assertEqual((kind.outliers.count, kind.outliers.v), (64, 4))
        self.assertEqual((kind.outliers.points, kind.format), (1024, "BF16"))
        self.assertTrue(kind.has_column_norms and kind.has_groups)
        plain = kinds.by_name("VPTQ_V8_K65536")
        self.assertEqual((plain.width, plain.format, plain.residual), (16, "I8", 1))
        signed = kinds.by_name("VPTQ_V8_K512_S")
        self.assertEqual((signed.width, signed.signs, plain.signs), (16, True, False))

    def test_names_that_are_none(self) -> None:
        for name in ["VPTQ", "VPTQ_V8", "VPTQ_V8_K4000", "VPTQ_V17_K16", "VPTQ_V1_K16",
                     "VPTQ_V8_K131072", "VPTQ_V8_K16_R3", "VPTQ_V8_K16_R1", "VPTQ_V8_K16_G2",
                     "VPTQ_V8_K16_G17_F16", "VPTQ_V8_K16_G1_F16", "VPTQ_V08_K16",
                     "VPTQ_V8_K16_F16_R4", "VPTQ_V8_K16_O0V4K4_F16", "VPTQ_V8_K16_N", "VPTQ_V8_K16_S_F16",
                     "VPTQ_V8_K16_O8V4K4", "VPTQ_V8_K16_O65536V4K4_F16", "VPTQ_V8_K16_F16 "]:
            self.assertIsNone(kinds.by_name(name), name)


if __name__ == "__main__":
    unittest.main()
