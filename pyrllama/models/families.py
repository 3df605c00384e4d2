"""The architectures that run, as tables: what each has beside LLaMA, and its names in files.

GGUF names an architecture in ``general.architecture``, Hugging Face by a class and a
``model_type``.  Several of Hugging Face's are one of GGUF's: Mistral is LLaMA with a window,
Mixtral is LLaMA with experts.

Source: ``gguf/constants.py`` of llama.cpp for GGUF's, the ``modeling_*.py`` of
huggingface/transformers for the others.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyrllama.models.rows import Pairing

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture has beside LLaMA; ``name`` is GGUF's and begins its keys."""

    name: str
    pairing: Pairing = Pairing.NEIGHBOURS
    """How rows of queries and keys are ordered in GGUF files."""
    attention_bias: bool = False
    qk_norm: bool = False
    expert_size: str | None = None
    """The key of an expert's inner size, where there always are experts."""


LLAMA = Architecture("llama")
QWEN2 = Architecture("qwen2", Pairing.HALVES, attention_bias=True)
QWEN3 = Architecture("qwen3", Pairing.HALVES, qk_norm=True)
QWEN3_MOE = Architecture(
    "qwen3moe", Pairing.HALVES, qk_norm=True, expert_size="expert_feed_forward_length"
)
ARCHITECTURES = {one.name: one for one in (LLAMA, QWEN2, QWEN3, QWEN3_MOE)}
"""By ``general.architecture``."""


class Window(enum.Enum):
    """How a ``config.json`` says that attention looks back over a window."""

    NEVER = enum.auto()
    ALWAYS = enum.auto()
    """``sliding_window`` is in force, and 4,096 where it is not there."""
    IF_STATED = enum.auto()
    """``sliding_window`` is in force where it is there."""
    IF_USED = enum.auto()
    """It is if ``use_sliding_window`` says so, in the layers from ``max_window_layers`` on."""
    IF_USED_IN_ALL = enum.auto()
    """It is in all layers, if ``use_sliding_window`` says so."""


@dataclass(frozen=True, slots=True)
class ExpertFields:
    """Where Hugging Face has what there is to know of experts: fields, and parts of names."""

    count: tuple[str, ...]
    """The field of the number of experts, as published and as transformers 5 writes it."""
    size: str
    modules: Mapping[str, str]
    """GGUF's names of a layer's matrices by those of the modules."""
    pattern: str
    """What comes before the number of an expert and its own modules."""
    always_normalised: bool = True
    """Whether the weights of experts sum up to 1, or only where ``norm_topk_prob`` says so."""


@dataclass(frozen=True, slots=True)
class HuggingFaceModel:
    """A model class of transformers: which architecture it is, and how its fields are called."""

    classes: tuple[str, ...]
    model_type: str
    architecture: Architecture
    window: Window = Window.NEVER
    experts: ExpertFields | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    """GGUF's names by the modules' of what a layer has beside LLaMA's matrices."""


_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}

HUGGING_FACE = (
    # The second spelling is that of the first conversions, of March 2023.
    HuggingFaceModel(("LlamaForCausalLM", "LLaMAForCausalLM"), "llama", LLAMA),
    HuggingFaceModel(("MistralForCausalLM",), "mistral", LLAMA, Window.ALWAYS),
    HuggingFaceModel(
        ("MixtralForCausalLM",),
        "mixtral",
        LLAMA,
        Window.IF_STATED,
        ExpertFields(
            count=("num_local_experts",),
            size="intermediate_size",
            modules={"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"},
            pattern="block_sparse_moe.experts",
        ),
        {"block_sparse_moe.gate": "ffn_gate_inp"},
    ),
    HuggingFaceModel(("Qwen2ForCausalLM",), "qwen2", QWEN2, Window.IF_USED),
    HuggingFaceModel(("Qwen3ForCausalLM",), "qwen3", QWEN3, Window.IF_USED, None, _QK_NORMS),
    HuggingFaceModel(
        ("Qwen3MoeForCausalLM",),
        "qwen3_moe",
        QWEN3_MOE,
        Window.IF_USED_IN_ALL,
        ExpertFields(
            count=("num_experts", "num_local_experts"),
            size="moe_intermediate_size",
            modules={"gate_proj": "ffn_gate", "down_proj": "ffn_down", "up_proj": "ffn_up"},
            pattern="mlp.experts",
            always_normalised=False,
        ),
        _QK_NORMS | {"mlp.gate": "ffn_gate_inp"},
    ),
)
"""Every class that runs."""
