"""Jinja2's immutable sandbox, metered: what chat templates of strangers run in.

The sandbox keeps a template from Python's internals.  This one also bounds what it uses (see
``meter``): the generated code counts its steps, all that makes a value charges for it, and of
methods and filters only those are offered whose cost is known.  The settings and helpers are
those with which model authors write their templates: ``apply_chat_template`` of transformers.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

from pyrllama.chat import growth
from pyrllama.chat.meter import LimitError, Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from jinja2.compiler import Frame
    from jinja2.parser import Parser
    from jinja2.runtime import Context

FILTERS = (
    "abs batch capitalize count d default dictsort e escape first float forceescape format groupby "
    "indent int items join last length list lower map max min reject rejectattr replace reverse "
    "round safe select selectattr slice sort string trim truncate unique upper urlencode"
).split()
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal "
        "isdigit islower isnumeric isspace istitle isupper join lower lstrip partition "
        "removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
        "splitlines startswith strip swapcase title upper".split()
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    bytes: frozenset(),
    int: frozenset(),
    float: frozenset(),
}
"""What may be called on values; nothing that makes much out of little is among it."""

MAX_TIME_FORMAT = 200


class MeteredGenerator(CodeGenerator):
    """Generates code that counts its steps and charges for the values that it makes."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Count one step for the body of a loop, a condition or a macro."""
        self.writeline("environment.meter.step()")
        super().blockvisit(nodes, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        """Count a comparison, which may look for a text in a long one."""
        self._wrapped("step", super().visit_Compare, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        """Charge for a new list."""
        self._wrapped("charge", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        """Charge for a new mapping."""
        self._wrapped("charge", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        """Charge for a new tuple; the targets of an assignment are one as well."""
        if node.ctx == "load":
            self._wrapped("charge", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        """Charge for a part cut out of a text or list."""
        method = "charge" if isinstance(node.arg, nodes.Slice) else "step"
        self._wrapped(method, super().visit_Getitem, node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        """Let the meter join texts (``~``)."""
        self.write("environment.meter.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _wrapped(
        self, method: str, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame
    ) -> None:
        self.write(f"environment.meter.{method}(")
        visit(node, frame)
        self.write(")")


class QuietNamespace(Namespace):
    """``namespace()``, which does not write out what it holds: that may be itself."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        names = {str(name) for name in dict(*args, **kwargs)}
        if private := sorted(name for name in names if name.startswith("_")):
            raise SecurityError(f"a namespace cannot hold {private[0]!r}")
        super().__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class GenerationTag(Extension):
    """``{% generation %}`` around what the model writes: training uses it, here it is nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Runs one template at a time; ``meter`` is that of the rendering under way."""

    code_generator_class = MeteredGenerator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        extensions = [GenerationTag, LoopControlExtension]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.meter = Meter()
        self.now: datetime | None = None
        self._plain = ImmutableSandboxedEnvironment()
        self.finalize = self._weighed
        self.filters = {name: self._filter(name) for name in FILTERS} | {"tojson": self._to_json}
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]
        self.globals.update(
            namespace=QuietNamespace,
            raise_exception=_raise_exception,
            strftime_now=self._strftime_now,
        )

    def concat(self, parts: Iterable[str]) -> str:
        """Join the output of a block."""
        return self.meter.joined(parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Offer of values only the methods that are listed."""
        for kind, offered in METHODS.items():
            if isinstance(obj, kind):
                return attr in offered
        return super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute; the methods that could make much have our own in their place."""
        value = super().getattr(obj, attribute)
        if isinstance(obj, str) and callable(value):
            if attribute == "join":
                return partial(growth.join, self.meter, obj)
            if attribute == "replace":
                return partial(growth.replace, self.meter, obj)
            if attribute == "format":
                return partial(growth.formatted, self.meter, obj, value)
        return value

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call something, count it, and charge for what it returns."""
        self.meter.step()
        return self.meter.charge(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what an operator gives unless that would be too much."""
        self.meter.step()
        growth.check_operation(self.meter, operator, left, right)
        return self.meter.charge(super().call_binop(context, operator, left, right))

    def _weighed(self, value: Any) -> Any:
        """Charge for a value that is put out, before it is made a text."""
        return self.meter.charge(value)

    def _filter(self, name: str) -> Callable[..., Any]:
        """Return a filter of Jinja2 that is counted and charged for, and bounded where needed."""
        bound = growth.FILTER_BOUNDS.get(name)

        @pass_context  # so that the compiler does not call it
        def metered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            self.meter.step()
            if bound:
                value = bound(self.meter, value, *args, **kwargs)
            result = self._plain.call_filter(name, value, args, kwargs, context)
            return self.meter.charge(result)

        return metered

    @pass_context  # as above
    def _to_json(
        self,
        context: Context,  # noqa: ARG002
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """Write JSON as transformers does: no HTML escapes, and Unicode as it is."""
        growth.check_json(self.meter, value, indent, separators)
        options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        text = json.dumps(value, ensure_ascii=ensure_ascii, **options)
        return self.meter.charge(text)

    def _strftime_now(self, format: str) -> str:  # noqa: A002 - as templates may call it
        if len(format) > MAX_TIME_FORMAT or self.now is None:
            raise LimitError(f"a format of a time has more than {MAX_TIME_FORMAT} characters")
        return self.now.strftime(format)


def _raise_exception(message: object) -> None:
    """Refuse a conversation, as templates do with roles that they do not know."""
    raise TemplateError(str(message))
