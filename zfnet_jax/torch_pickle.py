"""State dicts of PyTorch, read without PyTorch and without running what they hold.

`torch.save` writes numbers, and beside them a pickle: a program that builds the
objects around the numbers. Here that program is only read. An interpreter of the few
opcodes and globals that a state_dict needs turns each tensor into a description, calls
and imports nothing, and refuses everything else by name. Both formats are read: the
zip archive of PyTorch 1.6 and later, and the stream of pickles before it.

What it costs is bounded by the size of the file: nothing is decompressed, an array is
a view of bytes that are there, and no opcode takes time that grows with what came
before it.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

# A state_dict takes about 30 opcodes a tensor, a million of them about a second.
_MOST_OPCODES = 1_000_000
# `torch.save` before 1.6 begins with this pickled number.
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80"
_LEGACY_VERSION = 1001
_ZIP_START = b"PK\x03\x04"
# Under which a checkpoint holds the state_dict, beside epoch, optimizer and the like.
_WRAPPERS = ("state_dict", "model_state_dict", "model")

_BFLOAT16 = "torch.BFloat16Storage"
_DTYPES = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    _BFLOAT16: "u2",  # numpy has no bfloat16; see _decode
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
_DICT = "collections.OrderedDict"
_PARAMETER = "torch._utils._rebuild_parameter"
_TENSOR = "torch._utils._rebuild_tensor"
_TENSOR_V2 = "torch._utils._rebuild_tensor_v2"
_GLOBALS = {*_DTYPES, _DICT, _PARAMETER, _TENSOR, _TENSOR_V2}

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINSTRING "
    "SHORT_BINSTRING".split()
)
_NEEDED = frozenset(
    "PROTO FRAME MARK STOP EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL "
    "STACK_GLOBAL BINPERSID REDUCE BUILD".split()
).union(_CONSTANTS, _LITERALS)


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the pickle would import."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers, kept apart from the pickle under a key."""

    kind: str
    key: str
    length: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; all in elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_state_dict(content: bytes) -> dict[str, np.ndarray]:
    """Arrays by name of a state_dict, or of a checkpoint that holds one.

    Of a checkpoint, the entry `state_dict`, `model_state_dict` or `model` is taken.

    Args:
        content: The whole of a `.pt` or `.pth` file.

    Returns:
        Read-only arrays in the dtypes and shapes that were saved; bfloat16 becomes
        float32, which holds each of its values.

    Raises:
        ValueError: truncated or damaged, something else than a state_dict, or asking
            for a global or an opcode that no state_dict needs; the message is one line.
    """
    if content.startswith(_ZIP_START):
        value, records, order = _read_zip(content)
    elif content.startswith(_LEGACY_START):
        value, records, order = _read_legacy(content)
    else:
        raise ValueError("it begins as no file that torch.save writes")
    state = _state_dict(value)
    storages = {tensor.storage.key: tensor.storage for tensor in state.values()}
    flat = {key: _decode(x, records.get(key), order) for key, x in storages.items()}
    return {name: _view(name, x, flat[x.storage.key]) for name, x in state.items()}


def _state_dict(value: object) -> dict[str, _Tensor]:
    if type(value) is dict:
        inner = (value[key] for key in _WRAPPERS if type(value.get(key)) is dict)
        value = next(inner, value)
    if type(value) is not dict:
        raise ValueError(f"its content is {_shown(value)}, not a state_dict")
    for name, entry in value.items():
        if type(name) is not str:
            raise ValueError(f"a key of its state_dict is {_shown(name)}")
        if type(entry) is not _Tensor:
            raise ValueError(
                f"its entry {_shown(name)} is {_shown(entry)}, not a tensor; save "
                "model.state_dict() alone"
            )
    return value


# The two formats: the pickled value, the bytes of each storage by key, and their order.

_Contents = tuple[object, Mapping[str, bytes | memoryview], str]


def _read_zip(content: bytes) -> _Contents:
    records = _unzip(content)
    pickles = [name for name in records if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive, but not one that torch.save writes")
    root = pickles[0].removesuffix("data.pkl")
    order = bytes(records.get(f"{root}byteorder", b"little"))
    if order not in (b"little", b"big"):
        raise ValueError(f"its byte order is {order[:20]!r}")
    value, _ = _interpret(io.BytesIO(records[pickles[0]]))
    data = f"{root}data/"
    storages = {
        name.removeprefix(data): record
        for name, record in records.items()
        if name.startswith(data)
    }
    return value, storages, "<" if order == b"little" else ">"


def _unzip(content: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            # torch.save stores; so no record can be larger than the file. Entries that
            # share their bytes could still be.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed, which torch.save never does")
            if sum(entry.file_size for entry in entries) > len(content):
                raise ValueError("its records are larger than the file")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (
        EOFError,
        NotImplementedError,
        OverflowError,
        RuntimeError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _read_legacy(content: bytes) -> _Contents:
    stream = io.BytesIO(content)
    magic, version, _ = (_interpret(stream)[0] for _ in range(3))
    if (magic, version) != (_MAGIC, _LEGACY_VERSION):
        raise ValueError("it is a pickle, but not one that torch.save writes")
    value, storages = _interpret(stream)
    keys, _ = _interpret(stream)
    records: dict[str, bytes | memoryview] = {}
    for key in _expect(keys, list):
        if type(key) is not str or key not in storages:
            raise ValueError(f"nothing refers to its storage {_shown(key)}")
        # Number of elements, then the elements: always little-endian, whatever the
        # machine that wrote them.
        length = int.from_bytes(stream.read(8), "little")
        start = stream.tell()
        end = start + length * np.dtype(_DTYPES[storages[key].kind]).itemsize
        if end > len(content):
            raise ValueError(f"it ends within its storage {_shown(key)}")
        records[key] = memoryview(content)[start:end]
        stream.seek(end)
    return value, records, "<"


# Numbers.


def _decode(
    storage: _Storage, record: bytes | memoryview | None, order: str
) -> np.ndarray:
    dtype = np.dtype(order + _DTYPES[storage.kind])
    expected = storage.length * dtype.itemsize
    if record is None:
        raise ValueError(f"its storage {_shown(storage.key)} is missing")
    if len(record) != expected:
        raise ValueError(
            f"its storage {_shown(storage.key)} has {len(record)} bytes, not {expected}"
        )
    flat = np.frombuffer(record, dtype).astype(dtype.newbyteorder("="), copy=False)
    if storage.kind == _BFLOAT16:
        # A bfloat16 is the upper half of a float32.
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat


def _view(name: str, tensor: _Tensor, flat: np.ndarray) -> np.ndarray:
    size, stride = tensor.size, tensor.stride
    if 0 in size:
        return np.empty(size, flat.dtype)
    # A stride along a single element leads nowhere, and may be anything.
    steps = [s if n > 1 else 0 for n, s in zip(size, stride, strict=True)]
    last = tensor.offset + sum(
        (n - 1) * step for n, step in zip(size, steps, strict=True)
    )
    if last >= len(flat):
        raise ValueError(f"its tensor {_shown(name)} reaches outside its storage")
    itemsize = flat.itemsize
    return np.ndarray(
        size,
        flat.dtype,
        flat.data,
        tensor.offset * itemsize,
        tuple(step * itemsize for step in steps),
    )


# The pickle.


def _interpret(stream: io.BytesIO) -> tuple[object, dict[str, _Storage]]:
    """The value of one pickle, and the storages it refers to, by key.

    Values are None, numbers, strings, lists, tuples, dicts, and the descriptions
    above; none of them can be called.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}
    for _ in range(_MOST_OPCODES):
        code = stream.read(1)
        opcode = _OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError("its pickle ends early or is damaged")
        name = opcode.name
        # Before its argument is read: some readers of text warn.
        if name not in _NEEDED:
            raise ValueError(
                f"its pickle has the opcode {name}, which no state_dict needs"
            )
        argument: Any = opcode.arg.reader(stream) if opcode.arg else None
        try:
            match name:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    marks.append(len(stack))
                case "STOP":
                    return stack.pop(), storages
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                    start = marks.pop() if name == "TUPLE" else -int(name[-1])
                    stack.append(tuple(_take(stack, start)))
                case "APPEND" | "APPENDS":
                    items = _take(stack, marks.pop() if name == "APPENDS" else -1)
                    _expect(stack[-1], list).extend(items)
                case "SETITEM" | "SETITEMS":
                    items = _take(stack, marks.pop() if name == "SETITEMS" else -2)
                    keys = map(_key, items[::2])
                    values = items[1::2]
                    _expect(stack[-1], dict).update(zip(keys, values, strict=True))
                case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_global(argument.replace(" ", ".")))
                case "STACK_GLOBAL":
                    names = [_expect(x, str) for x in _take(stack, -2)]
                    stack.append(_global(".".join(names)))
                case "BINPERSID":
                    storage = _storage(stack.pop())
                    if storages.setdefault(storage.key, storage) != storage:
                        raise ValueError(
                            f"its storage {_shown(storage.key)} is described twice"
                        )
                    stack.append(storage)
                case "REDUCE":
                    function, arguments = _take(stack, -2)
                    stack.append(_call(function, arguments))
                case "BUILD":
                    # Attributes of a state_dict: `_metadata`, its modules' versions.
                    stack.pop()
                    _expect(stack[-1], dict)
                case _:
                    literal = name in _LITERALS
                    stack.append(argument if literal else _CONSTANTS[name])
        except (IndexError, KeyError) as error:
            raise ValueError(f"its pickle is damaged at {name}") from error
    raise ValueError(f"its pickle is longer than {_MOST_OPCODES} opcodes")


def _take(stack: list[Any], start: int) -> list[Any]:
    """Remove and return the items from `start` on; from the end if negative."""
    if start < -len(stack):
        raise IndexError
    items = stack[start:]
    del stack[start:]
    return items


_T = TypeVar("_T")


def _expect(value: object, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise ValueError(
            f"its pickle is damaged: {_shown(value)} in the place of a {kind.__name__}"
        )
    return value


def _key(key: object) -> str | int:
    """A key of a dict; those that could be made to cost time are refused.

    A nested tuple can take exponential time to hash, chosen large integers collide,
    and long equal strings are compared in full.
    """
    if (type(key) is str and len(key) <= 1000) or (
        type(key) is int and 0 <= key < 1 << 31
    ):
        return key
    raise ValueError(f"its pickle has a dict whose key is {_shown(key)}")


def _global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise ValueError(
            f"it would import {_shown(name)}, which no state_dict of real numbers "
            "needs; nothing of it was run (save model.state_dict() alone)"
        )
    return _Global(name)


def _storage(identity: object) -> _Storage:
    """What a persistent id refers to."""
    match identity:
        case ("storage", _Global(kind), str(key), str(), length, *view):
            # Before 1.6 there is a sixth, None unless it is a part of a storage.
            if kind in _DTYPES and _fits(length) and view in ([], [None]):
                return _Storage(kind, str(_key(key)), length)
    raise ValueError("its pickle refers to something else than a storage of numbers")


def _call(function: object, arguments: object) -> object:
    """What a call would return; nothing is called."""
    name = _expect(function, _Global).name
    match arguments:
        case () if name == _DICT:
            return {}
        case (_Tensor() as tensor, _, _) if name == _PARAMETER:
            return tensor
        # What follows is whether it wants a gradient, and hooks. More would say that
        # the numbers are to be negated or conjugated.
        case (_Storage() as storage, offset, size, stride, *rest) if (
            (name, len(rest)) in ((_TENSOR, 0), (_TENSOR_V2, 2))
            and _fits(offset)
            and _are_extents(size)
            and _are_extents(stride)
            and len(size) == len(stride)
        ):
            return _Tensor(storage, offset, size, stride)
    raise ValueError(f"its pickle calls {name} with arguments that do not fit")


def _are_extents(value: object) -> bool:
    return type(value) is tuple and len(value) <= 64 and all(map(_fits, value))


def _fits(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 62


def _shown(value: object) -> str:
    """Something from the file, on one line and not too long."""
    if type(value) is not str:
        return f"of type {type(value).__name__.strip('_')}"
    return repr(value if len(value) <= 100 else f"{value[:100]}...")
