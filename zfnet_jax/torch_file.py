"""State dicts of PyTorch files, read without PyTorch and without running anything.

`torch.save` writes numbers beside a pickle, a program that builds the objects around
them. Here that program knows only the names that a state dict needs. Every other name
gives an inert stand-in, so whatever lies beside the weights is skipped.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

# Files of the older format begin with these two numbers, in a pickle each.
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)
_ENTRIES = ("state_dict", "model_state_dict", "model")
_KINDS = "Float=f4 Double=f8 Half=f2 BFloat16=bfloat16 Long=i8 Int=i4 Short=i2 Char=i1 "
_KINDS += "Byte=u1 Bool=? ComplexFloat=c8 ComplexDouble=c16"
# How zipfile and NumPy refuse damaged archives and impossible shapes.
_ERRORS = (EOFError, NotImplementedError, OSError, OverflowError, RuntimeError)
_ERRORS += (struct.error, zipfile.BadZipFile)


class Storage(NamedTuple):
    """Numbers that the file keeps outside the pickle."""

    dtype: np.dtype
    key: str
    length: int


class Tensor(NamedTuple):
    """A strided view of a storage, counted in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """Stand-in for a class, a function or an object; using it does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: object) -> _Inert:
        return self

    add = append = extend = __setitem__ = __call__


def read_state_dict(content: bytes) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, or of a checkpoint that contains one.

    In a checkpoint it is the entry `state_dict`, `model_state_dict` or `model`, or else
    the only entry that is a dict of tensors. Everything beside it is ignored.

    Args:
        content: The whole of a `.pt` or `.pth` file, in either format of `torch.save`.

    Returns:
        Read-only arrays with the saved dtypes and shapes.

    Raises:
        ValueError: The file is truncated or damaged, is not a PyTorch file, or has no
            state dict. The message is one line.
    """
    try:
        if content.startswith(b"PK\x03\x04"):
            value, read = _open_zip(content)
        elif content.startswith(b"\x80"):
            value, read = _open_legacy(content)
        else:
            raise ValueError("not a PyTorch file")
        state = _find_state_dict(value)
        numbers = {tensor.storage: read(tensor.storage) for tensor in state.values()}
        return {name: _view(name, x, numbers[x.storage]) for name, x in state.items()}
    except _ERRORS as error:
        raise ValueError(" ".join(str(error).split())) from error


def _find_state_dict(value: object) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_describe(value)}, not a state dict")
    entries = _named(value)
    nested = {name: _named(x) for name, x in entries.items() if _has_tensors(_named(x))}
    options = [nested[name] for name in _ENTRIES if name in nested][:1]
    # Beside nested state dicts there may be a loss, or the state of a generator.
    if not options and _has_tensors({n: entries[n] for n in entries if "." in n}):
        options = [entries]
    options = options or [*nested.values()] or [entries] * _has_tensors(entries)
    if len(options) != 1:
        some = [f"{_quote(name)}: {_describe(x)}" for name, x in entries.items()][:5]
        raise ValueError(
            f"it has {'several state dicts' if options else 'no state dict'} "
            f"({', '.join(some) or 'empty'}); save model.state_dict() alone"
        )
    (state,) = options
    for name, entry in state.items():
        # Otherwise a quantized or sparse tensor would seem to be missing.
        if isinstance(entry, _Inert) and entry.name.startswith("torch._utils."):
            raise ValueError(f"tensor {_quote(name)} is not read: {_describe(entry)}")
    return {name: x for name, x in state.items() if isinstance(x, Tensor)}


def _named(value: object) -> dict[str, Any]:
    entries = value.items() if isinstance(value, dict) else ()
    return {name: entry for name, entry in entries if isinstance(name, str)}


def _has_tensors(entries: dict[str, Any]) -> bool:
    return any(isinstance(entry, Tensor) for entry in entries.values())


def _view(name: str, tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    _, offset, size, stride = tensor
    if 0 in size:
        return np.empty(size, numbers.dtype)
    # In Python's integers, which do not wrap around.
    steps = [s if n > 1 else 0 for n, s in zip(size, stride, strict=True)]
    last = offset + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
    if min((offset, *size, *steps)) < 0 or last >= len(numbers):
        raise ValueError(f"tensor {_quote(name)} reaches outside its storage")
    strides = [step * numbers.itemsize for step in steps]
    as_strided = np.lib.stride_tricks.as_strided
    return as_strided(numbers[offset:], size, strides, writeable=False)


# The two formats: each gives the pickled value, and a reader of storages.


def _open_zip(content: bytes) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    records = {record.filename: record for record in archive.infolist()}
    roots = [name[:-9] for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError("a zip archive, but not of torch.save")
    # torch.save never compresses, and records that share bytes could add up.
    size = sum(record.file_size for record in archive.infolist())
    if size > len(content) or any(x.compress_type for x in records.values()):
        raise ValueError("its records are compressed or overlap")

    def read_record(name: str) -> bytes:
        path = f"{roots[0]}{name}"
        return archive.read(path) if path in records else b""

    def read(storage: Storage) -> np.ndarray:
        numbers = _decode(storage, read_record(f"/data/{storage.key}"))
        return numbers.byteswap() if is_big_endian else numbers

    is_big_endian = read_record("/byteorder") == b"big"
    return _unpickle(io.BytesIO(read_record("/data.pkl")))[0], read


def _open_legacy(content: bytes) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    stream = io.BytesIO(content)
    if tuple(_unpickle(stream)[0] for _ in _LEGACY) != _LEGACY:
        raise ValueError("a pickle, but not of torch.save")
    _unpickle(stream)  # sizes of integers on the machine that wrote the file
    value, storages = _unpickle(stream)
    keys, _ = _unpickle(stream)
    records: dict[str, memoryview] = {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in storages:
            raise ValueError("it has a storage of an unknown type")
        # The number of elements, then the elements, little-endian on every machine.
        length = int.from_bytes(stream.read(8), "little")
        start = stream.tell()
        stop = start + length * storages[key].dtype.itemsize
        records[key] = memoryview(content)[start:stop]
        stream.seek(stop)
    return value, lambda storage: _decode(storage, records.get(storage.key, b""))


def _decode(storage: Storage, record: bytes | memoryview) -> np.ndarray:
    size = storage.length * storage.dtype.itemsize
    if len(record) != size:
        key = _quote(storage.key)
        raise ValueError(f"storage {key} has {len(record)} bytes, expected {size}")
    return np.frombuffer(record, storage.dtype)


# The pickle.


def _rebuild_tensor(*args: object) -> Tensor | _Inert:
    match args:
        # With more arguments the numbers are to be negated or conjugated.
        case (Storage() as storage, int(offset), tuple(size), tuple(stride), *rest) if (
            len(rest) in (0, 2)
            and len(size) == len(stride)
            and all(isinstance(extent, int) for extent in size + stride)
        ):
            return Tensor(storage, offset, size, stride)
    return _Inert("torch._utils._rebuild_tensor")


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": lambda *_: {},
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
}
for _kind, _dtype in (pair.split("=") for pair in _KINDS.split()):
    _KNOWN[f"torch.{_kind}Storage"] = jnp.dtype(_dtype)


class _Unpickler(pickle._Unpickler):
    # In C the memo would be an array, as long as the largest index in the file.

    stack: list[Any]

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        return _KNOWN.get(path) or _Inert(path)

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            # Older files have a sixth field, None unless it is a part of a storage.
            case ("storage", np.dtype() as dtype, str(key), _, int(length), *view) if (
                view in ([], [None])
            ):
                storage = Storage(dtype, key, length)
                self.storages.setdefault(key, storage)
                return storage
        return _Inert("persistent object")

    def skip_one(self) -> None:
        del self.stack[-1]

    def skip_two(self) -> None:
        del self.stack[-2:]

    # Attributes are not set, and a class stands for its objects.
    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: skip_one,
        pickle.NEWOBJ[0]: skip_one,
        pickle.NEWOBJ_EX[0]: skip_two,
    }
    # They allocate a declared length, read a registry, or make objects in other ways.
    for _opcode in "BYTEARRAY8 EXT1 EXT2 EXT4 INST OBJ".split():
        del dispatch[getattr(pickle, _opcode)[0]]


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    unpickler = _Unpickler(stream)
    try:
        return unpickler.load(), unpickler.storages
    except Exception as error:  # every opcode fails in its own way on wrong values
        raise ValueError("its pickle is damaged, or not of torch.save") from error


def _describe(value: object) -> str:
    if isinstance(value, _Inert):
        return f"a {_quote(value.name)}"
    return f"a {'dict' if isinstance(value, dict) else type(value).__name__}"


def _quote(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")
