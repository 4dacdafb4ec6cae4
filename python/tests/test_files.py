"""Small files with planes: what is read from them, and what is said of broken ones."""

import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
from gguf import GGUFReader, GGUFWriter

from gridmill import FormatError, Model, dump, planes, transform
from gridmill.planes import Layout
from support import Sketch, bits

NAME = "blk.0.ffn_up.weight"
CODES = "blk.0.ffn_up.codes"


class Case(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, sketch: Sketch) -> Path:
        return sketch.write(self.folder / "model.gguf")


class Files(Case):
    def test_weights_are_put_together(self) -> None:
        for type in ["HIGGS_P2_N16", "HIGGS_P1_N256", "HIGGS_P4_N4096", "VPTQ_V4_K16_R8",
                     "VPTQ_V4_K16_R8_F16", "VPTQ_V3_K8_BF16N"]:
            with self.subTest(type=type):
                sketch = Sketch(type)
                model = Model(self.write(sketch))
                self.assertEqual([tensor.name for tensor in model], [NAME, "output_norm.weight"])
                weight = model[NAME]
                self.assertEqual((weight.type, weight.shape), (type, (6, 64)))
                kind = sketch.kind
                expected = kind.decode(6, 64, sketch.group, sketch.planes)
                coded = weight.coded_values()
                np.testing.assert_array_equal(bits(coded), bits(expected))
                if kind.has_transform:
                    basis = transform.by_text("hadamard:16")
                    signs = np.resize(np.array([1, -1], np.int8), 64)
                    expected = transform.inverse(basis, signs, expected)
                np.testing.assert_array_equal(bits(weight.values()), bits(expected))
                self.assertEqual(model["output_norm.weight"].values().tolist(), [0, 1, 2, 3])
                shared = sum(model.shared_planes.values())
                own = sum(plane.size for plane in sketch.planes.values())
                self.assertEqual(weight.bytes + shared, own)

    def test_native_types(self) -> None:
        sketch = Sketch()
        expected = Model(self.write(sketch))[NAME].values()
        sketch.is_native = True
        path = self.write(sketch)
        np.testing.assert_array_equal(Model(path)[NAME].values(), expected)
        raw = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == CODES)
        self.assertEqual(raw.tensor_type.name, "HIGGS_P2_N16")
        self.assertEqual(raw.shape.tolist(), [64, 6])

    def test_outer_dimensions_of_one_and_the_shape_of_a_table(self) -> None:
        sketch = Sketch(rows=1)
        table = sketch.layouts[planes.TABLE]
        sketch.layouts[planes.TABLE] = table._replace(shape=(32,))
        norms = sketch.layouts[planes.NORMS]
        sketch.layouts[planes.NORMS] = norms._replace(shape=(2, 1, 1))
        self.assertEqual(Model(self.write(sketch))[NAME].values().shape, (1, 64))

    def test_shards(self) -> None:
        paths = []
        for number in range(2):
            path = self.folder / f"m-{number + 1:05}-of-00002.gguf"
            writer = GGUFWriter(path, "test")
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)
            writer.add_tensor(f"t{number}", np.full(3, number, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            paths.append(path)
        model = Model(paths[1])
        self.assertEqual([tensor.name for tensor in model], ["t0", "t1"])
        self.assertEqual(model.shard_count, 2)
        paths[0].unlink()
        with self.assertRaisesRegex(FormatError, "m-00001-of-00002.gguf, found no such file"):
            Model(paths[1])


class BrokenFiles(Case):
    def check(self, sketch: Sketch, message: str) -> None:
        """The whole message, after the path of the file."""
        path = self.write(sketch)
        with self.assertRaises(FormatError) as caught:
            Model(path)
        self.assertEqual(str(caught.exception), f"{path}: {message}")

    def test_registry(self) -> None:
        place = f"registry: tensor `{NAME}`: "
        in_all = "codes, norms, table, signs"
        for key, value, message in [
            ("tensor.type", "HIGGS_P3", f"{place}type: expected one of the pages, found "
             "`HIGGS_P3`"),
            ("tensor.group", 24, f"{place}group: expected a multiple of 16 that divides 64 "
             "columns, found 24"),
            ("tensor.cols", 65, f"{place}columns: expected a multiple of 64, found 65"),
            ("tensor.transform", "hadamard:3", f"{place}transform: expected one that fits 64 "
             "columns, found `hadamard:3`"),
            ("tensor.transform", "none", f"{place}role of plane `blk.0.ffn_up.signs`: expected "
             "codes, norms, table, found `signs`"),
            ("plane.role", "code", f"{place}role of plane `{CODES}`: expected {in_all}, "
             "found `code`"),
            ("plane.role", "norms", f"{place}planes in the role `norms`: expected one, found two"),
            ("plane.tensor", 1, f"registry: tensor of plane `{CODES}`: expected less than 1, "
             "found 1"),
            ("plane.name", "blk.0.ffn_up.norms", f"{place}plane `blk.0.ffn_up.norms`: expected one "
             "use, found another use"),
            ("plane.name", "x", f"tensor `{NAME}`: plane `x`: expected type I8 and shape [16, 6], "
             "found no such tensor"),
        ]:
            with self.subTest(key=key, value=value):
                sketch = Sketch()
                sketch.registry[f"gridmill.{key}"][0] = value
                self.check(sketch, message)

    def test_missing_planes_and_elements(self) -> None:
        sketch = Sketch()
        for key in ["tensor", "role", "name"]:
            sketch.registry[f"gridmill.plane.{key}"].pop(1)
        self.check(sketch, f"registry: tensor `{NAME}`: plane in the role `norms`: expected one, "
                   "found none")
        sketch = Sketch()
        sketch.registry["gridmill.plane.role"].pop()
        self.check(sketch, "elements of `gridmill.plane.role`: expected 4, found 3")
        sketch = Sketch()
        del sketch.registry["gridmill.tensor.rows"]
        self.check(sketch, "`gridmill.tensor.rows`: expected an array of integers, found nothing")
        sketch = Sketch()
        sketch.version = 2
        self.check(sketch, "`gridmill.format_version`: expected 1, found 2")

    def test_shapes(self) -> None:
        sketch = Sketch()
        sketch.registry["gridmill.tensor.rows"][0] = 7
        self.check(sketch, f"tensor `{NAME}`: plane `{CODES}`: expected type I8 and shape [16, 7], "
                   "found type I8 and shape [16, 6]")
        sketch = Sketch()
        norms = sketch.layouts[planes.NORMS]
        sketch.layouts[planes.NORMS] = Layout(sketch.layouts[planes.CODES].type, norms.shape)
        sketch.planes[planes.NORMS] = sketch.planes[planes.NORMS][: 2 * 6]
        self.check(sketch, f"tensor `{NAME}`: plane `blk.0.ffn_up.norms`: expected type F16 and "
                   "shape [2, 6], found type I8 and shape [2, 6]")

    def test_signs(self) -> None:
        sketch = Sketch()
        sketch.planes[planes.SIGNS][3] = 0
        self.check(sketch, f"tensor `{NAME}`: sign: expected 1 or -1, found 0")

    def test_a_weight_that_is_whole_too(self) -> None:
        sketch = Sketch()
        sketch.registry["gridmill.tensor.name"][0] = "output_norm.weight"
        self.check(sketch, "tensor `output_norm.weight`: the weight: expected as planes alone, "
                   "found whole, too")

    def test_numbers_beyond_tables(self) -> None:
        def sketch() -> Sketch:
            made = Sketch("VPTQ_V4_K16_G2_O3V2K8_F16")
            made.planes[planes.COLUMN_GROUPS] = np.zeros(64, np.uint8)
            made.planes[planes.COLUMN_GROUPS][[5, 9, 60]] = 255
            made.planes[planes.OUTLIER_CODES] = np.zeros(2 * 3 * 3, np.uint8)
            return made

        Model(self.write(sketch()))
        made = sketch()
        made.planes[planes.OUTLIER_CODES][2] = 8
        self.check(made, f"tensor `{NAME}`: outlier code: expected less than 8, found 8")
        made = sketch()
        made.planes[planes.COLUMN_GROUPS][0] = 2
        self.check(made, f"tensor `{NAME}`: column group: expected less than 2, found 2")
        made = sketch()
        made.planes[planes.COLUMN_GROUPS][5] = 0
        self.check(made, f"tensor `{NAME}`: outlier columns: expected 3, found 2")

    def test_transform_of_floats(self) -> None:
        sketch = Sketch("VPTQ_V4_K16_F16")
        sketch.registry["gridmill.tensor.transform"][0] = "hadamard:64"
        self.check(sketch, f"registry: tensor `{NAME}`: transform of VPTQ_V4_K16_F16: expected "
                   "`none`, found `hadamard:64`")

    def test_every_truncated_file_is_refused(self) -> None:
        whole = self.write(Sketch()).read_bytes()
        path = self.folder / "cut.gguf"
        # The last tensor of the file has 16 bytes, and is padded to 32.
        for size in range(0, len(whole) - 16, 7):
            path.write_bytes(whole[:size])
            with self.assertRaises(FormatError, msg=f"{size} bytes"):
                Model(path)
        path.write_bytes(whole[: len(whole) - 17])
        message = "tensor `output_norm.weight`: end of the file: expected byte .* or later, found"
        with self.assertRaisesRegex(FormatError, message):
            Model(path)


class Command(Case):
    def run_command(self, *arguments: str) -> str:
        out = io.StringIO()
        with mock.patch("sys.argv", ["gridmill-dump", *arguments]):
            with contextlib.redirect_stdout(out):
                dump.main()
        return out.getvalue()

    def test_text(self) -> None:
        path = str(self.write(Sketch()))
        lines = self.run_command(path).splitlines()
        self.assertIn("gridmill.format_version    1", lines)
        line = next(line for line in lines if line.startswith(NAME))
        # 16 bytes of codes and two norms for each of six rows.
        self.assertEqual(line.split(maxsplit=6)[1:6], ["HIGGS_P2_N16", "64", "x", "6", "2.5"])
        self.assertTrue(line.endswith("120    hadamard:16, group 32"), line)
        self.assertEqual(lines[-1], "2 planes that weights share, 96 bytes")
        self.assertIn("blk.0.ffn_up.norms, 24 bytes", self.run_command(path, "--tensor", NAME))

    def test_json(self) -> None:
        path = str(self.write(Sketch()))
        data = json.loads(self.run_command(path, "--json"))
        expected = {"name": NAME, "type": "HIGGS_P2_N16", "shape": [64, 6], "bytes": 120,
                    "bits_per_weight": 2.5, "transform": "hadamard:16", "group": 32}
        self.assertEqual(data["tensors"][0], expected)
        one = json.loads(self.run_command(path, "--json", "--tensor", NAME))
        self.assertEqual(one["planes"]["codes"], {"name": CODES, "bytes": 96})

    def test_errors(self) -> None:
        path = str(self.write(Sketch()))
        for arguments in [(path, "--tensor", "none"), (str(self.folder / "none.gguf"),)]:
            with self.assertRaisesRegex(SystemExit, "^error: "):
                self.run_command(*arguments)


if __name__ == "__main__":
    unittest.main()
