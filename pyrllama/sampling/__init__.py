"""From a row of logits to a token: a chain of stages, each of which sees what the last one left.

For logits ``x``:

1. **Constraint, biases, bars** (``barred.py``): what a schema or grammar does not allow is no
   candidate; ``logit_bias`` is added; banned tokens, and the ends of a text that must go on,
   become minus infinity.
2. **The chain** (``chain.py``), in the order of ``core.SamplerStage`` or in that of ``samplers``:
   the original's repetition penalty, repeat, presence and frequency penalties, DRY, top-n-sigma,
   temperature, top-k, typical, top-p, min-p, XTC.  A stage that is off costs nothing.  Each one
   states its formula and its source where it is defined.
3. **Mirostat 2**, where it is on, stands for all stages that drop candidates.
4. What stays is scaled to a sum of 1, and one uniform number of a PCG64 generator picks the
   token, so that a seed reproduces a text exactly.

Without ``samplers`` the order is the original RLLaMA's, the temperature before the filters, and
top-p counts the mass of what top-k was given, not of what it left.  With ``samplers`` every stage
sees the probabilities of what is left, as in llama.cpp.

At temperature 0 the token with the largest logit after the biases and penalties is taken -
greedy - and no other stage has anything to do.  Between equal logits the lower token id comes
first.  A token's logprob is the natural logarithm of its probability after step 4; for a greedy
token, where that is always 0, it is that of a softmax at temperature 1 in its place.
"""

from pyrllama.sampling.sampler import Sampler, distribution

__all__ = ["Sampler", "distribution"]
