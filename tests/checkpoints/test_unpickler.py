"""The unpickler: what PyTorch writes is understood, everything else is a named error."""

from __future__ import annotations

import collections
import os
import pickle
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mutations import mutations
from support.torch_writer import PickledTensor, torch_pickle

from pyrllama.checkpoints.pickle_machine import MAX_NESTED_MARKS, MAX_OPCODES, Global
from pyrllama.checkpoints.pickle_opcodes import Op
from pyrllama.checkpoints.unpickler import (
    MAX_PICKLE_BYTES,
    StorageRef,
    TensorRef,
    unpickle,
)
from pyrllama.errors import CorruptFileError, RllamaError, UnsafePickleError

PATH = Path("weights.pth")
TENSOR = PickledTensor("HalfStorage", "7", 24, 4, (2, 3), (3, 1))
STATE = torch_pickle({"a": TENSOR, "b": PickledTensor("FloatStorage", "8", 9, 0, (9,), (1,))})


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


class Plain:
    """Pickles as an object of this module's."""


def test_state_dictionary_of_tensors() -> None:
    assert unpickle(STATE, PATH) == {
        "a": TensorRef(StorageRef("HalfStorage", "7", 24), 4, (2, 3), (3, 1)),
        "b": TensorRef(StorageRef("FloatStorage", "8", 9), 0, (9,), (1,)),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_what_pickle_reads(protocol: int) -> None:
    value = {
        "numbers": [0, 255, 65535, -1, 2**31 - 1, -(2**31), 2**40, -(2**63), 2**100],
        "floats": [0.0, -1.5, 1e300],
        "texts": ["", "ä" * 100, "x" * 300, "\ud800"],
        "rest": (None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}),
        "shared": [["same"]] * 3,
    }
    assert unpickle(pickle.dumps(value, protocol), PATH) == value


def test_bytes_are_read_at_protocols_that_have_them() -> None:
    value = [b"abc", b"x" * 300]
    assert unpickle(pickle.dumps(value, 4), PATH) == value


def test_ordered_dictionary_with_metadata_keeps_its_items() -> None:
    # What ``module.state_dict()`` is: an OrderedDict that carries ``_metadata``.
    state = collections.OrderedDict([("a", 1), ("b", 2)])
    state.__dict__["_metadata"] = collections.OrderedDict([("", {"version": 1})])
    assert unpickle(pickle.dumps(state, 2), PATH) == {"a": 1, "b": 2}


def test_parameter_is_its_tensor() -> None:
    call = STATE.replace(b"}q\x00(", b"ctorch._utils\n_rebuild_parameter\n(", 1)
    first_tensor = call[: call.index(b"X\x01\x00\x00\x00b")].replace(
        b"X\x01\x00\x00\x00aq\x01", b""
    )
    parameter = unpickle(first_tensor + b"\x88NtR.", PATH)
    assert parameter == TensorRef(StorageRef("HalfStorage", "7", 24), 4, (2, 3), (3, 1))


def test_name_that_is_only_mentioned_stays_inert() -> None:
    assert unpickle(b"\x80\x02cos\nsystem\n.", PATH) == Global("os", "system")


@pytest.mark.parametrize("protocol", range(6))
def test_call_of_a_function_is_refused_by_name(protocol: int, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    hostile = pickle.dumps({"a": Call(os.system, f"touch {victim}")}, protocol)
    with pytest.raises(UnsafePickleError, match=rf"weights.pth: .* calls {os.name}\.system at"):
        unpickle(hostile, PATH)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("opcodes", "named"),
    [
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "calls builtins.eval at byte 23"),
        (b"(cos\nsystem\nX\x02\x00\x00\x00lso.", "calls os.system at byte 19"),
        (b"(X\x02\x00\x00\x00lsios\nsystem\n.", "calls os.system"),
        (b"cos\nsystem\n)\x81.", "calls os.system"),
        (b"cos\nsystem\n)}\x92.", "calls os.system"),
        (b"ctorch._utils\n_rebuild_tensor_v9\n)R.", "calls torch._utils._rebuild_tensor_v9"),
        (b"ccollections\nOrderedDict\n(]tR.", "calls collections.OrderedDict"),
        (b"X\x02\x00\x00\x00ls)R.", "calls something unnamed"),
        (b"cos\nsystem\n}b.", "sets the state of an object at byte 12"),
        (b"(o.", "calls something unnamed"),
    ],
)
def test_every_kind_of_call_is_refused(opcodes: bytes, named: str) -> None:
    with pytest.raises(UnsafePickleError, match=named):
        unpickle(opcodes, PATH)


@pytest.mark.parametrize("protocol", [2, 4])
def test_object_is_refused(protocol: int) -> None:
    with pytest.raises(UnsafePickleError, match=r"calls (copyreg|copy_reg|.*Plain)"):
        unpickle(pickle.dumps(Plain(), protocol), PATH)


@pytest.mark.parametrize(
    ("opcodes", "problem"),
    [
        (b"", "at byte 0: it ends 1 bytes too early"),
        (b"\x80\x02", "at byte 2: it ends"),
        (b"\x80\x06N.", "a protocol after 5"),
        (b".", "empty stack"),
        (b"N(.", "empty stack"),
        (b"Nt.", "a mark that was never set"),
        (b"h\x01.", "recalls value 1"),
        (b"Nr\xff\xff\xff\xff.", "stores a value as number 4294967295"),
        (b"X\xff\xff\xff\x7fabc", "at byte 0: it ends 2147483644 bytes too early"),
        (b"\x8d" + b"\xff" * 8 + b"abc", "bytes too early"),
        (b"\x8e" + b"\xff" * 8, "bytes too early"),
        (b"\x8b\xff\xff\xff\xff", "a whole number has 4294967295 bytes"),
        (b"\x8a\xff" + b"\x00" * 255 + b".", "a whole number has 255 bytes"),
        (b"\x95\xff\x00\x00\x00\x00\x00\x00\x00N.", "frame is longer"),
        (b"X\x02\x00\x00\x00\xff\xff.", "not UTF-8"),
        (b"cos\nsystem", "does not end within"),
        (b"c" + b"x" * 5000 + b"\ny\n.", "does not end within 1024 bytes"),
        (b"X\x00\x08\x00\x00" + b"x" * 2048 + b"X\x01\x00\x00\x00a\x93.", "name is longer"),
        (b"NN\x93.", "is not a text"),
        (b"NNa.", "other than a list"),
        (b"N(e.", "other than a list"),
        (b"NNNs.", "other than a dictionary"),
        (b"}(Nu.", "other than a dictionary"),
        (b"}K\x01Ns.", "a key of a dictionary is not a text"),
        (b"}))s.", "a key of a dictionary is not a text"),
        (b"INaN\n.", "not written in digits"),
        (b"NQ.", "other than the storage of a tensor"),
        (b"\xff.", "opcode 0xff is not one that PyTorch writes"),
        (b"\x00", "opcode 0x00"),
        (b"(" * (MAX_NESTED_MARKS + 1) + b".", "nested deeper than 64"),
        (b"N0" * (MAX_OPCODES // 2) + b"N.", "more than 1048576 opcodes"),
        (b"0" * (MAX_PICKLE_BYTES + 1), "at most 16777216 are read"),
    ],
)
def test_damaged_pickle_is_named(opcodes: bytes, problem: str) -> None:
    with pytest.raises(CorruptFileError, match=problem) as caught:
        unpickle(opcodes, PATH)
    assert not isinstance(caught.value, UnsafePickleError)


@pytest.mark.parametrize(
    "tensor",
    [
        PickledTensor("HalfStorage", "0", 4, -1, (2,), (1,)),
        PickledTensor("HalfStorage", "0", -4, 0, (2,), (1,)),
        PickledTensor("HalfStorage", "0", 4, 0, (-2,), (1,)),
        PickledTensor("HalfStorage", "0", 4, 0, (2,), (-1,)),
        PickledTensor("HalfStorage", "0", 4, 0, (2, 1), (1,)),
        PickledTensor("HalfStorage", "0", 4, 0, (1,) * 9, (1,) * 9),
        PickledTensor("HalfStorage", "0", 4, 2**63, (2,), (1,)),
    ],
)
def test_senseless_tensor_is_refused(tensor: PickledTensor) -> None:
    with pytest.raises(CorruptFileError, match="damaged at byte"):
        unpickle(torch_pickle({"a": tensor}), PATH)


def test_shared_containers_do_not_grow() -> None:
    # Each tuple holds the one before twice: 2^100000 values if anybody unrolled them.
    bomb = b"\x80\x02)" + b"2\x86" * 100_000 + b"."
    started = time.perf_counter()
    assert isinstance(unpickle(bomb, PATH), tuple)
    assert time.perf_counter() - started < 5


def test_deep_nesting_needs_no_recursion() -> None:
    value = unpickle(b")" + b"\x85" * 500_000 + b".", PATH)
    assert isinstance(value, tuple)
    assert len(value) == 1


def test_list_that_holds_itself_is_read() -> None:
    value = unpickle(b"]q\x00h\x00a.", PATH)
    assert isinstance(value, list)
    assert value[0] is value


def test_every_cut_of_a_pickle_is_an_error() -> None:
    for length in range(len(STATE)):
        with pytest.raises(CorruptFileError):
            unpickle(STATE[:length], PATH)


def test_damaged_pickles_give_named_errors_or_values() -> None:
    for damaged in mutations(STATE, 3000):
        try:
            unpickle(damaged, PATH)
        except RllamaError as error:
            assert str(PATH) in str(error)  # noqa: PT017 - success is as good


def test_random_opcodes_give_named_errors_or_values() -> None:
    rng = random.Random(1)
    codes = [bytes([code]) for code in Op if code != Op.STOP]
    for _ in range(2000):
        program = b"".join(
            rng.choice(codes) + rng.choice((b"", b"\x00", b"\x01\x00\x00\x00", b"a\n"))
            for _ in range(rng.randrange(40))
        )
        try:
            unpickle(program + b".", PATH)
        except RllamaError as error:
            assert str(PATH) in str(error)  # noqa: PT017 - success is as good


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_named_error_or_a_value(content: bytes) -> None:
    try:
        unpickle(content, PATH)
    except RllamaError as error:
        assert str(PATH) in str(error)  # noqa: PT017 - success is as good


def test_legacy_file_is_not_mistaken_for_a_state() -> None:
    # PyTorch before 1.6 began with its magic number as a pickle of its own.
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    assert unpickle(magic, PATH) == 0x1950A86A20F9469CFC6C
    assert struct.unpack_from("<BB", magic) == (Op.PROTO, 2)
