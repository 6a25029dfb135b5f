"""Logprobs of the next token as llama.cpp computes them: `llama_cpp.py MODEL.gguf LORA.gguf|- PROMPTS.json`.

PROMPTS holds lists of token ids, so that no tokenizer stands between. told.json gets a list of {token: logprob}, of
the 20 likeliest tokens after each prompt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import xllamacpp

model, lora, prompts = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = model
params.n_ctx, params.n_gpu_layers, params.n_parallel = 256, 0, 1
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
if lora != "-":
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
server = xllamacpp.Server(params)
found = []
for tokens in json.loads(Path(prompts).read_text()):
    asked = {"prompt": tokens, "n_predict": 1, "n_probs": 20, "temperature": 0.0, "cache_prompt": False}
    answer = server.handle_completions(asked)
    likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found.append({entry["id"]: entry["logprob"] for entry in likely})
Path("told.json").write_text(json.dumps(found))
