"""What the opcodes of a pickle do to the machine, as far as PyTorch's files have them.

Source: ``Lib/pickletools.py`` of CPython, protocols 0 to 5.  The text forms of protocol 0
and the calls that PyTorch never writes are read only so that a hostile file is refused for
what it calls.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

from pyrllama.checkpoints.pickle_machine import MAX_NAME_BYTES, MAX_OPCODES, Global

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.checkpoints.pickle_machine import PickleMachine

LAST_PROTOCOL = 5
MAX_INT_BYTES = 16


class Op(enum.IntEnum):
    """Opcodes that are read, or refused by name."""

    MARK = ord("(")
    EMPTY_TUPLE = ord(")")
    STOP = ord(".")
    POP = ord("0")
    POP_MARK = ord("1")
    DUP = ord("2")
    BINBYTES = ord("B")
    SHORT_BINBYTES = ord("C")
    BINFLOAT = ord("G")
    INT = ord("I")
    BININT = ord("J")
    BININT1 = ord("K")
    BININT2 = ord("M")
    NONE = ord("N")
    BINPERSID = ord("Q")
    REDUCE = ord("R")
    STRING = ord("S")
    BINSTRING = ord("T")
    SHORT_BINSTRING = ord("U")
    UNICODE = ord("V")
    BINUNICODE = ord("X")
    EMPTY_LIST = ord("]")
    APPEND = ord("a")
    BUILD = ord("b")
    GLOBAL = ord("c")
    DICT = ord("d")
    APPENDS = ord("e")
    GET = ord("g")
    BINGET = ord("h")
    INST = ord("i")
    LONG_BINGET = ord("j")
    LIST = ord("l")
    OBJ = ord("o")
    PUT = ord("p")
    BINPUT = ord("q")
    LONG_BINPUT = ord("r")
    SETITEM = ord("s")
    TUPLE = ord("t")
    SETITEMS = ord("u")
    EMPTY_DICT = ord("}")
    PROTO = 0x80
    NEWOBJ = 0x81
    TUPLE1 = 0x85
    TUPLE2 = 0x86
    TUPLE3 = 0x87
    NEWTRUE = 0x88
    NEWFALSE = 0x89
    LONG1 = 0x8A
    LONG4 = 0x8B
    SHORT_BINUNICODE = 0x8C
    BINUNICODE8 = 0x8D
    BINBYTES8 = 0x8E
    NEWOBJ_EX = 0x92
    STACK_GLOBAL = 0x93
    MEMOIZE = 0x94
    FRAME = 0x95


def run(machine: PickleMachine) -> object:
    """Carry out the opcodes up to STOP and return the value that is left."""
    for _ in range(MAX_OPCODES):
        code = machine.next_opcode()
        if code == Op.STOP:
            return machine.pop()
        handler = _HANDLERS.get(code)
        if handler is None:
            machine.corrupt(f"opcode 0x{code:02x} is not one that PyTorch writes")
        handler(machine)
    return machine.corrupt(f"it has more than {MAX_OPCODES} opcodes")


def _proto(m: PickleMachine) -> None:
    if m.unsigned(1) > LAST_PROTOCOL:
        m.corrupt(f"it is of a protocol after {LAST_PROTOCOL}")


def _frame(m: PickleMachine) -> None:
    if m.unsigned(8) > m.remaining():
        m.corrupt("a frame is longer than the pickle")


def _signed(m: PickleMachine, width: int) -> None:
    if width > MAX_INT_BYTES:
        m.corrupt(f"a whole number has {width} bytes")
    m.push(int.from_bytes(m.take(width), "little", signed=True))


def _text(m: PickleMachine, length: int) -> None:
    m.push(m.decode(m.take(length)))


def _tuple_of(m: PickleMachine, count: int) -> None:
    m.push(tuple([m.pop() for _ in range(count)][::-1]))


def _extend(m: PickleMachine, values: list[object]) -> None:
    target = m.top()
    if not isinstance(target, list):
        m.corrupt("it appends to something other than a list")
    target.extend(values)


def _set_items(m: PickleMachine, items: list[object]) -> None:
    target = m.top()
    if not isinstance(target, dict) or len(items) % 2:
        m.corrupt("it sets items of something other than a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Other keys can be made costly to hash; a state dictionary has none.
        if not isinstance(key, str):
            m.corrupt("a key of a dictionary is not a text")
        target[key] = value


def _dict(m: PickleMachine) -> None:
    items = m.pop_marked()
    m.push({})
    _set_items(m, items)


def _global(m: PickleMachine) -> None:
    m.push(Global(m.line(), m.line()))


def _stack_global(m: PickleMachine) -> None:
    name, module = m.pop(), m.pop()
    if not (isinstance(module, str) and isinstance(name, str)):
        m.corrupt("the name of a class or function is not a text")
    if len(module) + len(name) > MAX_NAME_BYTES:
        m.corrupt(f"a name is longer than {MAX_NAME_BYTES} characters")
    m.push(Global(module, name))


def _reduce(m: PickleMachine) -> None:
    arguments, function = m.pop(), m.pop()
    m.push(m.call(function, arguments))


def _build(m: PickleMachine) -> None:
    state, target = m.pop(), m.top()
    # A module's state dictionary carries ``_metadata``, which no model needs.
    if not (isinstance(target, dict) and isinstance(state, dict)):
        m.unsafe("sets the state of an object")


def _new_object(m: PickleMachine, arguments: int) -> None:
    for _ in range(arguments):
        m.pop()
    m.refuse_call(m.pop())


def _inst(m: PickleMachine) -> None:
    m.refuse_call(Global(m.line(), m.line()))


def _obj(m: PickleMachine) -> None:
    values = m.pop_marked()
    m.refuse_call(values[0] if values else None)


_HANDLERS: dict[int, Callable[[PickleMachine], object]] = {
    Op.MARK: lambda m: m.mark(),
    Op.EMPTY_TUPLE: lambda m: m.push(()),
    Op.POP: lambda m: m.pop(),
    Op.POP_MARK: lambda m: m.pop_marked(),
    Op.DUP: lambda m: m.push(m.top()),
    Op.BINBYTES: lambda m: m.push(m.take(m.unsigned(4))),
    Op.SHORT_BINBYTES: lambda m: m.push(m.take(m.unsigned(1))),
    Op.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    Op.INT: lambda m: m.push(m.decimal_line()),
    Op.BININT: lambda m: _signed(m, 4),
    Op.BININT1: lambda m: m.push(m.unsigned(1)),
    Op.BININT2: lambda m: m.push(m.unsigned(2)),
    Op.NONE: lambda m: m.push(None),
    Op.BINPERSID: lambda m: m.push(m.persistent(m.pop())),
    Op.REDUCE: _reduce,
    Op.STRING: lambda m: m.push(m.line()),
    Op.BINSTRING: lambda m: m.push(m.take(m.unsigned(4))),
    Op.SHORT_BINSTRING: lambda m: m.push(m.take(m.unsigned(1))),
    Op.UNICODE: lambda m: m.push(m.line()),
    Op.BINUNICODE: lambda m: _text(m, m.unsigned(4)),
    Op.EMPTY_LIST: lambda m: m.push([]),
    Op.APPEND: lambda m: _extend(m, [m.pop()]),
    Op.BUILD: _build,
    Op.GLOBAL: _global,
    Op.DICT: _dict,
    Op.APPENDS: lambda m: _extend(m, m.pop_marked()),
    Op.GET: lambda m: m.get(m.decimal_line()),
    Op.BINGET: lambda m: m.get(m.unsigned(1)),
    Op.INST: _inst,
    Op.LONG_BINGET: lambda m: m.get(m.unsigned(4)),
    Op.LIST: lambda m: m.push(m.pop_marked()),
    Op.OBJ: _obj,
    Op.PUT: lambda m: m.put(m.decimal_line()),
    Op.BINPUT: lambda m: m.put(m.unsigned(1)),
    Op.LONG_BINPUT: lambda m: m.put(m.unsigned(4)),
    Op.SETITEM: lambda m: _set_items(m, [m.pop(), m.pop()][::-1]),
    Op.TUPLE: lambda m: m.push(tuple(m.pop_marked())),
    Op.SETITEMS: lambda m: _set_items(m, m.pop_marked()),
    Op.EMPTY_DICT: lambda m: m.push({}),
    Op.PROTO: _proto,
    Op.NEWOBJ: lambda m: _new_object(m, 1),
    Op.TUPLE1: lambda m: _tuple_of(m, 1),
    Op.TUPLE2: lambda m: _tuple_of(m, 2),
    Op.TUPLE3: lambda m: _tuple_of(m, 3),
    Op.NEWTRUE: lambda m: m.push(True),
    Op.NEWFALSE: lambda m: m.push(False),
    Op.LONG1: lambda m: _signed(m, m.unsigned(1)),
    Op.LONG4: lambda m: _signed(m, m.unsigned(4)),
    Op.SHORT_BINUNICODE: lambda m: _text(m, m.unsigned(1)),
    Op.BINUNICODE8: lambda m: _text(m, m.unsigned(8)),
    Op.BINBYTES8: lambda m: m.push(m.take(m.unsigned(8))),
    Op.NEWOBJ_EX: lambda m: _new_object(m, 2),
    Op.STACK_GLOBAL: _stack_global,
    Op.MEMOIZE: lambda m: m.put_next(),
    Op.FRAME: _frame,
}
