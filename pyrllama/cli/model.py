"""The model that a command runs: the options that name it, and what is said while it loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pyrllama.cli.options import (
    PATH,
    QUANTIZE_HELP,
    backend_option,
    chosen_backend,
    chosen_weight_type,
    memory_option,
    opencl_options,
    threads_option,
)
from pyrllama.cli.terminal import loading_bar, note
from pyrllama.load_llama import load
from pyrllama.loading import KV_TYPES, Backend, local_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyrllama.cli.options import Decorator
    from pyrllama.llama import Llama
    from pyrllama.tensors import TensorType

MODEL_HELP = """Folder of a Meta or Hugging Face checkpoint, a GGUF, .pth or llama2.c file, or
hf:OWNER/REPO[:FILE or quantisation] on the Hugging Face hub; by default the small story model
that comes with rllama."""
PACKAGED = "the model of the package"
DEFAULT_NOTE = (
    "using the small story model that comes with rllama; for a real one give --model-path PATH or "
    "--model-path hf:OWNER/REPO (see 'rllama pull --help')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The options of ``model_options`` as click hands them over."""

    model_path: Path | None
    tokenizer_path: Path | None
    param_path: Path | None
    threads: int | None
    f16: bool
    f32: bool
    bf16: bool
    quantize: str | None
    kv_type: str
    check_memory: bool
    backend: str
    opencl_devices: tuple[int, ...] | None
    gpu_share: float | None

    @property
    def model_name(self) -> str:
        """What reports call the model."""
        return PACKAGED if self.model_path is None else str(self.model_path)

    @property
    def weight_type(self) -> TensorType | None:
        """The type to convert the weights to; raises ``SettingError`` if several are given."""
        return chosen_weight_type(self.quantize, f16=self.f16, f32=self.f32, bf16=self.bf16)

    @property
    def chosen_backend(self) -> str:
        """The backend, which an option about OpenCL devices implies."""
        return chosen_backend(self.backend, self.opencl_devices, self.gpu_share)

    def load(self, *, max_seq_len: int | None, quiet: bool, **settings: Any) -> Llama:
        """Load the model; unless ``quiet``, say which one, and how much memory it needs.

        ``settings`` are further ones of ``llama.load``.
        """
        weight_type, backend = self.weight_type, self.chosen_backend
        if backend == Backend.OPENCL and not quiet:
            note_devices()
        path = locate(self.model_path, quiet=quiet)
        with loading_bar(quiet=quiet) as progress:
            return load(
                path,
                tokenizer_path=self.tokenizer_path,
                param_path=self.param_path,
                quantize=weight_type,
                kv_type=self.kv_type,
                max_seq_len=max_seq_len,
                threads=self.threads,
                backend=backend,
                opencl_devices=self.opencl_devices,
                gpu_share=self.gpu_share,
                progress=progress,
                check_memory=self.check_memory,
                on_memory=None if quiet else lambda need: note(f"the model {need}"),
                **settings,
            )


def note_devices() -> None:
    """Say which OpenCL devices there are."""
    from pyrllama.opencl import list_devices  # noqa: PLC0415 - an optional package

    note("OpenCL devices: " + "; ".join(map(str, list_devices())))


def locate(model_path: Path | None, *, quiet: bool) -> Path:
    """Return where the model lies on this machine, after fetching it from the hub if need be.

    Unless ``quiet``, it is said when that is the model of the package.
    """
    if model_path is None and not quiet:
        note(DEFAULT_NOTE)
    return local_path(model_path, progress=not quiet)


def model_options() -> Decorator:
    """Return the options of a command that runs a model, those of ``ModelOptions``."""
    options = (
        click.option("--model-path", type=PATH, help=MODEL_HELP),
        click.option(
            "--tokenizer-path",
            "--tokenizer-model",
            type=PATH,
            help="Tokenizer; by default the one inside, beside or above the checkpoint.",
        ),
        click.option(
            "--param-path", type=PATH, help="params.json; by default the one beside the weights."
        ),
        threads_option("--max-threads"),
        click.option("--f16", is_flag=True, help="Convert the weights to float16."),
        click.option("--f32", is_flag=True, help="Convert the weights to float32."),
        click.option("--bf16", is_flag=True, help="Convert the weights to bfloat16."),
        click.option(
            "--quantize",
            type=click.Choice(["q8_0", "q4_0"], case_sensitive=False),
            help=QUANTIZE_HELP,
        ),
        click.option(
            "--kv-type",
            type=click.Choice(list(KV_TYPES), case_sensitive=False),
            default="f16",
            show_default=True,
            help="Type of the KV cache; f32 takes twice the memory of f16 and rounds nothing, q8_0 "
            "half of it.",
        ),
        memory_option(),
        backend_option(),
        *opencl_options(),
    )

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
