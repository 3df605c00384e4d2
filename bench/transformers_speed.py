"""Measure transformers with PyTorch on random weights of a shape; prints one JSON object.

It is run by a Python that has both: ``python transformers_speed.py SHAPE --dtype bf16
--threads 2 --prompt-tokens 512``, where SHAPE is a ``ModelConfig`` as JSON with ``tied`` added.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
POOL = 1 << 20
"""Random numbers that all weights repeat."""
ROOM = 1.1
"""Memory that must be free, in sizes of the weights."""


def make_model(shape: dict[str, Any], dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a model of a shape whose weights are small random numbers."""
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["dim"],
        intermediate_size=shape["ffn_dim"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        head_dim=shape["head_dim"],
        rms_norm_eps=shape["norm_eps"],
        max_position_embeddings=shape["context_length"],
        tie_word_embeddings=shape["tied"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    check_memory(sum(p.numel() for p in model.parameters()) * dtype.itemsize)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its table is not a parameter
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for start in range(0, flat.numel(), POOL):
            part = flat[start : start + POOL]
            part.copy_(pool[: part.numel()])
    return model.eval()


def check_memory(needed: int) -> None:
    """End the program if the weights would not fit into what is free."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if needed * ROOM > free:
        sys.exit(f"the weights need {needed} bytes, but only {free} are free")


def prefill(model: LlamaForCausalLM, n_tokens: int) -> float:
    """Return the tokens per second of one prompt."""
    prompt = torch.randint(model.config.vocab_size, (1, n_tokens))
    started = perf_counter()
    model(prompt, use_cache=True, logits_to_keep=1)
    return n_tokens / (perf_counter() - started)


def decode(model: LlamaForCausalLM, n_tokens: int) -> float:
    """Return the tokens per second of greedy decoding from a context of one token."""
    token, cache = torch.zeros((1, 1), dtype=torch.long), None
    started = perf_counter()
    for _ in range(n_tokens):
        out = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
    return n_tokens / (perf_counter() - started)


def main() -> None:
    """Measure what the arguments ask for, after one turn to warm up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", type=json.loads)
    parser.add_argument("--dtype", choices=list(DTYPES), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repetitions", type=int, default=3)
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--prompt-tokens", type=int)
    work.add_argument("--generate-tokens", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = make_model(options.shape, DTYPES[options.dtype])
    samples = []
    with torch.inference_mode():
        for _ in range(1 + options.repetitions):
            if options.prompt_tokens:
                samples.append(prefill(model, options.prompt_tokens))
            else:
                samples.append(decode(model, options.generate_tokens))
    version = f"{transformers.__version__}, torch {torch.__version__}"
    print(json.dumps({"samples": samples[1:], "version": version}))


if __name__ == "__main__":
    main()
