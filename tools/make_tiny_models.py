#!/usr/bin/env python3
"""Tiny random models of every variant that the decoder supports, with the logits of the `transformers` library.

    python3 -m venv V && V/bin/pip install torch transformers gguf safetensors
    V/bin/python tools/make_tiny_models.py            # writes crates/testing/golden/{tiny,quants}

Per model a Hugging Face folder (config.json, model.safetensors, tokenizer.json) and logits.safetensors:
    input_ids        [n] i64
    logits_f32       [n, vocab] of a float32 forward over the bf16 weights
    logits_kv_bf16   the same with K (after rope) and V rounded to bf16 before attention
Two models are written as GGUF too (one of them split). Their bf16 weights *are* the dequantised values rounded to bf16,
so both sources must give the same weights bit for bit.

golden/quants/TYPE.bin: the bytes of some blocks, then the float32 values that the `gguf` package makes of them.
"""

import json, pathlib, shutil
import gguf, numpy as np, torch
from gguf import GGMLQuantizationType as Q
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/testing/golden"
BASE = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    vocab_size=96,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    hidden_act="silu",
    bos_token_id=1,
    eos_token_id=2,
    attention_dropout=0.0,
)
WIDE = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32)
# name: (model_type, config as a config.json of the wild spells it)
MODELS = {
    "llama": (
        "llama",
        dict(
            BASE,
            num_attention_heads=2,
            head_dim=32,
            intermediate_size=128,
            vocab_size=288,
            tie_word_embeddings=True,
            rope_theta=10000.0,
        ),
    ),
    "llama3-scaled": (
        "llama",
        dict(
            BASE,
            **WIDE,
            tie_word_embeddings=False,
            rope_theta=500000.0,
            rope_scaling=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
    ),
    "llama-linear": (
        "llama",
        dict(
            BASE,
            tie_word_embeddings=True,
            attention_bias=True,
            rope_theta=10000.0,
            rope_scaling=dict(type="linear", factor=4.0),
        ),
    ),
    "mistral": ("mistral", dict(BASE, **WIDE, tie_word_embeddings=False, sliding_window=None, rope_theta=1000000.0)),
    "qwen2": ("qwen2", dict(BASE, tie_word_embeddings=True, use_sliding_window=False, rope_theta=1000000.0)),
    "qwen2-yarn": (
        "qwen2",
        dict(
            BASE,
            **WIDE,
            tie_word_embeddings=False,
            use_sliding_window=False,
            rope_theta=10000.0,
            rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32),
        ),
    ),
    "qwen3": (
        "qwen3",
        dict(
            BASE,
            head_dim=128,
            intermediate_size=64,
            vocab_size=288,
            tie_word_embeddings=True,
            use_sliding_window=False,
            rope_theta=1000000.0,
        ),
    ),
}


def attention(round_kv):
    def forward(module, query, key, value, mask, scaling, **_):
        if round_kv:
            key, value = key.bfloat16().float(), value.bfloat16().float()
        group, n = query.shape[1] // key.shape[1], query.shape[2]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ key.transpose(2, 3) * scaling
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        return (scores.softmax(-1, dtype=torch.float32) @ value).transpose(1, 2).contiguous(), None

    return forward


ALL_ATTENTION_FUNCTIONS.register("plain", attention(False))
ALL_ATTENTION_FUNCTIONS.register("kv_bf16", attention(True))

# Tensors of the GGUF copies, in turn; norms and biases stay F32.
MIX = [Q.Q8_0, Q.F16, Q.BF16, Q.Q5_1, Q.Q4_0, Q.Q8_0, Q.Q5_0, Q.Q4_1]


def permute(w, heads):
    """What llama.cpp's converter does to q and k of architecture llama."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def stored(weights, config, model_type):
    """name -> (quant type, bytes or array as GGUF stores it); replaces the weights by their values after loading."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    result = {}
    for i, (name, w) in enumerate(sorted(weights.items())):
        w = w.float().numpy()
        h = next((h for part, h in heads.items() if part in name), None) if model_type == "llama" else None
        kind = Q.F32 if w.ndim == 1 else MIX[i % len(MIX)]
        raw = gguf.quants.quantize(permute(w, h) if h else w, kind)
        result[name] = (kind, raw)
        back = torch.from_numpy(np.array(gguf.quants.dequantize(raw, kind)))
        if h:
            back = back.reshape(h, w.shape[0] // h // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
        weights[name] = back.bfloat16()
    return result


NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name):
    if name in OUTER:
        return OUTER[name]
    _, _, layer, *module, kind = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(module)]}.{kind}"


def byte_letters():
    """GPT-2's letter for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def add_tokenizer(w, model_type, size):
    if model_type == "llama":  # SentencePiece: scores fall with rank, bytes for all else
        pieces = [
            "▁",
            "h",
            "e",
            "l",
            "o",
            "w",
            "r",
            "d",
            "t",
            "a",
            "lo",
            "he",
            "▁w",
            "▁t",
            "or",
            "ld",
            "llo",
            "hello",
            "▁he",
            "▁hello",
            "▁wor",
            "▁world",
            "▁the",
            "he▁",
        ]
        tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + pieces
        kinds = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
        scores = [0.0] * 259 + [float(-i) for i in range(len(pieces))]
        tokens += [f"<extra_{i}>" for i in range(size - len(tokens))]
        kinds += [3] * (size - len(kinds))
        scores += [0.0] * (size - len(scores))
        w.add_tokenizer_model("llama")
        w.add_tokenizer_pre("default")
        w.add_token_list(tokens)
        w.add_token_scores(scores)
        w.add_token_types(kinds)
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
        w.add_add_bos_token(True)
        w.add_add_space_prefix(True)
        w.add_chat_template(
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
        )
    else:
        letters = byte_letters()
        merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "t he", "Ġ the"]
        tokens = [letters[b] for b in range(256)] + ["".join(m.split(" ")) for m in merges]
        tokens = list(dict.fromkeys(tokens))
        kinds = [1] * len(tokens)
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        tokens += specials
        kinds += [3] * len(specials)
        tokens += [f"[PAD{i}]" for i in range(size - len(tokens))]
        kinds += [5] * (size - len(kinds))
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("qwen2")
        w.add_token_list(tokens)
        w.add_token_types(kinds)
        w.add_token_merges(merges)
        w.add_bos_token_id(tokens.index("<|endoftext|>"))
        w.add_eos_token_id(tokens.index("<|im_end|>"))
        w.add_add_bos_token(False)
        w.add_chat_template(
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )


def write_gguf(path, name, model_type, config, tensors, split):
    w = gguf.GGUFWriter(path, model_type, split_max_tensors=split)
    w.add_name(f"tiny {name}")
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    w.add_key_length(config["head_dim"])
    w.add_value_length(config["head_dim"])
    w.add_rope_dimension_count(config["head_dim"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base(config["rope_theta"])
    add_tokenizer(w, model_type, config["vocab_size"])
    for tensor, (kind, raw) in tensors.items():
        w.add_tensor(gguf_name(tensor), raw, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def tokenizer_json(size):
    words = ["<unk>", "<s>", "</s>"] + [f"w{i}" for i in range(3, size)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "added_tokens": [
            {
                "id": i,
                "content": words[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in range(3)
        ],
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }


@torch.no_grad()
def make_model(name, model_type, config):
    torch.manual_seed(sum(map(ord, name)))
    folder = OUT / "tiny" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    hf = AutoConfig.for_model(model_type, **config)
    model = AutoModelForCausalLM.from_config(hf, attn_implementation="plain", dtype=torch.float32).eval()
    weights = {}
    for key, p in model.state_dict().items():
        if key == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if "norm" in key:
            w = 1 + 0.2 * torch.randn_like(p)
        elif p.ndim == 1:
            w = 0.3 * torch.randn_like(p)
        else:
            w = torch.randn_like(p) * (0.5 if "embed" in key else 1.2 / p.shape[1] ** 0.5)
        weights[key] = w.bfloat16()
    if name in ("llama", "qwen3"):
        tensors = stored(weights, config, model_type)
        write_gguf(folder / f"{name}.gguf", name, model_type, config, tensors, 10 if name == "qwen3" else 0)
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    n = 64 if config["vocab_size"] > 96 else 96
    ids = torch.randint(3, min(config["vocab_size"], 250), (n,))
    logits = {}
    for kind in ("plain", "kv_bf16", "eager"):
        model.set_attn_implementation(kind)
        logits[kind] = model(ids[None]).logits[0].float()
    spread = (logits["plain"] - logits["eager"]).abs().max().item()
    bound = (logits["plain"] - logits["kv_bf16"]).abs().max().item()
    assert spread < bound / 20, (spread, bound)
    inv = model.model.rotary_emb
    print(
        f"{name}: |logits| {logits['plain'].abs().max():.2f}, kv rounding {bound:.1e}, "
        f"order of sums {spread:.1e}, rope factor {inv.attention_scaling}"
    )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(
        {
            "input_ids": ids,
            "logits_f32": logits["plain"],
            "logits_kv_bf16": logits["kv_bf16"],
            "inv_freq": inv.inv_freq.float().contiguous(),
            "attention_factor": torch.tensor([float(inv.attention_scaling)]),
        },
        folder / "logits.safetensors",
    )
    arch = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[model_type] + "ForCausalLM"
    written = {"architectures": [arch], "model_type": model_type, "torch_dtype": "bfloat16", **config}
    if name == "qwen2":  # one configuration as transformers 5 spells it
        written = {
            **{k: v for k, v in hf.to_dict().items() if k in written or k in ("rope_parameters", "layer_types")},
            "architectures": [arch],
            "model_type": model_type,
            "dtype": "bfloat16",
        }
        written.pop("rope_theta", None)
        written.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
    (folder / "tokenizer.json").write_text(
        json.dumps(tokenizer_json(config["vocab_size"]), separators=(",", ":")) + "\n"
    )


def make_quants():
    folder = OUT / "quants"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    halves = {
        Q.Q4_0: [0],
        Q.Q4_1: [0, 2],
        Q.Q5_0: [0],
        Q.Q5_1: [0, 2],
        Q.Q8_0: [0],
        Q.Q4_K: [0, 2],
        Q.Q5_K: [0, 2],
        Q.Q6_K: [208],
    }
    for kind in [Q.F16, Q.BF16, *halves]:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        count = 2048 // values
        blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
        if kind in (Q.F16, Q.BF16):  # no NaN: what a NaN's payload becomes is nobody's business
            top = 0x7C if kind == Q.F16 else 0x7F
            blocks[:, 1] = np.where(blocks[:, 1] & 0x7F >= top, 0x3C, blocks[:, 1])
        for at in halves.get(kind, []):  # scales of both signs, from denormal to large
            scale = (rng.choice([-1, 1], count) * 10.0 ** rng.uniform(-7, 2, count)).astype(np.float16)
            blocks[:, at : at + 2] = scale.view(np.uint8).reshape(count, 2)
        expected = gguf.quants.dequantize(blocks.reshape(-1), kind).astype(np.float32).reshape(-1)
        assert expected.size == count * values and np.isfinite(expected).all()
        (folder / f"{kind.name.lower()}.bin").write_bytes(blocks.tobytes() + expected.tobytes())


if __name__ == "__main__":
    for name, (model_type, config) in MODELS.items():
        make_model(name, model_type, config)
    make_quants()
