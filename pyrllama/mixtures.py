"""What a quantised file is called, and which type each of its tensors then has.

People know files by names such as ``Q4_K_M``: most matrices are Q4_K, but those whose errors
cost a model the most have more bits.  The choice is llama.cpp's, tensor by tensor, so that a
name means the same in both programs.

Source: ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` in llama.cpp's
``llama-quant.cpp``, and ``llama_ftype`` in ``llama.h``.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

from pyrllama.errors import SettingError
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING, is_router
from pyrllama.quants import block_size
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyrllama.model_config import ModelConfig
    from pyrllama.tensors import TensorInfo

_T = TensorType


class Mixture(enum.Enum):
    """The names of files, each with its code (``general.file_type``) and its main type."""

    F32 = (0, _T.F32)
    F16 = (1, _T.F16)
    BF16 = (32, _T.BF16)
    Q8_0 = (7, _T.Q8_0)
    Q6_K = (18, _T.Q6_K)
    Q5_K_M = (17, _T.Q5_K)
    Q5_K_S = (16, _T.Q5_K)
    Q5_1 = (9, _T.Q5_1)
    Q5_0 = (8, _T.Q5_0)
    Q4_K_M = (15, _T.Q4_K)
    Q4_K_S = (14, _T.Q4_K)
    IQ4_NL = (25, _T.IQ4_NL)
    IQ4_XS = (30, _T.IQ4_XS)
    Q4_1 = (3, _T.Q4_1)
    Q4_0 = (2, _T.Q4_0)
    MXFP4 = (38, _T.MXFP4)
    Q3_K_L = (13, _T.Q3_K)
    Q3_K_M = (12, _T.Q3_K)
    Q3_K_S = (11, _T.Q3_K)
    Q2_K = (10, _T.Q2_K)
    TQ2_0 = (37, _T.TQ2_0)
    TQ1_0 = (36, _T.TQ1_0)

    def __init__(self, code: int, type_: TensorType) -> None:
        self.code = code
        self.type = type_

    @property
    def is_quantised(self) -> bool:
        """Whether its numbers share scales."""
        return block_size(self.type) > 1


ALIASES = {
    "Q3_K": Mixture.Q3_K_M,
    "Q4_K": Mixture.Q4_K_M,
    "Q5_K": Mixture.Q5_K_M,
    "FP32": Mixture.F32,
    "FP16": Mixture.F16,
}
"""Other names that people use."""

_FALLBACK = {
    _T.IQ4_XS: _T.IQ4_NL,
    _T.Q2_K: _T.Q4_0,
    _T.Q3_K: _T.Q4_0,
    _T.TQ1_0: _T.Q4_0,
    _T.TQ2_0: _T.Q4_0,
    _T.Q4_K: _T.Q5_0,
    _T.Q5_K: _T.Q5_1,
    _T.Q6_K: _T.Q8_0,
}
"""What takes the place of a type whose blocks of 256 do not fit the rows."""
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_MANY_QUERIES = 4
"""Query heads a key head from which the values' projection is small and gets more bits."""
_LAYERS_OF_70B = 80
_EXPERTS_OF_MIXTRAL = 8
_OF_EXPERTS = "_exps.weight"
_UNDER_5_BITS = frozenset(
    {
        Mixture.Q2_K,
        Mixture.Q3_K_S,
        Mixture.Q3_K_M,
        Mixture.IQ4_NL,
        Mixture.IQ4_XS,
        Mixture.Q4_K_S,
        Mixture.Q4_K_M,
    }
)
"""Mixtures whose attention has Q5_K at its end beside eight experts; Q3_K_L is not one."""


def parse_mixture(name: str) -> Mixture:
    """Return the mixture that a name means; raises ``SettingError`` for an unknown one."""
    upper = name.upper()
    if upper in ALIASES:
        return ALIASES[upper]
    if upper not in Mixture.__members__:
        raise SettingError("the type", name, "one of " + ", ".join(Mixture.__members__))
    return Mixture[upper]


def tensor_types(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    mixture: Mixture,
    *,
    has_importance: bool = False,
    pure: bool = False,
) -> dict[str, TensorType]:
    """Return the type that each tensor of a model gets.

    Vectors and routers are F32.  ``pure`` gives every matrix the main type of the mixture;
    ``has_importance`` tells that errors will be weighed, which changes a few choices.  A matrix
    whose rows are not whole blocks gets the type of smaller blocks that is nearest, or F16.
    """
    chooser = _Chooser(config, mixture, tied=OUTPUT not in tensors, has_importance=has_importance)
    types = {}
    for name, info in tensors.items():
        if len(info.shape) == 1 or is_router(name):
            types[name] = _T.F32
            continue
        plain = pure or not mixture.is_quantised
        wanted = mixture.type if plain else chooser.wanted(name, info.shape[-1])
        types[name] = _fitting(wanted, info.shape[-1])
    return types


def _fitting(type_: TensorType, cols: int) -> TensorType:
    if cols % block_size(type_):
        type_ = _FALLBACK.get(type_, type_)
    return type_ if cols % block_size(type_) == 0 else _T.F16


class _Chooser:
    """The choices of one mixture for one model."""

    def __init__(
        self, config: ModelConfig, mixture: Mixture, *, tied: bool, has_importance: bool
    ) -> None:
        self.mixture = mixture
        self.n_layers = config.n_layers
        self.tied = tied
        self.has_importance = has_importance
        self.many_queries = config.n_heads // config.n_kv_heads >= _MANY_QUERIES
        self.n_experts = config.experts.count if config.experts else 0
        self.is_70b = config.n_layers == _LAYERS_OF_70B and config.n_heads != config.n_kv_heads

    def wanted(self, name: str, cols: int) -> TensorType:
        """Return the type for a matrix, whether or not its blocks fit the rows."""
        if name == OUTPUT or (self.tied and name == TOKEN_EMBEDDING):
            return self._output(cols)
        if self.mixture is Mixture.MXFP4 and self.n_experts:
            return _T.MXFP4 if name.endswith(_OF_EXPERTS) else _T.Q8_0
        if name == TOKEN_EMBEDDING:
            ternary = self.mixture in {Mixture.TQ1_0, Mixture.TQ2_0}
            return _T.Q4_K if ternary else self.mixture.type
        match = _LAYER.fullmatch(name)
        if match is None:
            return self.mixture.type
        layer, kind = int(match[1]), match[2].removesuffix("_exps")
        chosen = {
            "attn_k": self._keys,
            "attn_v": self._values,
            "attn_output": self._attention_output,
            "ffn_down": self._ffn_down,
        }
        return chosen[kind](layer) if kind in chosen else self.mixture.type

    def _output(self, cols: int) -> TensorType:
        """Return the type of the projection to logits, whose errors reach every token."""
        plain = self.mixture is Mixture.Q8_0 or (self.mixture is Mixture.MXFP4 and self.n_experts)
        if plain or cols % block_size(self.mixture.type):
            return _T.Q8_0
        return _T.Q6_K

    def _keys(self, _layer: int) -> TensorType:
        # Beside eight experts the projections of keys and values are next to nothing.
        return _T.Q8_0 if self.n_experts == _EXPERTS_OF_MIXTRAL else self.mixture.type

    def _values(self, layer: int) -> TensorType:
        if self.n_experts == _EXPERTS_OF_MIXTRAL:
            return _T.Q8_0
        chosen = self._values_of_layer(layer)
        if self.is_70b and chosen in {_T.Q3_K, _T.Q4_K}:
            return _T.Q5_K
        return chosen

    def _values_of_layer(self, layer: int) -> TensorType:
        match self.mixture:
            case Mixture.Q2_K:
                return _T.Q4_K if self.many_queries else _T.Q3_K
            case Mixture.Q3_K_M:
                return _T.Q5_K if layer < 2 else _T.Q4_K
            case Mixture.Q3_K_L:
                return _T.Q5_K
            case Mixture.IQ4_NL | Mixture.IQ4_XS if self.many_queries:
                return _T.Q5_K
            case Mixture.Q4_K_M | Mixture.Q5_K_M if self._gets_more_bits(layer):
                return _T.Q6_K
            case Mixture.Q4_K_S if layer < 4:
                return _T.Q5_K
        return self.mixture.type

    def _attention_output(self, _layer: int) -> TensorType:
        if self.n_experts == _EXPERTS_OF_MIXTRAL:
            return _T.Q5_K if self.mixture in _UNDER_5_BITS else self.mixture.type
        more = {Mixture.Q2_K: _T.Q3_K, Mixture.Q3_K_M: _T.Q4_K, Mixture.Q3_K_L: _T.Q5_K}
        return more.get(self.mixture, self.mixture.type)

    def _ffn_down(self, layer: int) -> TensorType:
        first_eighth = layer < self.n_layers // 8
        match self.mixture:
            case Mixture.Q2_K:
                return _T.Q3_K
            case Mixture.Q3_K_M:
                return _T.Q5_K if layer < self.n_layers // 16 else _T.Q4_K
            case Mixture.Q3_K_L:
                return _T.Q5_K
            case Mixture.Q4_K_M | Mixture.Q5_K_M if self._gets_more_bits(layer):
                return _T.Q6_K
            case Mixture.Q4_K_S if first_eighth:
                return _T.Q5_K
            case Mixture.IQ4_NL | Mixture.IQ4_XS if first_eighth and not self.has_importance:
                return _T.Q5_K
            # Weighed by importance, the first of these layers can go astray without an offset.
            case Mixture.Q4_0 if first_eighth and self.has_importance:
                return _T.Q4_1
            case Mixture.Q5_0 if first_eighth and self.has_importance:
                return _T.Q5_1
        return self.mixture.type

    def _gets_more_bits(self, layer: int) -> bool:
        """Whether a layer is among the first or last eighth, or every third one between."""
        eighth = self.n_layers // 8
        return layer < eighth or layer >= 7 * self.n_layers // 8 or (layer - eighth) % 3 == 2
