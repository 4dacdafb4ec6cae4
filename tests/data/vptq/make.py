#!/usr/bin/env python3
"""Makes the layers of this folder: random VPTQ layers, and what the method's own code makes of them.

    make.py PACKAGE

PACKAGE is the unpacked wheel of the package `vptq` (0.0.5.post1 was used, with torch 2.15 on a CPU).
Its functions that pack indices and that decode a layer run as they are; what its files import
besides, and these functions do not use, is replaced by empty modules.

Every `layerNN.safetensors` has the tensors of one module of a checkpoint, without the module's name,
and `expected`, the weight that `dequant` gives. `layers.json` has the configurations.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent

#     out  in  v   k     kr   groups  outliers        dtype  norm   perm   packed bias
LAYERS = [
    (64, 64, 8, 256, 0, 1, None, "f16", True, True, True, False),
    (100, 48, 8, 64, 16, 1, None, "bf16", True, True, True, True),
    (96, 64, 4, 4096, 0, 1, None, "f16", False, True, True, False),
    (60, 40, 6, 512, 32, 1, None, "bf16", True, False, True, False),
    (96, 64, 12, 256, 256, 2, None, "f16", True, True, True, False),
    (90, 96, 12, 64, 64, 4, None, "bf16", True, True, True, False),
    (96, 72, 16, 128, 0, 1, (8, 4, 64), "f16", True, True, True, False),
    (50, 72, 8, 256, 64, 2, (8, 4, 32), "bf16", True, True, True, True),
    (64, 32, 16, 256, 16, 1, None, "f16", False, False, True, False),
    (64, 48, 8, 256, 16, 1, None, "f16", True, True, False, False),
    (70, 64, 6, 64, 0, 2, (16, 8, 16), "f16", False, True, False, False),
    (32, 40, 4, 16, 0, 1, None, "bf16", True, False, False, False),
]


def load(package):
    """The package's `pack_index` and `dequant`."""
    for name in ["accelerate", "tqdm", "sentence_transformers", "vptq", "vptq.utils", "vptq.ops",
                 "sentence_transformers.SentenceTransformer"]:
        sys.modules[name] = mock.MagicMock()
    functions = []
    for name, function in [("vptq.utils.pack", "pack_index"), ("vptq.ops.quant_gemm", "dequant")]:
        path = package / (name.replace(".", "/") + ".py")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        functions.append(getattr(module, function))
    return functions


def layer(number, shape, pack_index, dequant):
    out, width, v, k, kr, groups, outliers, dtype, norm, perm, packed, bias = shape
    random = torch.Generator().manual_seed(number)
    dtype = torch.bfloat16 if dtype == "bf16" else torch.float16
    count, v0, k0 = outliers or (0, -1, -1)
    group = (width - count) // groups
    blocks = math.ceil(out / v)

    def normal(*size, scale=1.0):
        return (scale * torch.randn(size, generator=random)).to(dtype)

    def codes(points, *size):
        return torch.randint(points, size, generator=random).to(torch.uint16).view(torch.int16)

    tensors = {"centroids.weight": normal(groups, k * v)}
    main, residual = codes(k, groups, blocks, group), None
    if kr:
        tensors["res_centroids.weight"] = normal(groups, kr * v, scale=0.3)
        residual = codes(kr, groups, blocks, group)
    if packed:
        bits, more = int(math.log2(k)), int(math.log2(kr)) if kr else 0
        tensors["indices"] = pack_index(main, bits, residual, more)
    else:
        tensors["indices"] = main
        if kr:
            tensors["res_indices"] = residual
    if outliers:
        tensors["outlier_centroids.weight"] = normal(1, k0 * v0, scale=3.0)
        tensors["outlier_indices"] = codes(k0, 1, math.ceil(out / v0), count)
    order = None
    if perm:
        order = torch.randperm(width, generator=random)
        narrow = order.to(torch.uint16).view(torch.int16)
        tensors["perm"] = narrow if packed else order
    if norm:
        tensors["weight_scale"] = (0.02 + 0.08 * torch.rand(width, generator=random)).to(dtype)
        tensors["weight_bias"] = normal(width, scale=0.01)
    if bias:
        tensors["bias"] = normal(out)
    tensors["expected"] = dequant(
        indices=tensors["indices"],
        centroids=tensors["centroids.weight"].view(groups, k, v),
        outlier_indices=tensors.get("outlier_indices"),
        outlier_centroids=tensors.get("outlier_centroids.weight"),
        res_indices=tensors.get("res_indices"),
        res_centroids=tensors.get("res_centroids.weight"),
        perm=None if order is None else order.to(torch.uint16),
        weight_scale=tensors.get("weight_scale"),
        weight_bias=tensors.get("weight_bias"),
        is_indice_packed=packed,
        enable_outlier=outliers is not None,
        enable_residual=kr > 0,
        enable_perm=perm,
        enable_norm=norm,
        num_centroids=k,
        num_outlier_centroids=k0,
        num_res_centroids=kr,
        padding=-out % v,
        outlier_padding=-out % v0 if outliers else 0,
        num_codebooks=groups,
        group_size=group,
        outlier_size=count,
        vector_len=v,
        outlier_vector_len=v0,
    ).contiguous()
    assert tensors["expected"].shape == (out, width)
    config = {
        "in_features": width, "out_features": out, "vector_lens": [v0, v],
        "num_centroids": [k0, k], "num_res_centroids": [-1, kr or -1], "group_num": groups,
        "group_size": group, "outlier_size": count, "indices_as_float": False,
        "enable_norm": norm, "enable_perm": perm, "is_indice_packed": packed, "bias": bias,
        "vector_quant_dim": "out",
    }
    return tensors, config


def main():
    functions = load(Path(sys.argv[1]))
    configs = []
    for number, shape in enumerate(LAYERS, 1):
        tensors, config = layer(number, shape, *functions)
        file = f"layer{number:02}.safetensors"
        save_file(tensors, FOLDER / file)
        configs.append({"file": file, "config": config})
    text = ",\n".join(json.dumps(config) for config in configs)
    (FOLDER / "layers.json").write_text(f"[\n{text}\n]\n")


main()
