#!/usr/bin/env python3
"""Quality over size: converts a model in every way and compares each file with the unquantised model.

    benches/quality.py GRIDMILL SOURCE.gguf CALIBRATION.txt TEXT --chunks N [--sizes BYTES,...]
                       [--only WORD,...] [--bits B,...] [--keep FOLDER]

Prints a table in Markdown, a row as soon as it is measured. CALIBRATION must not be the text that is
scored. The folder keeps statistics, sensitivities and the unquantised model's distributions, so that
a second run needs only the conversions.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BITS = [2.1, 2.5, 3, 3.25, 3.5, 4, 4.25, 5, 6]
# Without data rows have a scale per 64 weights, and nothing is smaller than this.
DATA_FREE_MIN = 2.25
UNIFORM = ["higgs2", "HIGGS_P2_N32", "higgs3", "HIGGS_P4_N4096", "HIGGS_P2_N128", "higgs4",
           "HIGGS_P1_N32", "HIGGS_P1_N64"]
LEARNED = ["vptq2", "vptq2.25", "vptq2.5", "vptq3", "vptq4"]


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("gridmill")
    flags.add_argument("source", type=Path)
    flags.add_argument("calibration")
    flags.add_argument("text")
    flags.add_argument("--chunks", type=int, required=True)
    flags.add_argument("--sizes", default="")
    flags.add_argument("--only", default="nearest,calibrated,white,chosen,sizes")
    flags.add_argument("--bits", default=",".join(map(str, BITS)))
    flags.add_argument("--keep", type=Path)
    args = flags.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    source, base, out = folder / "source.gguf", folder / "base.logits", folder / "out.gguf"
    if not source.exists():
        shutil.copy(args.source, source)
    if not base.exists():
        whole = folder / "f32.gguf"
        run(args.gridmill, "convert", source, whole, "--to", "F32")
        run(args.gridmill, "perplexity", whole, args.text, "--chunks", args.chunks, "--device",
            "cpu", "--save-logits", base)
        whole.unlink()
    listen = ["--calibrate", args.calibration]
    bits = [float(word) for word in args.bits.split(",")]
    plans = {
        "nearest": [("uniform, data-free", [], ["--to", kind]) for kind in UNIFORM],
        "calibrated": [("uniform, calibrated", listen, ["--to", kind]) for kind in UNIFORM],
        "white": [("chosen, data-free", [], ["--bits", max(b, DATA_FREE_MIN)]) for b in bits],
        "chosen": [("chosen, calibrated", listen, ["--bits", b]) for b in bits],
        "sizes": [("chosen, calibrated", listen, ["--size", size])
                  for size in filter(None, args.sizes.split(","))],
        "learned": [("learned points, calibrated", listen, ["--to", kind]) for kind in LEARNED],
        "tuned": [("the same, fine-tuned", [*listen, "--fine-tune"], ["--to", kind])
                  for kind in LEARNED],
        "chosen-tuned": [("chosen, fine-tuned", [*listen, "--fine-tune"], ["--bits", b])
                         for b in bits],
    }
    print("| method | flags | file bytes | perplexity | mean KL | expected KL | same top-1 % |"
          " seconds |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for word in args.only.split(","):
        for method, more, wish in plans[word]:
            begun = time.time()
            done = run(args.gridmill, "convert", source, out, *wish, *more)
            seconds = time.time() - begun
            expected = re.search(r"expected KL divergence ([\d.]+)", done.stderr)
            score = json.loads(run(args.gridmill, "perplexity", out, args.text, "--chunks",
                                   args.chunks, "--device", "cpu", "--against", base,
                                   "--json").stdout)
            cells = [method, " ".join(map(str, wish)), f"{out.stat().st_size:,}",
                     f"{score['perplexity']:.3f}",
                     f"{score['kl_mean']:.4f} ± {score['kl_mean_se']:.4f}",
                     expected.group(1)[:6] if expected else "",
                     f"{100 * score['same_top1']:.1f}", f"{seconds:.0f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


main()
