"""The work that ``rllama bench`` measures, and the figures that follow from its times."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.core import BLOCK_TOKENS, Batch, Chunk, Sampling, blocks_for
from pyrllama.errors import SettingError
from pyrllama.kvcache import BlockPool
from pyrllama.output_rows import output_rows
from pyrllama.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyrllama.backend import Model
    from pyrllama.model_config import ModelConfig

SEED = 0
WARM_UP_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Workload:
    """What a repetition does, and how often.

    It reads ``prompt_tokens`` into an empty context, and then decodes ``generate_tokens``
    greedily behind a context of ``depth`` tokens; ``sequences`` of them go side by side.
    """

    prompt_tokens: int
    generate_tokens: int
    depth: int
    sequences: int
    repetitions: int

    def check(self, config: ModelConfig) -> None:
        """Raise ``SettingError`` for a count that is too small, or a context too short."""
        least = {
            "prompt-tokens": (self.prompt_tokens, 1),
            "generate-tokens": (self.generate_tokens, 1),
            "depth": (self.depth, 0),
            "sequences": (self.sequences, 1),
            "repetitions": (self.repetitions, 1),
        }
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise SettingError(name, value, f"{minimum} or more")
        if self.sequence_tokens > config.context_length:
            name = "prompt-tokens"
            if self.sequence_tokens > self.prompt_tokens:
                name = "depth + generate-tokens"
            raise SettingError(
                name,
                self.sequence_tokens,
                f"at most the model's context of {config.context_length}",
            )

    @property
    def sequence_tokens(self) -> int:
        """Tokens of the longest context of a sequence."""
        return max(self.prompt_tokens, self.depth + self.generate_tokens)

    @property
    def mean_context(self) -> float:
        """Tokens that a decoding step finds in the context, on average."""
        return self.depth + self.generate_tokens / 2

    @property
    def cache_tokens(self) -> int:
        """Tokens for which the KV cache must have blocks."""
        return self.sequences * blocks_for(self.sequence_tokens) * BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Repetition:
    """Seconds that a repetition took."""

    prefill: float
    """From the first token of the prompts to the first token behind every one."""
    decode: float
    """For ``generate_tokens`` steps, sampling included."""


class Bench:
    """Runs a workload on a model.

    Every sequence is a fixed text of random ids, so that reading it again leaves the same keys
    and values behind and the context is read to its depth only once.
    """

    def __init__(self, model: Model, workload: Workload) -> None:
        if workload.sequences > model.max_batch_tokens:
            limit = model.max_batch_tokens
            raise SettingError("sequences", workload.sequences, f"at most {limit} for this model")
        self._model, self._workload = model, workload
        pool = BlockPool(model.n_blocks)
        n_blocks = blocks_for(workload.sequence_tokens)
        self._blocks = [tuple(pool.take(n_blocks)) for _ in range(workload.sequences)]
        length = max(workload.prompt_tokens, workload.depth + 1)
        texts = np.random.default_rng(SEED).integers(
            model.config.vocab_size, size=(workload.sequences, length)
        )
        self._texts = [tuple(text) for text in texts.tolist()]
        self._sampler = Sampler(Sampling(temperature=0), ())

    def run(self, on_repetition: Callable[[int], None] = lambda _: None) -> list[Repetition]:
        """Return the times of every repetition; ``on_repetition`` hears its number, 0 to warm up.

        The warm-up reads the context to its depth and decodes a few tokens.
        """
        work = self._workload
        on_repetition(0)
        self._prefill(max(work.prompt_tokens, work.depth))
        self._decode(min(WARM_UP_TOKENS, work.generate_tokens))
        repetitions = []
        for number in range(1, work.repetitions + 1):
            on_repetition(number)
            started = perf_counter()
            self._prefill(work.prompt_tokens)
            read = perf_counter()
            self._decode(work.generate_tokens)
            repetitions.append(Repetition(read - started, perf_counter() - read))
        return repetitions

    def _prefill(self, n_tokens: int) -> None:
        """Read the first tokens of every text, and sample a token behind each."""
        for batch in self._prompt_batches(n_tokens):
            self._step(batch)

    def _prompt_batches(self, n_tokens: int) -> Iterator[Batch]:
        """Cut the texts into batches as large as the model takes them, text behind text."""
        chunks: list[Chunk] = []
        room = self._model.max_batch_tokens
        for text, blocks in zip(self._texts, self._blocks, strict=True):
            start = 0
            while start < n_tokens:
                end = min(start + room, n_tokens)
                chunks.append(_chunk(text[start:end], start, blocks, outputs=int(end == n_tokens)))
                room -= end - start
                start = end
                if room == 0:
                    yield Batch(tuple(chunks))
                    chunks, room = [], self._model.max_batch_tokens
        if chunks:
            yield Batch(tuple(chunks))

    def _decode(self, n_tokens: int) -> None:
        """Decode so many tokens of every sequence behind the context, all of them at once."""
        depth = self._workload.depth
        last = [text[depth] for text in self._texts]
        for position in range(depth, depth + n_tokens):
            pairs = zip(last, self._blocks, strict=True)
            chunks = tuple(_chunk((token,), position, blocks) for token, blocks in pairs)
            last = self._step(Batch(chunks))

    def _step(self, batch: Batch) -> list[int]:
        """Run a batch as the engine does, and sample from every row of logits."""
        rows = output_rows(self._model, batch, [self._sampler] * len(batch.chunks))
        return [self._sampler.sample(row)[0] for row in rows]


def _chunk(tokens: tuple[int, ...], start: int, blocks: tuple[int, ...], outputs: int = 1) -> Chunk:
    return Chunk(tokens, start, blocks[: blocks_for(start + len(tokens))], outputs)


def summarise(
    model: Model,
    workload: Workload,
    repetitions: list[Repetition],
    bandwidth: tuple[float, float],
) -> dict[str, Any]:
    """Return rates, bytes and the share of the bandwidth; bandwidths are in bytes a second.

    Rates are those of all sequences together; a step reads the weights once for all of them.
    """
    sequences = workload.sequences
    prompts, generated = (sequences * n for n in (workload.prompt_tokens, workload.generate_tokens))
    decode = _spread([generated / each.decode for each in repetitions])
    steps_per_second = decode["median"] / sequences
    kv_bytes = int(sequences * workload.mean_context * model.kv_bytes_per_token)
    return {
        "prefill_tokens_per_second": _spread([prompts / each.prefill for each in repetitions]),
        "decode_tokens_per_second": decode,
        "first_token_seconds": statistics.median(each.prefill for each in repetitions),
        "weight_bytes": model.weight_bytes,
        "bytes_per_step": model.decode_bytes,
        "kv_cache_bytes_per_step": kv_bytes,
        "gigabytes_per_second": steps_per_second * model.decode_bytes / 1e9,
        "kv_cache_gigabytes_per_second": steps_per_second * kv_bytes / 1e9,
        "read_bandwidth_gigabytes_per_second": {
            "before": bandwidth[0] / 1e9,
            "after": bandwidth[1] / 1e9,
        },
        "share_of_bandwidth": steps_per_second * model.decode_bytes / max(bandwidth),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
