"""``Llama.perplexity`` and its kin: what a model's predictions over a whole text are like."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pyrllama.perplexity import Perplexity, measure
from pyrllama.text_chunks import cut_text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from pyrllama.collecting import Collection
    from pyrllama.divergence import Base, Divergence
    from pyrllama.engine import Engine
    from pyrllama.model_config import ModelConfig
    from pyrllama.tokenizer import Tokenizer

_Result = TypeVar("_Result")


class Measures:
    """What ``Llama`` can measure over texts."""

    config: ModelConfig
    tokenizer: Tokenizer
    max_seq_len: int
    _engine: Engine

    def perplexity(
        self,
        text: str,
        *,
        context: int | None = None,
        chunks: int | None = None,
        save_logits: str | os.PathLike[str] | None = None,
        progress: Callable[[Perplexity], None] | None = None,
    ) -> Perplexity:
        """Measure how well the model predicts a text; ``pyrllama.perplexity`` has the method.

        ``context`` is by default 512 tokens, or what the model was loaded with if that is
        less; ``chunks`` stops after so many contexts.  ``save_logits`` names a file to write
        for ``divergence``.  ``progress`` is called with the result so far after each chunk.
        Raises ``PromptError`` for a text of less than two contexts.
        """
        chosen = cut_text(self.tokenizer, text, self.max_seq_len, context=context, chunks=chunks)
        if save_logits is None:
            return _last(measure(self._engine, self.tokenizer, chosen), progress)
        from pyrllama.logits_file import saved_logits  # noqa: PLC0415

        with saved_logits(Path(save_logits), chosen, self.config.vocab_size) as tap:
            return _last(measure(self._engine, self.tokenizer, chosen, tap), progress)

    def divergence(
        self,
        text: str | None,
        base: Measures | str | os.PathLike[str],
        *,
        context: int | None = None,
        chunks: int | None = None,
        progress: Callable[[Divergence], None] | None = None,
    ) -> Divergence:
        """Measure how far the model's predictions over a text are from those of ``base``.

        ``base`` is another model of the same vocabulary, or a file of logits that
        ``perplexity`` or llama.cpp saved; for a file, ``text`` None is the text that it is of.
        The rest is as in ``perplexity``; ``pyrllama.divergence`` has the method.  Raises
        ``ComparisonError`` for a base of another vocabulary or text.
        """
        from pyrllama.divergence import (  # noqa: PLC0415
            ModelBase,
            check_vocabularies,
            measure_divergence,
        )
        from pyrllama.logits_file import LogitsFile  # noqa: PLC0415

        with ExitStack() as stack:
            other: Base
            if isinstance(base, Measures):
                other = ModelBase(base._engine, base.tokenizer)
            else:
                other = stack.enter_context(closing(LogitsFile(Path(base))))
            check_vocabularies(self.config.vocab_size, other.vocab_size)
            chosen = other.text(
                self.tokenizer, text, self.max_seq_len, context=context, chunks=chunks
            )
            results = measure_divergence(self._engine, self.tokenizer, chosen, other)
            return _last(results, progress)

    def collect_importance(
        self,
        text: str,
        *,
        context: int | None = None,
        chunks: int | None = None,
        output: bool = False,
        progress: Callable[[Collection], None] | None = None,
    ) -> Collection:
        """Collect the importance of every matrix's columns over a text, for quantising.

        ``output`` is for the vocabulary projection too; the other settings are those of
        ``perplexity``.  ``pyrllama.collecting`` has the method.
        """
        from pyrllama.collecting import collect  # noqa: PLC0415

        chosen = cut_text(self.tokenizer, text, self.max_seq_len, context=context, chunks=chunks)
        return _last(collect(self._engine, chosen, output=output), progress)


def _last(results: Iterator[_Result], progress: Callable[[_Result], None] | None) -> _Result:
    """Show every result so far and return the last one."""
    result = None
    for result in results:
        if progress:
            progress(result)
    assert result is not None  # noqa: S101 - a text has at least one chunk
    return result
