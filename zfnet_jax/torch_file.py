"""State dicts of PyTorch files, read without PyTorch and without running anything.

`torch.save` writes numbers and a pickle, a program that builds the objects around them.
This module interprets that program itself. It builds tensors, plain values and dicts
with text keys; every other object becomes an inert `Unknown` that knows only its name.
Nothing is imported or called, and time and memory are bounded by the file's size.

`pickle.Unpickler` with a restricted `find_class` is not bounded: twenty bytes make it
allocate 64 GB (an index into its memo) or hash a nested tuple for years (a dict key).
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

# A state dict has about 30 opcodes per tensor; a million take about a second.
_MOST_OPCODES = 4_000_000
# A file of the older format starts with these two numbers, in a pickle each.
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)
_ENTRIES = ("state_dict", "model_state_dict", "model")
# NumPy has no bfloat16: see _decode.
_KINDS = "Float=f4 Double=f8 Half=f2 BFloat16=u2 Long=i8 Int=i4 Short=i2 Char=i1 "
_KINDS += "Byte=u1 Bool=? ComplexFloat=c8 ComplexDouble=c16"
_DTYPES = {
    f"torch.{kind}Storage": dtype
    for kind, dtype in (pair.split("=") for pair in _KINDS.split())
}
# The ways in which zipfile says that an archive is damaged.
_DAMAGE = EOFError, NotImplementedError, OverflowError, RuntimeError
_DAMAGE += struct.error, zipfile.BadZipFile
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Inert stand-in for a class, a function, or an object made by calling one."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers, kept outside the pickle under a key."""

    kind: str
    key: str
    length: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage, counted in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


Read = Callable[[Storage], bytes | memoryview]


def read_state_dict(content: bytes) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, or of a checkpoint that contains one.

    In a checkpoint it is the entry `state_dict`, `model_state_dict` or `model`, or else
    the only entry that is a dict of tensors. Everything beside it is ignored.

    Args:
        content: The whole of a `.pt` or `.pth` file, in either format of `torch.save`.

    Returns:
        Read-only arrays with the saved dtypes and shapes. bfloat16 becomes float32.

    Raises:
        ValueError: The file is truncated or damaged, is not a PyTorch file, or has no
            state dict. The message is one line.
    """
    try:
        if content.startswith(b"PK\x03\x04"):
            value, read, order = _open_zip(content)
        elif content.startswith(b"\x80"):
            value, read, order = _open_legacy(content)
        else:
            raise ValueError("not a PyTorch file")
        state = _find_state_dict(value)
        storages = {tensor.storage for tensor in state.values()}
        flat = {storage: _decode(storage, read, order) for storage in storages}
        return {name: _view(name, x, flat[x.storage]) for name, x in state.items()}
    except _DAMAGE as error:
        raise ValueError(" ".join(str(error).split())) from error


def _find_state_dict(value: object) -> dict[str, Tensor]:
    if type(value) is not dict:
        raise ValueError(f"its content is {_describe(value)}, not a state dict")
    entries = {key: entry for key, entry in value.items() if _has_tensors(entry)}
    chosen = next((key for key in _ENTRIES if key in entries), None)
    # Beside the state dict there may be a loss or a state of a random generator.
    top = any(type(x) is Tensor and ("." in k or not entries) for k, x in value.items())
    if chosen is None and not top:
        if len(entries) != 1:
            names = [f"{_quote(k)}: {_describe(v)}" for k, v in value.items()]
            raise ValueError(
                f"it has {'several state dicts' if entries else 'no state dict'} "
                f"({', '.join(names[:5]) or 'empty'}); save model.state_dict() alone"
            )
        (chosen,) = entries
    state = value if chosen is None else entries[chosen]
    for name, entry in state.items():
        # A quantized or sparse tensor, for example, would be reported as missing.
        if type(entry) is Unknown and entry.name.startswith("torch._utils."):
            raise ValueError(
                f"its tensor {_quote(name)} is not read: {_quote(entry.name)} made it"
            )
    return {name: entry for name, entry in state.items() if type(entry) is Tensor}


def _has_tensors(value: object) -> bool:
    return type(value) is dict and any(type(x) is Tensor for x in value.values())


# The two formats: each gives the pickled value, a reader of storages, the byte order.


def _open_zip(content: bytes) -> tuple[object, Read, str]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    names = archive.namelist()
    pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise ValueError("a zip archive, but not one that torch.save writes")
    # torch.save never compresses. Records that share bytes could still add up.
    if any(x.compress_type != zipfile.ZIP_STORED for x in archive.infolist()):
        raise ValueError("it is compressed, which torch.save never does")
    if sum(x.file_size for x in archive.infolist()) > len(content):
        raise ValueError("its records are larger than the file")
    root = pickles[0].removesuffix("data.pkl")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b""
    if order not in (b"", b"little", b"big"):
        raise ValueError(f"its byte order is {order[:20]!r}")
    value, _ = _interpret(io.BytesIO(archive.read(pickles[0])))

    def read(storage: Storage) -> bytes:
        return archive.read(f"{root}data/{storage.key}")

    return value, read, ">" if order == b"big" else "<"


def _open_legacy(content: bytes) -> tuple[object, Read, str]:
    stream = io.BytesIO(content)
    for number in _LEGACY:
        if _interpret(stream)[0] != number:
            raise ValueError("a pickle, but not one that torch.save writes")
    _interpret(stream)  # sizes of integers on the machine that wrote the file
    value, storages = _interpret(stream)
    keys, _ = _interpret(stream)
    records: dict[str, memoryview] = {}
    for key in keys if type(keys) is list else ():
        if type(key) is not str or key not in storages:
            shown = _quote(key) if type(key) is str else _describe(key)
            raise ValueError(f"its storage {shown} is of an unknown type")
        # The number of elements, then the elements, little-endian on every machine.
        length = int.from_bytes(stream.read(8), "little")
        size = length * np.dtype(_DTYPES[storages[key].kind]).itemsize
        start = stream.tell()
        if start + size > len(content):
            raise ValueError(f"it ends inside its storage {_quote(key)}")
        records[key] = memoryview(content)[start : start + size]
        stream.seek(start + size)

    return value, lambda storage: records[storage.key], "<"


def _decode(storage: Storage, read: Read, order: str) -> np.ndarray:
    dtype = np.dtype(order + _DTYPES[storage.kind])
    try:
        record, size = read(storage), storage.length * dtype.itemsize
    except KeyError:
        raise ValueError(f"its storage {_quote(storage.key)} is missing") from None
    if len(record) != size:
        raise ValueError(
            f"its storage {_quote(storage.key)} has {len(record)} bytes, not {size}"
        )
    flat = np.frombuffer(record, dtype).astype(dtype.newbyteorder("="), copy=False)
    if storage.kind == "torch.BFloat16Storage":
        # A bfloat16 is the upper half of a float32.
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat


def _view(name: str, tensor: Tensor, flat: np.ndarray) -> np.ndarray:
    size, offset = tensor.size, tensor.offset
    # Bounded, and in Python's integers, so that nothing wraps around.
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in (*size, *tensor.stride)):
        raise ValueError(f"its tensor {_quote(name)} has no valid shape")
    if 0 in size:
        return np.empty(size, flat.dtype)
    # The stride of a single element is never used, and may be anything.
    steps = [s if n > 1 else 0 for n, s in zip(size, tensor.stride, strict=True)]
    last = offset + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
    if offset < 0 or last >= len(flat):
        raise ValueError(f"its tensor {_quote(name)} reaches outside its storage")
    strides = tuple(step * flat.itemsize for step in steps)
    return np.ndarray(size, flat.dtype, flat.data, offset * flat.itemsize, strides)


def _interpret(stream: io.BytesIO) -> tuple[object, dict[str, Storage]]:
    """Interpret one pickle: its value, and the storages it refers to by key.

    Values are plain Python values, dicts with text keys, and the classes above. None of
    them is ever called, and no key but text is ever hashed.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}

    def pop(count: int | None = None) -> list[Any]:
        """Remove the last `count` values, or those since the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        if start < 0:
            raise IndexError("too few values")
        values = stack[start:]
        del stack[start:]
        return values

    for _ in range(_MOST_OPCODES):
        opcode = _OPCODES.get(stream.read(1))
        if opcode is None:
            raise ValueError("its pickle ends early or is damaged")
        name = opcode.name
        # torch.save never writes numbers and strings as lines of text.
        if opcode.proto == 0 and opcode.arg and name != "GLOBAL":
            raise ValueError(f"its pickle has {name}, which torch.save never writes")
        argument: Any = opcode.arg.reader(stream) if opcode.arg else None
        try:
            match name:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    marks.append(len(stack))
                case "STOP":
                    return stack.pop(), storages
                case "POP":
                    pop(1)
                case "POP_MARK":
                    pop()
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_SET":
                    stack.append(Unknown("set"))
                case "TUPLE" | "FROZENSET":
                    stack.append(tuple(pop()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(pop(int(name[-1]))))
                case "APPEND" | "APPENDS" | "ADDITEMS":
                    items = pop(1 if name == "APPEND" else None)
                    if type(stack[-1]) is list:
                        stack[-1].extend(items)
                case "SETITEM" | "SETITEMS":
                    items = pop(2 if name == "SETITEM" else None)
                    if type(stack[-1]) is dict:
                        pairs = zip(items[::2], items[1::2], strict=True)
                        stack[-1].update(pair for pair in pairs if _is_key(pair[0]))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(Unknown(argument.replace(" ", ".")))
                case "STACK_GLOBAL":
                    stack.append(Unknown(".".join(pop(2))))
                case "BINPERSID":
                    stack.append(_resolve(stack.pop()))
                    if type(stack[-1]) is Storage:
                        storages.setdefault(stack[-1].key, stack[-1])
                case "REDUCE" | "NEWOBJ":
                    stack.append(_call(*pop(2)))
                case "NEWOBJ_EX":
                    stack.append(pop(3)[0])
                case "BUILD":  # attributes, such as the `_metadata` of a state dict
                    pop(1)
                case _ if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case _ if opcode.arg and not opcode.stack_before:
                    stack.append(argument)
                case _:
                    raise ValueError("torch.save never writes this")
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its pickle is damaged at {name}: {error}") from error
    raise ValueError(f"its pickle has more than {_MOST_OPCODES} opcodes")


def _is_key(key: object) -> bool:
    # Long keys that are equal would be compared in full, again and again.
    return type(key) is str and len(key) <= 1000


def _resolve(identity: object) -> Storage | Unknown:
    """The storage that a persistent id names."""
    match identity:
        # Older files have a sixth field: None, unless it is a part of a storage.
        case ("storage", Unknown(kind), str(key), str(), int(length), *view) if (
            kind in _DTYPES
            and _is_key(key)
            and 0 <= length < 1 << 62
            and view in ([], [None])
        ):
            return Storage(kind, key, length)
    return Unknown("persistent object")


def _call(function: object, arguments: object) -> object:
    """The result of a call, for the few functions that a state dict needs."""
    if type(function) is not Unknown:
        raise ValueError(f"{_describe(function)} cannot be called")
    match function.name.removeprefix("torch._utils."), arguments:
        case "collections.OrderedDict", ():
            return {}
        case "_rebuild_parameter", (Tensor() as tensor, *_):
            return tensor
        # The rest is whether it needs a gradient, and hooks. More of it would say that
        # the numbers are to be negated or conjugated.
        case (
            "_rebuild_tensor" | "_rebuild_tensor_v2",
            (Storage() as storage, int(offset), tuple(size), tuple(stride), *rest),
        ) if len(rest) in (0, 2) and len(size) == len(stride) <= 64:
            return Tensor(storage, offset, size, stride)
    return function


def _describe(value: object) -> str:
    if isinstance(value, Unknown):
        return f"a {_quote(value.name)}"
    return f"a {type(value).__name__}"


def _quote(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")
