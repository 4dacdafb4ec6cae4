"""Makes the tiny models of this folder and what they must compute.

    python make.py [--f32] [FOLDER]        needs torch, transformers, gguf and numpy

Every model is an architecture of `transformers` with random weights. It is written twice: as
`NAME.gguf`, with the keys, names, shapes and row orders that llama.cpp's converter gives such a
model, and as `NAME.golden`, the logits that `transformers` computes in f32 on the CPU with plain
("eager") attention. Matrices are rounded to half precision before anything is computed, so the F16
tensors of the GGUF file hold exactly the weights that the logits come from; `--f32` writes the same
values as F32, for programs that would round activations to meet an F16 matrix.

A golden file is little-endian: u32 vocabulary, u32 number of sequences, then for each sequence u32
length, u32 tokens[length], f32 logits[length][vocabulary].

The committed files were made with torch 2.15.0, transformers 5.23.0 (qwen3moe:
5.24.0), gguf 0.19.0, numpy 2.4.6 (those with yarn: 2.3.5).
Weights and tokens come from numpy's PCG64, seeded by model and tensor name: a second run gives the
same GGUF files. Logits depend on the order of a library's sums and may differ in the last bits.
"""

import argparse
import math
import struct
import zlib
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers

LENGTHS = (40, 23)  # tokens of the two sequences of every model

# Printable ASCII as byte-level BPE spells it, line feed and space among it, then merged pairs.
LETTERS = [chr(c) for c in range(0x21, 0x7F)] + ["\u010a", "\u0120"]
MERGES = (
    "e r,i n,o n,a n,t h,r e,e n,o u,a t,i s,o r,i t,a r,a l,e s,l e,s t,v e,\u0120 t,\u0120 a,"
    "\u0120 s,\u0120 w,\u0120 c,\u0120 o,\u0120 b,in g,\u0120t h,an d,\u0120th e,\u0120a nd"
).split(",")
CONTROL = ["<|begin|>", "<|end|>"]
TOKENS = LETTERS + CONTROL + [merge.replace(" ", "") for merge in MERGES]
VOCABULARY = len(TOKENS)
assert VOCABULARY == len(set(TOKENS)) == 128

# What all models share.
COMMON = dict(
    vocab_size=VOCABULARY,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    bos_token_id=TOKENS.index("<|begin|>"),
    eos_token_id=TOKENS.index("<|end|>"),
    pad_token_id=None,
    attn_implementation="eager",
)
LLAMA = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)
GEMMA = dict(
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_hidden_layers=7,  # five with a window, one without, one with
    head_dim=32,
    query_pre_attn_scalar=32,  # as llama.cpp scales, except for the model with 62 layers
    sliding_window=8,
    tie_word_embeddings=True,
)


def rope(base, kind="default", **more):
    return dict(rope_type=kind, rope_theta=base, **more)


PHI_LONG = dict(
    hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
    num_hidden_layers=2, sliding_window=None, tie_word_embeddings=True,
    rope_parameters=rope(
        10000.0, "longrope", partial_rotary_factor=0.75,
        short_factor=[1.0, 1.1, 1.3, 1.6, 2.0, 2.5], long_factor=[1.0, 1.5, 3.0, 6.0, 12.0, 24.0]),
)

# name: architecture in GGUF, model class, configuration.
MODELS = {
    # Grouped queries, a head of its own. Without `head_dim` no key length is written.
    "llama": ("llama", "Llama", LLAMA | dict(
        intermediate_size=96, tie_word_embeddings=False, rope_parameters=rope(10000.0))),
    # The rope of Llama 3.1: with 64 original positions the pairs meet all three of its cases.
    "llama-rope3": ("llama", "Llama", LLAMA | dict(
        intermediate_size=32, head_dim=16, tie_word_embeddings=True, rope_parameters=rope(
            10000.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=64))),
    # Biases on all four matrices of attention, one key head, heads narrower than 96 / 2.
    "llama-bias": ("llama", "Llama", LLAMA | dict(
        hidden_size=96, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, attention_bias=True, tie_word_embeddings=True,
        rope_parameters=rope(500000.0))),
    # Positions divided by four, every query head with a key head of its own.
    "mistral": ("llama", "Mistral", LLAMA | dict(
        hidden_size=32, intermediate_size=96, num_attention_heads=3, num_key_value_heads=3,
        head_dim=16, sliding_window=None, num_hidden_layers=3, tie_word_embeddings=False,
        rope_parameters=rope(1000000.0, "linear", factor=4.0))),
    "qwen2": ("qwen2", "Qwen2", LLAMA | dict(
        intermediate_size=32, tie_word_embeddings=True, rope_parameters=rope(1000000.0))),
    "qwen3": ("qwen3", "Qwen3", LLAMA | dict(
        intermediate_size=96, head_dim=32, tie_word_embeddings=False,
        rope_parameters=rope(1000000.0))),
    # YaRN from 64 tokens to 256: one pair stays, eleven are slowed down, four are in between.
    "qwen3-yarn": ("qwen3", "Qwen3", LLAMA | dict(
        hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, tie_word_embeddings=True, rope_parameters=rope(
            10000.0, "yarn", factor=4.0, original_max_position_embeddings=64))),
    # The same with neighbours as pairs, and an amplitude that the configuration says.
    "llama-yarn": ("llama", "Llama", LLAMA | dict(
        hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, tie_word_embeddings=True, rope_parameters=rope(
            10000.0, "yarn", factor=8.0, original_max_position_embeddings=32,
            attention_factor=1.5))),
    # Other bounds, which llama.cpp does not read in this architecture.
    "qwen2-yarn": ("qwen2", "Qwen2", LLAMA | dict(
        hidden_size=64, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=True, rope_parameters=rope(
            10000.0, "yarn", factor=16.0, original_max_position_embeddings=128, beta_fast=4.0,
            beta_slow=0.5, mscale=1.0, mscale_all_dim=0.5))),
    # Three of six experts for each token; no layer has the width between them.
    "qwen3moe": ("qwen3moe", "Qwen3Moe", LLAMA | dict(
        intermediate_size=96, moe_intermediate_size=32, num_experts=6, num_experts_per_tok=3,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], head_dim=32,
        experts_implementation="eager", tie_word_embeddings=False, rope_parameters=rope(1000000.0))),
    "gemma3": ("gemma3", "Gemma3", GEMMA | dict(rope_parameters=dict(
        full_attention=rope(1000000.0), sliding_attention=rope(5000.0)))),
    # Bounded logits; positions divided by eight in the layer that sees everything, and no key for
    # the base of the others, as in files of older converters.
    "gemma3-softcap": ("gemma3", "Gemma3", GEMMA | dict(
        final_logit_softcapping=3.0, rope_parameters=dict(
            full_attention=rope(1000000.0, "linear", factor=8.0),
            sliding_attention=rope(10000.0)))),
    # Fused matrices, and a window in every layer.
    "phi3": ("phi3", "Phi3", LLAMA | dict(
        intermediate_size=96, sliding_window=8, tie_word_embeddings=False,
        rope_parameters=rope(10000.0))),
    # Three quarters of a head are rotated, and no layer has a window.
    "phi3-partial": ("phi3", "Phi3", LLAMA | dict(
        hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
        sliding_window=None, tie_word_embeddings=True,
        rope_parameters=rope(500000.0, partial_rotary_factor=0.75))),
    # Factors for each pair, those for texts longer than 16 tokens, and turned values are louder.
    "phi3-long": ("phi3", "Phi3", PHI_LONG | dict(original_max_position_embeddings=16)),
    # Both texts are within 64 tokens.
    "phi3-short": ("phi3", "Phi3", PHI_LONG | dict(original_max_position_embeddings=64)),
    # The fourth of five layers has no rope.
    "smollm3": ("smollm3", "SmolLM3", LLAMA | dict(
        hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
        num_hidden_layers=5, tie_word_embeddings=True, rope_parameters=rope(50000.0))),
}

# Architectures in which the values that are rotated together are neighbours.
INTERLEAVED = ("llama", "smollm3")

# transformers' name of a tensor without its layer: GGUF's.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def random(*names):
    return np.random.default_rng(zlib.crc32("/".join(names).encode()))


def weight(model, name, shape):
    """Random values with a spread that makes attention choose, norms matter and logits vary."""
    rng = random(model, name)
    if name.endswith("norm.weight"):
        values = rng.uniform(0.5, 1.5, shape)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            values *= 1.5  # unit heads alone would give nearly even attention
        return values.astype(np.float32)
    values = rng.standard_normal(shape)
    if name.endswith("bias"):
        return (0.5 * values).astype(np.float32)
    scale = 0.3 if "embed_tokens" in name else 1.5 / math.sqrt(shape[-1])
    return (scale * values).astype(np.float16).astype(np.float32)


def make_model(name):
    """The model of `transformers`, and its weights under their names there."""
    arch, kind, numbers = MODELS[name]
    config = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(transformers, config)(**COMMON | numbers)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    weights = {}
    for key, parameter in sorted(model.named_parameters()):
        # Tied weights occur once, under the name of the embedding.
        values = torch.from_numpy(weight(name, key, tuple(parameter.shape)))
        # Gemma's norms multiply by 1 + w; GGUF files hold the sum.
        shift = 1.0 if arch == "gemma3" and key.endswith("norm.weight") else 0.0
        with torch.no_grad():
            parameter.copy_(values - shift)
        weights[key] = (parameter.detach() + shift).numpy()
    assert ("lm_head.weight" in weights) != config.tie_word_embeddings
    return model, split_experts(weights)


def split_experts(weights):
    """The model has each expert's gate and up in one matrix; its checkpoints and GGUF do not."""
    split = {}
    for key, values in weights.items():
        if key.endswith(".experts.gate_up_proj"):
            gate, up = np.split(values, 2, axis=1)
            split[key.replace("gate_up_proj", "gate_proj.weight")] = np.ascontiguousarray(gate)
            split[key.replace("gate_up_proj", "up_proj.weight")] = np.ascontiguousarray(up)
        else:
            split[f"{key}.weight" if ".experts." in key else key] = values
    return split


def interleaved(rows, heads):
    """Rows of a head from (all first halves, all second halves) to pairs of neighbours."""
    pairs = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def rope_factors(numbers):
    """What llama.cpp divides the frequencies of Llama 3.1 by."""
    scaling, dim = numbers["rope_parameters"], numbers["head_dim"]
    original = scaling["original_max_position_embeddings"]
    low, high, factor = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    factors = []
    for i in range(0, dim, 2):
        turns = original / (2 * math.pi * scaling["rope_theta"] ** (i / dim))
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(factor)
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    assert 1.0 in factors and factor in factors and len(set(factors)) > 3, factors
    return np.array(factors, dtype=np.float32)


def write_keys(out, name):
    arch, _, numbers = MODELS[name]
    numbers = COMMON | numbers
    out.add_type(gguf.GGUFType.MODEL)
    out.add_name(name)
    out.add_block_count(numbers["num_hidden_layers"])
    out.add_context_length(numbers["max_position_embeddings"])
    out.add_embedding_length(numbers["hidden_size"])
    out.add_feed_forward_length(numbers["intermediate_size"])
    out.add_head_count(numbers["num_attention_heads"])
    out.add_head_count_kv(numbers["num_key_value_heads"])
    if "num_experts" in numbers:
        out.add_expert_count(numbers["num_experts"])
        out.add_expert_used_count(numbers["num_experts_per_tok"])
        out.add_expert_feed_forward_length(numbers["moe_intermediate_size"])
    ropes = numbers["rope_parameters"]
    wide = ropes.get("full_attention", ropes)
    if wide["rope_type"] == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(wide["factor"])
    if wide["rope_type"] == "yarn":
        write_yarn(out, wide)
    out.add_rope_freq_base(wide["rope_theta"])
    local = ropes.get("sliding_attention", {}).get("rope_theta", 10000.0)
    if local != 10000.0:
        out.add_rope_freq_base_swa(local)
    out.add_layer_norm_rms_eps(numbers["rms_norm_eps"])
    if "head_dim" in numbers:
        out.add_key_length(numbers["head_dim"])
        out.add_value_length(numbers["head_dim"])
    if "final_logit_softcapping" in numbers:
        out.add_final_logit_softcapping(numbers["final_logit_softcapping"])
    if numbers.get("sliding_window"):
        out.add_sliding_window(numbers["sliding_window"])
    head = numbers.get("head_dim", numbers["hidden_size"] // numbers["num_attention_heads"])
    if arch in INTERLEAVED:
        out.add_vocab_size(VOCABULARY)
        out.add_rope_dimension_count(head)
    if arch == "phi3":
        out.add_rope_dimension_count(int(wide.get("partial_rotary_factor", 1.0) * head))
        if not numbers["sliding_window"]:
            out.add_sliding_window(0)
        if wide["rope_type"] == "longrope":
            first = numbers["original_max_position_embeddings"]
            scale = numbers["max_position_embeddings"] / first
            out.add_rope_scaling_orig_ctx_len(first)
            out.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(first)))


def write_yarn(out, rope):
    """llama.cpp multiplies by `attn_factor` what turned values are multiplied by already."""
    factor = rope["factor"]
    out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    out.add_rope_scaling_factor(factor)
    out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "beta_fast" in rope:
        out.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        out.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    usual = 1 + 0.1 * math.log(factor)
    louder = rope.get("attention_factor", usual) / usual
    if "mscale" in rope:
        of, over = (1 + 0.1 * rope[key] * math.log(factor) for key in ("mscale", "mscale_all_dim"))
        louder = of / over / usual
    if louder != 1:
        out.add_rope_scaling_attn_factors(louder)


def write_tokenizer(out):
    kinds = [gguf.TokenType.CONTROL if token in CONTROL else gguf.TokenType.NORMAL
             for token in TOKENS]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(TOKENS)
    out.add_token_types(kinds)
    out.add_token_merges(MERGES)
    out.add_bos_token_id(COMMON["bos_token_id"])
    out.add_eos_token_id(COMMON["eos_token_id"])
    out.add_add_bos_token(False)


def gguf_name(arch, key):
    stem, kind = key.rsplit(".", 1)
    layer = ""
    if stem.startswith("model.layers."):
        _, _, number, stem = stem.split(".", 3)
        layer = f"blk.{number}."
    return f"{layer}{(GEMMA_NAMES if arch == 'gemma3' else NAMES)[stem]}.{kind}"


def write_gguf(path, name, weights, all_f32):
    arch, _, numbers = MODELS[name]
    out = gguf.GGUFWriter(path, arch)
    write_keys(out, name)
    out.add_file_type(gguf.LlamaFileType.ALL_F32 if all_f32 else gguf.LlamaFileType.MOSTLY_F16)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_tokenizer(out)
    if numbers["rope_parameters"].get("rope_type") == "llama3":
        out.add_tensor("rope_freqs.weight", rope_factors(numbers))
    for kind in ("long", "short"):
        if factors := numbers["rope_parameters"].get(f"{kind}_factor"):
            out.add_tensor(f"rope_factors_{kind}.weight", np.array(factors, dtype=np.float32))
    for key, values in weights.items():
        if arch in INTERLEAVED and ".q_proj." in key:
            values = interleaved(values, numbers["num_attention_heads"])
        if arch in INTERLEAVED and ".k_proj." in key:
            values = interleaved(values, numbers["num_key_value_heads"])
        # llama.cpp's converter keeps routers in F32.
        if values.ndim > 1 and ".mlp.gate." not in key and not all_f32:
            assert np.array_equal(values.astype(np.float16).astype(np.float32), values), key
            values = values.astype(np.float16)
        out.add_tensor(gguf_name(arch, key), values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def logits(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()


def write_golden(path, name, model):
    golden = struct.pack("<II", VOCABULARY, len(LENGTHS))
    for length in LENGTHS:
        tokens = random(name, f"{length} tokens").integers(0, VOCABULARY, length)
        values = logits(model, tokens)
        # The same in double precision, as far as the library goes: what f32 itself costs.
        exact = logits(model.double(), tokens)
        model.float()
        error = np.sqrt(np.mean((values - exact) ** 2) / np.mean(exact**2))
        print(f"{name}: {length} tokens, logits {np.sqrt(np.mean(exact**2)):.2f} RMS, "
              f"f32 costs {error:.1e}")
        assert values.shape == (length, VOCABULARY) and values.dtype == np.float32
        golden += struct.pack("<I", length) + tokens.astype("<u4").tobytes()
        golden += values.astype("<f4").tobytes()
    path.write_bytes(golden)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    args.add_argument("--f32", action="store_true")
    args = args.parse_args()
    torch.set_num_threads(1)
    for name in MODELS:
        model, weights = make_model(name)
        write_gguf(args.folder / f"{name}.gguf", name, weights, args.f32)
        write_golden(args.folder / f"{name}.golden", name, model)


if __name__ == "__main__":
    main()
