"""State dicts of PyTorch files, read without PyTorch and without running anything.

`torch.save` writes numbers beside a pickle, a program that builds the objects around
them. Here that program knows only the names that a state dict needs. Every other name
gives an inert stand-in, so whatever lies beside the weights is skipped.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from zfnet_jax.files import DamagedFileError

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


class FileTensor:
    """A tensor that stays in its file; `tensor[start:stop]` reads these rows.

    Attributes:
        shape: Shape of the tensor.
        dtype: Type of its elements.
    """

    def __init__(
        self, file: io.BufferedReader, start: int, is_big_endian: bool, tensor: Tensor
    ) -> None:
        """Describe a tensor whose storage starts at a byte of the file."""
        storage, self._offset, self.shape, strides = tensor
        self.dtype = storage.dtype
        # The stride of a single row is never taken, and can be anything.
        pairs = zip(self.shape, strides, strict=True)
        self._strides = [stride if extent > 1 else 0 for extent, stride in pairs]
        self._file, self._start = file, start
        self._is_big_endian = is_big_endian

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Read some rows, or the whole of a scalar."""
        offset, shape = self._offset, self.shape
        if shape:
            first, last, _ = rows.indices(shape[0])
            offset += first * self._strides[0]
            shape = (max(0, last - first), *shape[1:])
        if 0 in shape:
            return np.empty(shape, self.dtype)
        width = self.dtype.itemsize
        content = np.empty(width * _measure(shape, self._strides), np.uint8)
        self._file.seek(self._start + width * offset)
        if self._file.readinto(content.data) != content.size:
            raise DamagedFileError(f"{self._file.name} was truncated while it was read")
        numbers = content.view(self.dtype)
        if self._is_big_endian:
            numbers.byteswap(inplace=True)
        strides = [width * stride for stride in self._strides]
        return np.lib.stride_tricks.as_strided(numbers, shape, strides)

    def reaches_outside(self, length: int) -> bool:
        """Return whether it has elements outside a storage of some length."""
        if 0 in self.shape:
            return False
        stop = self._offset + _measure(self.shape, self._strides)
        return min((self._offset, *self.shape, *self._strides)) < 0 or stop > length


def _measure(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Count the elements from the first to the last, without NumPy's wraparound."""
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


class _Inert:
    """Stand-in for a class, a function or an object; using it does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: object) -> _Inert:
        return self

    add = append = extend = __setitem__ = __call__


def read_state_dict(file: io.BufferedReader) -> dict[str, FileTensor]:
    """Find the tensors of a state dict, or of a checkpoint that contains one.

    In a checkpoint it is the entry `state_dict`, `model_state_dict` or `model`, or else
    the only entry that is a dict of tensors. Everything beside it is ignored.

    Args:
        file: A `.pt` or `.pth` file, in either format of `torch.save`. Its tensors are
            read from it, so it must stay open.

    Returns:
        Tensors with the saved dtypes and shapes.

    Raises:
        ValueError: The file is truncated or damaged, is not a PyTorch file, or has no
            state dict. The message is one line.
    """
    file.seek(0)
    magic = file.read(4)
    try:
        if magic == b"PK\x03\x04":
            value, records, is_big_endian = _open_zip(file)
        elif magic.startswith(b"\x80"):
            value, records, is_big_endian = _open_legacy(file)
        else:
            raise ValueError("not a PyTorch file")
    except _ERRORS as error:
        raise ValueError(" ".join(str(error).split())) from error
    tensors = {}
    for name, tensor in _find_state_dict(value).items():
        start, length = records.get(tensor.storage.key, (0, 0))
        _check_length(tensor.storage, length)
        tensors[name] = FileTensor(file, start, is_big_endian, tensor)
        if tensors[name].reaches_outside(tensor.storage.length):
            raise ValueError(f"tensor {_quote(name)} reaches outside its storage")
    return tensors


def _find_state_dict(value: object) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise ValueError(
            f"it holds {_describe(value)}, not a state dict; "
            "write it with torch.save(model.state_dict(), path)"
        )
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


def _check_length(storage: Storage, length: int) -> None:
    expected = storage.length * storage.dtype.itemsize
    if length != expected:
        key = _quote(storage.key)
        raise ValueError(f"storage {key} has {length} bytes, expected {expected}")


# The two formats: each gives the pickled value, the start and length in bytes of every
# storage by its key, and whether numbers are big-endian.

_Content = tuple[Any, dict[str, tuple[int, int]], bool]


def _open_zip(file: io.BufferedReader) -> _Content:
    archive = zipfile.ZipFile(file)
    records = {record.filename: record for record in archive.infolist()}
    roots = [name[:-9] for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError("a zip archive, but not of torch.save")
    # torch.save never compresses, and records that share bytes could add up.
    size = sum(record.file_size for record in archive.infolist())
    if size > file.seek(0, os.SEEK_END) or any(
        record.compress_type or record.compress_size != record.file_size
        for record in records.values()
    ):
        raise ValueError("its records are compressed or overlap")
    if damaged := archive.testzip():
        raise ValueError(f"record {_quote(damaged)} does not match its checksum")
    root = roots[0]
    value, _ = _unpickle(io.BytesIO(archive.read(f"{root}/data.pkl")))
    order = f"{root}/byteorder"
    is_big_endian = order in records and archive.read(order) == b"big"
    storages = {}
    for name, record in records.items():
        # The numbers follow a header of 30 bytes, a name, and an extra field.
        file.seek(record.header_offset + 26)
        lengths = struct.unpack("<2H", file.read(4))
        start = record.header_offset + 30 + sum(lengths)
        storages[name.removeprefix(f"{root}/data/")] = start, record.file_size
    return value, storages, is_big_endian


def _open_legacy(file: io.BufferedReader) -> _Content:
    # A pickle can ask for any number of bytes, and a map gives only what there is.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        if tuple(_unpickle(stream)[0] for _ in _LEGACY) != _LEGACY:
            raise ValueError("a pickle, but not of torch.save")
        _unpickle(stream)  # sizes of integers on the machine that wrote the file
        value, kinds = _unpickle(stream)
        keys, _ = _unpickle(stream)
        storages: dict[str, tuple[int, int]] = {}
        for key in keys if isinstance(keys, list) else ():
            if not isinstance(key, str) or key not in kinds:
                raise ValueError("it has a storage of an unknown type")
            # The number of elements, then the elements, little-endian on any machine.
            count = int.from_bytes(stream.read(8), "little")
            start = stream.tell()
            stop = min(start + count * kinds[key].dtype.itemsize, len(stream))
            storages[key] = start, stop - start
            stream.seek(stop)
        return value, storages, False


# The pickle.


def _rebuild_tensor(*args: object) -> Tensor | _Inert:
    match args:
        # With more arguments the numbers are to be negated or conjugated.
        case (Storage() as storage, int(offset), tuple(size), tuple(stride), *rest) if (
            len(rest) in (0, 2)
            and len(size) == len(stride) <= 64
            and all(isinstance(x, int) and abs(x) < 2**63 for x in size + stride)
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

    def __init__(self, stream: io.BytesIO | mmap.mmap) -> None:
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
            # Older files quote the source of a class, too.
            case ("module", _Inert() as cls, *_):
                return cls
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


def _unpickle(stream: io.BytesIO | mmap.mmap) -> tuple[Any, dict[str, Storage]]:
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
