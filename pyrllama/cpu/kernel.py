"""What turns Python functions into kernels: decorators, views of records, calls by address."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import lower_getattr_generic, models, register_model

from pyrllama.cpu import vectors

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.records import Record

F = TypeVar("F", bound="Callable[..., Any]")

View: TypeAlias = Any
"""A record in a kernel whose fields read as attributes; its own type exists for Numba alone."""

_OPTIONS = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True}


class KernelFunction:
    """A function that can be compiled to an entry of its own; every argument is an int64."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.__doc__ = function.__doc__
        self.function = function
        self.n_arguments = len(inspect.signature(function).parameters)

    def compile(self) -> Any:
        """Return Numba's compile result, whose library holds the LLVM code."""
        dispatcher = njit(no_cfunc_wrapper=True, **_OPTIONS)(self.function)
        signature = types.void(*[types.int64] * self.n_arguments)
        dispatcher.compile(signature)
        return dispatcher.overloads[signature.args]


def kernel(function: Callable[..., None]) -> KernelFunction:
    """Mark a function as an entry: ``compiler.load("module.function")`` makes it callable."""
    return KernelFunction(function)


def inline(function: F) -> F:
    """Mark a function as a part of kernels that is always inlined into them."""
    made: F = njit(forceinline=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
    return made


def part(function: F) -> F:
    """Mark a function as a part of kernels that LLVM may inline or call."""
    made: F = njit(no_cfunc_wrapper=True, **_OPTIONS)(function)
    return made


class RecordView(types.Type):
    """Numba's type of a record's address whose fields read as attributes."""

    def __init__(self, record: Record) -> None:
        self.record = record
        super().__init__(name=f"{record.name}View")


@register_model(RecordView)
class _RecordViewModel(models.PrimitiveModel):
    def __init__(self, manager: Any, record_view: RecordView) -> None:
        super().__init__(manager, record_view, vectors.I64)


@infer_getattr
class _RecordViewAttributes(AttributeTemplate):
    key = RecordView

    def generic_resolve(self, record_view: RecordView, field: str) -> Any:
        if field in record_view.record.floats:
            return types.float32
        return types.int64 if field in record_view.record.integers else None


def _read_field(_context: Any, builder: Any, kind: Any, address: Any, field: str) -> Any:
    element = vectors.F32 if field in kind.record.floats else vectors.I64
    place = builder.add(address, vectors.I64(kind.record.offset(field)))
    return builder.load(vectors.pointer(builder, place, element), align=4)


lower_getattr_generic(RecordView)(_read_field)


def view(record: Record) -> Callable[[int], Any]:
    """Return a function for kernels that looks at an address as a record of this layout."""
    record_view = RecordView(record)

    @vectors.instruction
    def look(_typing: Any, address: Any) -> Any:
        return record_view(types.int64), lambda _context, _builder, _sig, args: args[0]

    return look


@vectors.instruction
def call(_typing: Any, address: Any, *arguments: Any) -> Any:
    """Call a kernel by its address; every argument is an int64."""
    count = len(arguments)

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [vectors.I64] * count)
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, cgutils.unpack_tuple(builder, args[1], count))
        return context.get_dummy_value()

    return types.void(types.int64, types.StarArgTuple([types.int64] * count)), build
