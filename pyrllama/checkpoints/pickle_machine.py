"""The state of the stack machine that a pickle is a program for: stream, stack and memo.

Every access is checked, so that a damaged or hostile pickle ends in a named error.  The
opcodes are in ``pickle_opcodes``; what persistent references and calls stand for is left to
a subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from pyrllama.errors import CorruptFileError, UnsafePickleError

if TYPE_CHECKING:
    from pathlib import Path

MAX_OPCODES = 1 << 20
"""An opcode makes one object at most, so this bounds objects, memo and stack as well."""
MAX_NESTED_MARKS = 64
MAX_NAME_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function that the pickle mentions; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class PickleMachine(ABC):
    """Holds what a running pickle works on; ``path`` is the file that errors name."""

    def __init__(self, data: bytes, path: Path) -> None:
        self._data = data
        self._path = path
        self._opcode_start = 0
        self._position = 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    @abstractmethod
    def persistent(self, reference: object) -> object:
        """Return the node for a reference to something that lies outside of the pickle."""

    @abstractmethod
    def call(self, function: object, arguments: object) -> object:
        """Return the node that a call stands for, or refuse it; never call anything."""

    # Errors.

    def corrupt(self, problem: str) -> NoReturn:
        """Raise ``CorruptFileError`` for the present opcode."""
        raise CorruptFileError(
            self._path,
            f"the pickle is damaged at byte {self._opcode_start}: {problem}; fetch the file again",
        )

    def unsafe(self, action: str) -> NoReturn:
        """Raise ``UnsafePickleError`` for the present opcode."""
        raise UnsafePickleError(
            self._path,
            f"the pickle {action} at byte {self._opcode_start}, but weights need nothing except "
            f"tensors; nothing of it was run; fetch the model from a source that you trust",
        )

    def refuse_call(self, function: object) -> NoReturn:
        """Raise ``UnsafePickleError`` that names the function."""
        self.unsafe(f"calls {function if isinstance(function, Global) else 'something unnamed'}")

    # The stream.

    def next_opcode(self) -> int:
        """Return the code at the present position and step over it."""
        self._opcode_start = self._position
        return self.take(1)[0]

    def take(self, length: int) -> bytes:
        """Return the next bytes; nothing is allocated for a length beyond the end."""
        end = self._position + length
        if end > len(self._data):
            self.corrupt(f"it ends {end - len(self._data)} bytes too early")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def unsigned(self, width: int) -> int:
        """Return a little-endian number of ``width`` bytes."""
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        """Return the text up to the next newline."""
        end = self._data.find(b"\n", self._position, self._position + MAX_NAME_BYTES)
        if end < 0:
            self.corrupt(f"a name does not end within {MAX_NAME_BYTES} bytes")
        line = self.take(end - self._position)
        self._position += 1
        return self.decode(line)

    def decimal_line(self) -> int:
        """Return the number that is written in digits up to the next newline."""
        line = self.line()
        if not (line.isascii() and line.isdigit() and len(line) <= 20):
            self.corrupt("a number is not written in digits")
        return int(line)

    def decode(self, encoded: bytes) -> str:
        """Return UTF-8 as text; pickles write lone surrogates as they stand."""
        try:
            return encoded.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            self.corrupt("a text is not UTF-8")

    def remaining(self) -> int:
        """Bytes after the present position."""
        return len(self._data) - self._position

    # The stack and its marks.

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> object:
        """Take the topmost value, but none from below the last mark."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            self.corrupt("it takes a value from an empty stack")
        return self._stack.pop()

    def top(self) -> object:
        """Return the topmost value and leave it."""
        value = self.pop()
        self._stack.append(value)
        return value

    def mark(self) -> None:
        """Remember how high the stack is."""
        if len(self._marks) == MAX_NESTED_MARKS:
            self.corrupt(f"its values are nested deeper than {MAX_NESTED_MARKS}")
        self._marks.append(len(self._stack))

    def pop_marked(self) -> list[object]:
        """Take all values above the last mark, and the mark."""
        if not self._marks:
            self.corrupt("it goes back to a mark that was never set")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    # The memo.

    def put(self, index: int) -> None:
        """Remember the topmost value."""
        # A bounded index also keeps chosen hash collisions out of the dictionary.
        if index >= MAX_OPCODES:
            self.corrupt(f"it stores a value as number {index}, beyond {MAX_OPCODES}")
        self._memo[index] = self.top()

    def put_next(self) -> None:
        """Remember the topmost value under the next number."""
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        """Push a remembered value."""
        if index not in self._memo:
            self.corrupt(f"it recalls value {index}, which was never stored")
        self.push(self._memo[index])
