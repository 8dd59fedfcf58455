#!/usr/bin/env python3
"""A tiny Llama of random weights with a byte-level tokenizer: what tests of constraints and tool calls run.

    python3 -m venv V && V/bin/pip install numpy
    V/bin/python tools/make_noise_llama.py            # writes crates/testing/golden/noise

A Hugging Face folder of a quarter of a megabyte. Its words are noise, so whatever holds for its completions is the
mask's doing. Token i is byte i for i < 256; merged tokens follow, several of which cross the borders of JSON's tokens;
then the control tokens of both families, of which the two tags of a call are ordinary text, as Qwen has them. The
model's vocabulary is larger than the tokenizer's, as it often is.

chat_template.jinja calls tools as Hermes and Qwen do, llama3.jinja as Llama 3 does. The same bytes come out every time.
"""

import json, pathlib
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/testing/golden/noise"
HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 128, 2, 2, 1, 32, 320
MERGES = [
    '{ "',
    '" :',
    '" ,',
    '" }',
    '} }',
    '] }',
    '": "',
    '": Ġ',
    ', Ġ',
    ',Ġ "',
    ': Ġ',
    'Ġ Ġ',
    'Ġ {',
    'Ċ }',
    't r',
    'u e',
    'tr ue',
    'n a',
    'm e',
    'na me',
    '1 2',
    '- 1',
    'e 5',
    'Ã ©',
    '< /',
]
CONTROL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|im_start|>",
    "<|im_end|>",
]
TAGS = ["<tool_call>", "</tool_call>"]
ENDS = ["<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"]

HERMES = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\nFor each call, write within <tool_call></tool_call> tags:\\n' }}
    {{- '<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {%- if call.function.arguments is string %}
                {{- call.function.arguments }}
            {%- else %}
                {{- call.function.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- macro turn(role, text) %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + text + '<|eot_id|>' }}
{%- endmacro %}
{%- if tools %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\nEnvironment: ipython\\n' }}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.' }}
    {%- for tool in tools %}{{- '\\n\\n' + (tool | tojson(indent=4)) }}{%- endfor %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {%- set arguments = call.arguments if call.arguments is string else call.arguments | tojson %}
        {{- turn('assistant', '{"name": "' + call.name + '", "parameters": ' + arguments + '}') }}
    {%- elif message.role == 'tool' %}
        {{- turn('ipython', message.content) }}
    {%- else %}
        {{- turn(message.role, message.content) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""


def byte_letters():
    """GPT-2's letter for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def tokenizer():
    tokens = [byte_letters()[b] for b in range(256)] + ["".join(m.split(" ")) for m in MERGES]
    assert len(set(tokens)) == len(tokens)
    added = [
        {
            "id": len(tokens) + i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": text in CONTROL,
        }
        for i, text in enumerate(CONTROL + TAGS)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in MERGES],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": model,
    }


def bf16(values):
    """The bytes of bf16, rounded to nearest even."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def weights():
    """Logits with a spread of 1.5: no token is certain and none is out of reach."""
    random = np.random.RandomState(20)  # its stream is frozen for ever, unlike default_rng's
    shapes = {"model.embed_tokens.weight": ((VOCAB, HIDDEN), 1.0)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        shapes[name + "self_attn.q_proj.weight"] = ((HEADS * HEAD_DIM, HIDDEN), 1.5 / HIDDEN**0.5)
        shapes[name + "self_attn.k_proj.weight"] = ((KV_HEADS * HEAD_DIM, HIDDEN), 1.5 / HIDDEN**0.5)
        shapes[name + "self_attn.v_proj.weight"] = ((KV_HEADS * HEAD_DIM, HIDDEN), 1.5 / HIDDEN**0.5)
        shapes[name + "self_attn.o_proj.weight"] = ((HIDDEN, HEADS * HEAD_DIM), 1.5 / HIDDEN**0.5)
        shapes[name + "mlp.gate_proj.weight"] = ((MLP, HIDDEN), 1.5 / HIDDEN**0.5)
        shapes[name + "mlp.up_proj.weight"] = ((MLP, HIDDEN), 1.5 / HIDDEN**0.5)
        shapes[name + "mlp.down_proj.weight"] = ((HIDDEN, MLP), 1.5 / MLP**0.5)
        shapes[name + "input_layernorm.weight"] = ((HIDDEN,), None)
        shapes[name + "post_attention_layernorm.weight"] = ((HIDDEN,), None)
    shapes["model.norm.weight"] = ((HIDDEN,), None)
    shapes["lm_head.weight"] = ((VOCAB, HIDDEN), 1.5 / HIDDEN**0.5)
    tensors = {}
    for name, (shape, spread) in shapes.items():
        values = np.ones(shape) if spread is None else spread * random.standard_normal(shape)
        tensors[name] = (shape, bf16(values))
    return tensors


def safetensors(tensors):
    """The file format: the header's length, the header, the bytes."""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, data in tensors.values())


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    spelled = tokenizer()
    ids = {token["content"]: token["id"] for token in spelled["added_tokens"]}
    assert max(ids.values()) < VOCAB - 1
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": ids[ENDS[0]],
    }
    generation = {
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": [ids[end] for end in ENDS],
        "do_sample": True,
        "temperature": 1.0,
    }
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": ENDS[0]}

    def write(name, value):
        (OUT / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    write("config.json", config)
    write("generation_config.json", generation)
    write("tokenizer_config.json", names)
    (OUT / "tokenizer.json").write_text(json.dumps(spelled, separators=(",", ":"), ensure_ascii=False) + "\n")
    (OUT / "chat_template.jinja").write_text(HERMES)
    (OUT / "llama3.jinja").write_text(LLAMA3)
    (OUT / "model.safetensors").write_bytes(safetensors(weights()))


if __name__ == "__main__":
    main()
