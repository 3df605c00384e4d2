"""Texts that match a JSON schema, a regular expression or a grammar, by construction.

``llguidance`` (https://github.com/guidance-ai/llguidance) says before every token which ones can
still lead to a match; the sampler chooses among these.  ``grammar.py`` reads what is to be
matched, ``vocabulary.py`` tells the library what the model's tokens are, and ``matcher.py``
follows one text.  The library is imported by the first call that needs it.
"""

from pyrllama.structured.grammar import Structure, read_structure
from pyrllama.structured.matcher import Constraint
from pyrllama.structured.vocabulary import Vocabulary

__all__ = ["Constraint", "Structure", "Vocabulary", "read_structure"]
