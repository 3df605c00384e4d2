"""The kernels' sources, which all stand in one program and share one preprocessor."""

from __future__ import annotations

import re
from collections import defaultdict

from pyrllama.opencl.program import A_TYPE, BEFORE_TYPES, source_text


def test_no_macro_is_defined_by_two_files() -> None:
    """Else all types of weights but a program's first would read the meaning of another file."""
    files = defaultdict(set)
    for name in (*BEFORE_TYPES, *A_TYPE, "persistent"):
        for macro in re.findall(r"^ *# *define (\w+)", source_text(name), re.MULTILINE):
            files[macro].add(name)
    assert len(files) > 100
    assert {macro: names for macro, names in files.items() if len(names) > 1} == {}
