"""What the kernels are built with: sizes of the model, the tuning, and what lowers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.opencl.local_memory import longest_row
from pyrllama.opencl.tuning import ATTENTION_GROUP, tensor_attention, top_part
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.local_memory import LocalMemory
    from pyrllama.opencl.tuning import Tuning


def defines(
    tuning: Tuning,
    config: ModelConfig,
    memory: LocalMemory,
    *,
    kv_type: TensorType,
    max_tokens: int,
    max_seq_len: int,
) -> dict[str, int | str]:
    """Return what the kernels are built with."""
    flags = {
        "NVIDIA": tuning.nvidia,
        "TENSOR": tuning.tensor_cores,
        "WARPGROUP": tuning.warpgroups,
        "TENSOR_ATTENTION": tensor_attention(tuning, kv_type),
        "INTEGER_DOT": tuning.integer_dot,
        "PHASE_TIMES": tuning.phase_times,
        "KV_F32": kv_type is TensorType.F32,
        "KV_Q8_0": kv_type is TensorType.Q8_0,
    }
    return {
        **{name: 1 for name, on in flags.items() if on},
        **_family_defines(config, max_seq_len),
        "GROUP": tuning.group,
        "TOP_PART": top_part(config.vocab_size),
        "LOADS": tuning.loads,
        "SECOND_LOADS": min(tuning.second_loads, tuning.loads),
        "SPLITS": tuning.splits,
        "ATTENTION_GROUP": ATTENTION_GROUP,
        "ATTENTION_ROWS": tuning.attention_rows,
        "HEAD_DIM": config.head_dim,
        "N_HEADS": config.n_heads,
        "N_KV_HEADS": config.n_kv_heads,
        "HEADS_AT_ONCE": tuning.heads,
        "MAX_TOKENS": max_tokens,
        "SEGMENT_FLOATS": memory.segment_floats,
        "SEGMENT_BLOCKS": memory.segment_blocks,
        "LONGEST_ROW": longest_row(config),
        "TENSOR_GROUP": tuning.tensor_group,
        "TENSOR_ROWS": tuning.tensor_rows,
        "TENSOR_TOKENS": tuning.tensor_tokens,
        "WARP_ROWS": tuning.warp_rows,
        "WARP_TOKENS": tuning.warp_tokens,
    }


def _family_defines(config: ModelConfig, max_seq_len: int) -> dict[str, int | str]:
    """Return what a model has beside LLaMA; nothing of it changes the kernels of one without."""
    words: dict[str, int | str] = {}
    if config.attention_bias:
        words |= {"HEAD_EXTRAS": 1, "BIASED": 1}
    if config.qk_norm:
        eps = float(np.float32(config.norm_eps)).hex()
        words |= {"HEAD_EXTRAS": 1, "HEAD_NORMS": 1, "HEAD_EPS": f"{eps}f"}
    if config.experts is not None:
        words |= {"N_EXPERTS": config.experts.count, "N_USED": config.experts.used}
        words |= {"NORMALISED": 1} if config.experts.normalised else {}
    if config.sliding_window is not None and config.sliding_window < max_seq_len:
        words["WINDOW"] = config.sliding_window
    return words
