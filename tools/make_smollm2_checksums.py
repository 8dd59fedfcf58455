#!/usr/bin/env python3
"""Checksums of every tensor of SmolLM2-135M as the reference reader dequantises it.

    V/bin/python tools/make_smollm2_checksums.py target/models/SmolLM2-135M-Instruct.Q4_1.gguf \\
        > crates/model/tests/suite/smollm2_checksums.json

A checksum is FNV-1a (64 bits) over the values as u32 words: h = (h ^ bits) * 0x100000001b3, row-major under
the Hugging Face name. attn_q and attn_k are brought from llama.cpp's order of rows back to Hugging Face's, as
transformers does when it reads GGUF.
"""

import json, sys
import numpy as np
from gguf import GGUFReader, dequantize

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def checksum(values):
    h = 0xCBF29CE484222325
    for bits in values.reshape(-1).view(np.uint32).tolist():
        h = (h ^ bits) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


reader = GGUFReader(sys.argv[1])
heads = {
    "attn_q": int(reader.fields["llama.attention.head_count"].contents()),
    "attn_k": int(reader.fields["llama.attention.head_count_kv"].contents()),
}
result = {}
for t in reader.tensors:
    values = np.ascontiguousarray(dequantize(t.data, t.tensor_type), dtype=np.float32)
    parts = t.name.split(".")
    name = OUTER[parts[0]] if parts[0] in OUTER else f"model.layers.{parts[1]}.{NAMES[parts[2]]}"
    if len(parts) == 4 and parts[2] in heads:
        h = heads[parts[2]]
        values = np.ascontiguousarray(
            values.reshape(h, values.shape[0] // h // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        )
    result[f"{name}.{parts[-1]}"] = checksum(values)
print(json.dumps(result, indent=0, sort_keys=True))
