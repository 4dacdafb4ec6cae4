#!/usr/bin/env python3
"""Whether a model says the same on a GPU as on the CPU: perplexity, and greedy text.

usage: gpu_agrees.py GRIDMILL MODEL TEXT [DEVICE]

Prints both perplexities over 20 windows of 512 tokens, and for ten prompts whether the next 48
tokens are the same, and if not, after how many characters they part.
"""
import json
import subprocess
import sys

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at a temperature of",
    "def fibonacci(n):",
    "The three primary colours are",
    "In 1969, the first human",
    "Photosynthesis is the process by which",
    "My favourite recipe for bread begins with",
    "The difference between weather and climate is",
    "To be, or not to be,",
]


def output(program, *words):
    done = subprocess.run([program, *words], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def main():
    program, model, text = sys.argv[1:4]
    devices = ["cpu", sys.argv[4] if len(sys.argv) > 4 else "gpu"]
    perplexities = []
    for device in devices:
        words = ["perplexity", model, text, "--chunks", "20", "--device", device, "--json"]
        perplexities.append(json.loads(output(program, *words))["perplexity"])
    apart = 100 * (perplexities[1] / perplexities[0] - 1)
    print(f"perplexity: {perplexities[0]:.4f} cpu, {perplexities[1]:.4f} gpu, {apart:+.3f}%")
    same = 0
    for prompt in PROMPTS:
        words = ["run", model, "-p", prompt, "-n", "48", "--temp", "0", "--device"]
        texts = [output(program, *words, device) for device in devices]
        is_same = texts[0] == texts[1]
        same += is_same
        parts = next((i for i, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))
        print(f"{'same' if is_same else f'parts after {parts} characters'}: {prompt}")
    print(f"{same} of {len(PROMPTS)} the same")


main()
