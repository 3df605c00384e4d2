"""One option for each setting of the sampler; none has a default, so that it shows what was given.

Names that are llama.cpp's mean what they mean there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyrllama.core import Sampling
from pyrllama.sampling_ranges import SamplerStage, stage_names

if TYPE_CHECKING:
    from pyrllama.cli.options import Decorator

DEFAULTS = Sampling()

PENALTY_HELP = """Multiply the logit of a token by PENALTY^occurrences in the text so far, prompt
included, as the original RLLaMA does: values under 1.0 penalise repetition, values over 1.0
encourage it, 1.0 is off. A negative logit is divided instead, so that a value under 1.0
penalises it too."""
SAMPLERS_HELP = f"""Stages in their order, separated by semicolons: {", ".join(SamplerStage)}. A
stage that is not named is left out, and each sees what the one before left, as in llama.cpp.
[default: all of them in this order]"""


def _flag(*names: str, help: str, type: Any = float, **more: Any) -> Decorator:  # noqa: A002
    """Return the option of the setting that the last of ``names`` is."""
    default = getattr(DEFAULTS, names[-1])
    if default is not None and default != () and "[default" not in help:
        help = f"{help}  [default: {default:g}]" if type in {float, int} else help  # noqa: A001
    return click.option(*names, type=type, default=None, help=help, **more)


SAMPLING_FLAGS: tuple[Decorator, ...] = (
    _flag("--temperature", "--temp", "temperature", help="0 takes the likeliest token."),
    _flag("--top-p", "top_p", help="Keep the likeliest tokens up to this mass; 1 is off."),
    _flag("--top-k", "top_k", type=int, help="Keep this many of the likeliest tokens; 0 is off."),
    _flag("--min-p", "min_p", help="Keep tokens at least this share as likely as the likeliest."),
    _flag(
        "--typical-p",
        "--typical",
        "typical_p",
        help="Keep the tokens of most typical surprise up to this mass; 1 is off.",
    ),
    _flag(
        "--top-n-sigma",
        "--top-nsigma",
        "top_n_sigma",
        help="Keep logits within so many standard deviations of the largest; 0 is off.",
    ),
    _flag(
        "--xtc-probability",
        "xtc_probability",
        help="Chance of dropping all likely tokens but the least likely of them.",
    ),
    _flag("--xtc-threshold", "xtc_threshold", help="Probability that is likely, for XTC."),
    _flag(
        "--dynatemp-range",
        "dynatemp_range",
        help="Let the temperature move so far up and down with the prediction's entropy.",
    ),
    _flag(
        "--dynatemp-exp", "dynatemp_exponent", help="Exponent with which the entropy counts there."
    ),
    _flag("--repetition-penalty", "repetition_penalty", metavar="PENALTY", help=PENALTY_HELP),
    _flag(
        "--repeat-penalty",
        "repeat_penalty",
        help="Divide the logits of tokens that were said, as llama.cpp: over 1 penalises.",
    ),
    _flag(
        "--repeat-last-n",
        "repeat_last_n",
        type=int,
        help="Tokens that the three penalties of llama.cpp look back at; -1 is all, 0 none.",
    ),
    _flag("--presence-penalty", "presence_penalty", help="Take this off what was said at all."),
    _flag(
        "--frequency-penalty", "frequency_penalty", help="Take this off for each time it was said."
    ),
    _flag(
        "--dry-multiplier",
        "dry_multiplier",
        help="Penalise going on with a repeated sequence (DRY); 0 is off.",
    ),
    _flag("--dry-base", "dry_base", help="What a token more of it multiplies the penalty by."),
    _flag(
        "--dry-allowed-length",
        "dry_allowed_length",
        type=int,
        help="Tokens that may be repeated without a penalty.",
    ),
    _flag(
        "--dry-penalty-last-n",
        "dry_penalty_last_n",
        type=int,
        help="Tokens that DRY looks back at; -1 is all, 0 none.",
    ),
    _flag(
        "--dry-sequence-breaker",
        "dry_sequence_breakers",
        type=str,
        multiple=True,
        metavar="TEXT",
        help="Text over which DRY sees no repetition; may be given several times.  "
        "[default: line end, colon, quotation mark, asterisk]",
    ),
    _flag(
        "--mirostat", "mirostat", type=int, help="2 keeps the surprise near a target (Mirostat 2)."
    ),
    _flag("--mirostat-ent", "mirostat_tau", help="That target, in bits."),
    _flag("--mirostat-lr", "mirostat_eta", help="How fast it is approached."),
    _flag(
        "--logit-bias",
        "logit_bias",
        type=str,
        multiple=True,
        metavar="ID(+/-)BIAS",
        help="Add to a token's logit: 15043+1; 15043-inf bans it. May be given several times.",
    ),
    _flag(
        "--ban-token",
        "banned_tokens",
        type=int,
        multiple=True,
        metavar="ID",
        help="Never choose this token; may be given several times.",
    ),
    _flag(
        "--samplers",
        "samplers",
        type=stage_names,
        metavar="STAGE;STAGE...",
        help=SAMPLERS_HELP,
    ),
    _flag(
        "--min-tokens",
        "min_tokens",
        type=int,
        help="Tokens before which the text does not end by itself.",
    ),
    click.option(
        "--ignore-eos",
        is_flag=True,
        default=None,
        help="Go on where the model would end, up to --max-tokens.",
    ),
    _flag("--seed", "seed", type=int, help="Reproduces a text exactly; by default a fresh one."),
)
