"""PyTorch files without PyTorch: hand-written pickles, honest and hostile."""

import builtins
import collections
import copyreg
import datetime
import io
import os
import pathlib
import pickle
import struct
import tempfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.torch_writer import (
    REBUILD,
    extents,
    imported,
    integer,
    mapping,
    program,
    several,
    storage,
    tensor,
    text,
    write_legacy,
    write_zip,
)
from zfnet_jax.files import DamagedFileError
from zfnet_jax.torch_file import read_state_dict

NUMBERS = np.arange(24, dtype="<f4")
BYTES = NUMBERS.tobytes()


def zipped(value, data=(BYTES,), compression=zipfile.ZIP_STORED, **more):
    file = io.BytesIO()
    storages = {str(key): record for key, record in enumerate(data)}
    write_zip(file, value, storages, compression, **more)
    return file.getvalue()


def legacy(value, keys=("0",), length=24, data=BYTES):
    file = io.BytesIO()
    write_legacy(file, value, {key: (length, data) for key in keys})
    return file.getvalue()


def stored(content):
    """A file with some content, open for reading."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return open(file.name, "rb")


def read_all(content):
    with stored(content) as file:
        return {name: tensor[:] for name, tensor in read_state_dict(file).items()}


def refused(content):
    """The message of the error, which is one line."""
    with stored(content) as file, pytest.raises(ValueError) as caught:
        read_state_dict(file)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 600
    return message


FORMATS = pytest.mark.parametrize("file", [zipped, legacy])


@FORMATS
def test_views_of_one_storage(file):
    views = {
        "whole": ((0, (4, 6), (6, 1)), NUMBERS.reshape(4, 6)),
        "turned": ((6, (3, 3), (2, 6)), NUMBERS.reshape(4, 6)[1:, ::2].T),
        "row": ((12, (6,), (1,)), NUMBERS[12:18]),
        "scalar": ((7, (), ()), NUMBERS[7]),
        "last": ((23, (1, 1), (99, 2**61)), NUMBERS[23:].reshape(1, 1)),
        "repeated": ((3, (2, 5), (0, 1)), np.tile(NUMBERS[3:8], (2, 1))),
        "empty": ((24, (0, 3), (3, 1)), np.zeros((0, 3))),
    }
    value = mapping({name: tensor(*view) for name, (view, _) in views.items()})
    with stored(file(value)) as content:
        state = read_state_dict(content)
        assert list(state) == list(views)
        for name, (_, expected) in views.items():
            tensor_ = state[name]
            assert tensor_.dtype == np.float32 and tensor_.shape == expected.shape
            np.testing.assert_array_equal(
                tensor_[:], expected.astype("f4"), strict=True
            )
            for rows in (slice(2), slice(1, 3), slice(2, 99)) if expected.ndim else ():
                np.testing.assert_array_equal(tensor_[rows], expected[rows])


@FORMATS
def test_rows_are_read_alone_and_never_from_a_truncated_file(file, tmp_path):
    numbers = np.arange(10**6, dtype="<f4").reshape(1000, 1000)
    value = tensor(0, (1000, 1000), (1000, 1), storage(length=10**6))
    data = {"data": [numbers]} if file is zipped else {"length": 10**6, "data": numbers}
    path = tmp_path / "file"
    path.write_bytes(file(mapping({"x": value}), **data))
    with path.open("rb") as content:
        x = read_state_dict(content)["x"]
        tracemalloc.start()
        np.testing.assert_array_equal(x[500:520], numbers[500:520])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < numbers.nbytes / 10
        os.truncate(path, numbers.nbytes // 2)
        assert x[:400].shape == (400, 1000)
        with pytest.raises(DamagedFileError, match="truncated while it was read"):
            x[600:]


@FORMATS
@pytest.mark.parametrize(("kind", "dtype"), [("Double", "<f8"), ("Bool", "?")])
def test_dtypes(file, kind, dtype):
    values = np.array([0, 1, 100, 3], dtype)
    value = mapping({"x": tensor(1, (3,), (1,), storage("0", kind, 4))})
    data = values.tobytes()
    content = zipped(value, [data]) if file is zipped else legacy(value, "0", 4, data)
    array = read_all(content)["x"]
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, values[1:])


@pytest.mark.parametrize(("order", "mark"), [("little", "<"), ("big", ">")])
def test_bfloat16_and_byte_order(order, mark):
    # Sign, 8 bits of exponent, 7 of fraction: 1.5, -2, the largest below 4, infinity.
    data = struct.pack(f"{mark}4H", 0x3FC0, 0xC000, 0x407F, 0x7F80)
    value = mapping({"x": tensor(0, (2, 2), (1, 2), storage("0", "BFloat16", 4))})
    array = read_all(zipped(value, [data], byteorder=order.encode()))["x"]
    assert array.dtype == "bfloat16"
    np.testing.assert_array_equal(
        array.astype(np.float32), [[1.5, 3.984375], [-2, np.inf]]
    )


@FORMATS
def test_parameters_and_older_tensors(file):
    kept = imported("torch._utils", "_rebuild_parameter")
    kept += several(tensor(), b"\x88", mapping({})) + b"R"
    older = imported("torch._utils", "_rebuild_tensor")
    older += several(storage(), integer(1), extents((2,)), extents((3,))) + b"R"
    entries = {"kept": kept, "older": older, "view": tensor(stored=storage(view=b"N"))}
    # A state_dict has an attribute, `_metadata`: BUILD sets it.
    metadata = mapping({"": mapping({"version": integer(1)}, b"}")})
    value = mapping(entries) + b"}" + text("_metadata") + metadata + b"sb"
    state = read_all(file(value))
    assert state.keys() == entries.keys()
    np.testing.assert_array_equal(state["kept"], NUMBERS.reshape(4, 6))
    np.testing.assert_array_equal(state["older"], [1, 4])


LINEAR = imported("torch.nn", "Linear")
SOURCE = text("linear.py"), text("class Linear: ...")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor(), "it holds a Tensor, not a state dict"),
        *(
            (
                module + b")\x81}b",
                "it holds a 'torch.nn.Linear', not a state dict; "
                "write it with torch.save(model.state_dict(), path)",
            )
            for module in (LINEAR, several(text("module"), LINEAR, *SOURCE) + b"Q")
        ),
        (mapping({}), "it has no state dict (empty)"),
        (mapping({"m": b"}(" + integer(0) + tensor() + b"u"}), "no state dict ('m': a"),
        (
            mapping({"a": mapping({"x": tensor()}), "b": mapping({"x": tensor()})}),
            "it has several state dicts ('a': a dict, 'b': a dict)",
        ),
        (
            mapping({"x": tensor(), "y": tensor(function=("torch._utils", "_q"))}),
            "tensor 'y' is not read: a 'torch._utils._q'",
        ),
    ],
)
def test_no_state_dict(value, message):
    assert message in refused(zipped(value))


def test_negated_tensors_are_not_read():
    arguments = [storage(), integer(0), extents((2,)), extents((1,)), b"\x89", b"}"]
    negated = several(*arguments, mapping({"neg": b"\x88"}, b"}"))
    value = mapping({"x": imported(*REBUILD) + negated + b"R"})
    assert "no state dict" in refused(zipped(value))


# Beside the weights.


def pickled(value, protocol):
    return pickle.dumps(value, protocol)[2:-1]


BESIDE = {
    "counter": collections.Counter({2: 1, 4: 2}),
    "milestones": collections.defaultdict(list, {1: [2]}),
    "queue": collections.deque([1, 2], 5),
    "set": {1, 2, "x"},
    "frozen": frozenset({("a", 1)}),
    "bytes": b"\x00\xff",
    "keys": {1: "a", 2.5: "b", None: "c", (1, (2, 3)): 2},
    "path": pathlib.PurePosixPath("/etc/passwd"),
    "time": datetime.datetime(2020, 1, 2),
    "array": np.arange(4),
    "complex": 3 + 4j,
    "huge": 2**3000,
}
# What only PyTorch, or a user's own code, could make.
FOREIGN = {
    "device": imported("torch", "device") + several(text("cuda"), b"K\0") + b"R",
    "dtype": imported("torch", "bfloat16"),
    "size": imported("torch", "Size") + several(extents((3, 4))) + b"R",
    "object": imported("a", "B") + b")\x81" + mapping({"lr": b"K\1"}) + b"b",
    "class": imported("a", "B") + mapping({"__init__": b"N"}) + b"b",
    "items": imported("a", "Dict") + b")R(" + text("a") + b"Nu",
    "appended": imported("a", "List") + b")R(" + text("a") + b"NeN" + b"a",
    "key": b"}" + imported("torch", "int8") + b"Ns",
    "far": b"Nr\xff\xff\xff\xff" + b"0j\xff\xff\xff\xff",
}


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("key", ["state_dict", "network", None])
def test_other_objects_are_skipped(file, protocol, key):
    entries = {name: pickled(value, protocol) for name, value in BESIDE.items()}
    loop: list = []
    loop.append((loop,))
    entries |= {"loop": pickled(loop, protocol), **FOREIGN}
    inner = {"fc.weight": tensor(), "fc.bias": tensor(0, (4,), (1,))}
    if key is not None:
        entries["loss"] = tensor(0, (), ())
        if key != "network":
            moments = b"}(" + integer(0) + mapping({"m": tensor()}) + b"u"
            average = mapping({"x": tensor()})
            entries |= {"optimizer": moments, "ema": average, f"{key}_ema": average}
        value = mapping({**entries, key: mapping(inner)}, b"}")
    else:
        value = mapping({**entries, **inner})
    tracemalloc.start()
    state = read_all(file(value))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert list(state) == list(inner)
    np.testing.assert_array_equal(state["fc.weight"], NUMBERS.reshape(4, 6))


# What reaches outside the numbers.


@FORMATS
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (4, 6), (6, 1)),
        (24, (), ()),
        (0, (2**40, 2**40), (1, 1)),
        # These wrap around to small numbers in 64 bits.
        (0, (2**32 + 1,), (2**32,)),
        (0, (3,), (2**61,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (23, (2,), (-1,)),
    ],
)
def test_a_tensor_reaches_outside_its_storage(file, offset, size, stride):
    message = refused(file(mapping({"x": tensor(offset, size, stride)})))
    assert message == "tensor 'x' reaches outside its storage"


def test_huge_shapes_take_no_memory():
    # Each element of a vast array is the same one: possible, but never copied here.
    vast = zipped(mapping({"x": tensor(0, (10**9, 10**6), (0, 0))}))
    tracemalloc.start()
    with stored(vast) as file:
        assert read_state_dict(file)["x"].shape == (10**9, 10**6)
    for size in ((2**64,), (1,) * 65):
        refused(zipped(mapping({"x": tensor(0, size, (0,) * len(size))})))
    refused(zipped(mapping({"x": tensor(0, (2,), ())})))
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_a_storage_is_all_there():
    value = mapping({"x": tensor()})
    for data in (BYTES[:-1], BYTES + b"\0"):
        message = refused(zipped(value, [data]))
        assert f"'0' has {len(data)} bytes, expected 96" in message
    refused(legacy(value, ()))
    refused(legacy(value, length=20))
    assert "unknown type" in refused(legacy(value, "1"))
    twice = {"x": tensor(), "y": tensor(stored=storage("0", "Double", 24))}
    for file in (zipped, legacy):
        assert "has 96 bytes, expected 192" in refused(file(mapping(twice)))
    for length in (-1, 2**62, 2**100):
        refused(zipped(mapping({"x": tensor(stored=storage(length=length))})))


@pytest.mark.parametrize(
    "identity",
    [
        text("0"),
        several(
            text("storage"), imported("os", "system"), text("0"), text("a"), b"K\1"
        ),
        storage(view=several(text("1"), integer(0), integer(4)))[:-1],
    ],
)
def test_other_references_are_inert(identity):
    value = mapping({"x": tensor(), "y": identity + b"Q"})
    assert list(read_all(zipped(value))) == ["x"]
    value = mapping({"x": tensor(), "y": tensor(stored=identity + b"Q")})
    assert "tensor 'y' is not read" in refused(zipped(value))


# What would run something.


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile(trace):
    """Pickles that would leave a trace if anything in them ran."""
    command = f"touch {trace}"
    code = f"open({str(trace)!r}, 'w')"
    for call in (Call(os.system, command), Call(builtins.eval, code)):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            yield pickled({"x": call}, protocol)
    argument = several(text(command)) + b"R"
    for module, name in [
        ("os", "system"),
        ("collections", "OrderedDict.__class__"),
        ("", "collections.OrderedDict"),
        ("zfnet_jax.torch_file", "io.open"),
    ]:
        yield imported(module, name) + argument
        yield text(module) + text(name) + b"\x93" + argument
        yield imported(module, name) + argument + b"}" + text("x") + b"Nsb"
        yield imported(module, name) + several(text(command)) + b"\x81"
        yield imported(module, name) + several(text(command)) + b"}\x92"


def test_nothing_is_called(tmp_path):
    trace = tmp_path / "trace"
    for value in hostile(trace):
        for file in (zipped, legacy):
            # Alone it is refused; beside tensors it is skipped.
            refused(file(value))
            state = read_all(file(mapping({"x": tensor(), "net": value})))
            assert list(state) == ["x"]
        assert not trace.exists()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        refused(pickle.dumps(Call(os.system, f"touch {trace}"), protocol))
        assert not trace.exists()


def test_attributes_are_not_set():
    # The types of NumPy are shared by the whole process.
    state = several(integer(3), text(">"), b"NNN", integer(4), integer(4), integer(0))
    refused(zipped(imported("torch", "FloatStorage") + state + b"b"))
    assert np.dtype("f4").byteorder == "="


@pytest.mark.parametrize(
    "value",
    [
        # A registered function, more bytes than there are, and other ways to call.
        b"\x82\x01)R",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8e" + b"\xff" * 8,
        b"\x8d" + b"\xff" * 7 + b"\x7f",
        b"\x96" + b"\0\0\0\0\1" + b"\0" * 3,
        b"\x95" + b"\xff" * 7 + b"\x7f",
        b"(" + text("true") + b"ios\nsystem\n",
        b"(" + imported("collections", "OrderedDict") + text("a") + b"o",
        b"\x97",
        # Too few values, or of the wrong kinds.
        *(b"", b"N(", b"\x85", b"R", b"q\0", b"Q", b"})R", b"](Nu", b"NN\x93"),
    ],
)
def test_wrong_pickles_are_refused(value):
    copyreg.add_extension("os", "system", 1)
    tracemalloc.start()
    try:
        for file in (zipped, legacy):
            assert "pickle is damaged, or not of torch.save" in refused(file(value))
        assert tracemalloc.get_traced_memory()[1] < 1e8
    finally:
        tracemalloc.stop()
        copyreg.remove_extension("os", "system", 1)


def test_records_take_no_more_than_the_file():
    bomb = zipped(b"N", [bytes(10**7)], zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    assert "compressed or overlap" in refused(bomb)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    content = zipped(mapping({"x": tensor()}), [bytes(5000)])
    end = content.rindex(b"PK\5\6")
    start = content.index(b"PK\1\2")
    last = content.rindex(b"PK\1\2")
    entries = content[start:end] + content[last:end] * 20
    count = content[start:end].count(b"PK\1\2") + 20
    tail = struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(entries), start, 0
    )
    assert "compressed or overlap" in refused(content[:start] + entries + tail)


def test_files_of_another_kind():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", program(b"}"))
    assert "not of torch.save" in refused(file.getvalue())
    assert "not of torch.save" in refused(pickle.dumps(1, 2) * 3)
    for content in (b"", b"\x93NUMPY", bytes(100)):
        assert refused(content) == "not a PyTorch file"


# Damage.


@FORMATS
def test_truncation_and_flipped_bits(file):
    content = file(mapping({"x": tensor(), "y": tensor(0, (3,), (2,))}))
    good = read_all(content)
    for length in range(0, len(content), 5):
        refused(content[:length])
    read = 0
    for position in range(0, 8 * len(content), 11):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        try:
            state = read_all(bytes(changed))
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        read += 1
        if file is zipped:
            # An archive has a checksum for every record.
            np.testing.assert_equal(state, good)
    assert read


PIECES = [
    *(bytes([code]) for code in b"NIt)]}(aesubRQ.q\x93\x94\x85\x86\x87\x88"),
    *(b"q\x00", b"h\x00", text("storage"), integer(-1), integer(2**62)),
    *(imported("torch", "FloatStorage"), imported("collections", "OrderedDict")),
    *(imported(*REBUILD), imported("os", "system"), storage(), tensor()),
    *(mapping({"x": tensor()}), extents((2, 3))),
]


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.binary(max_size=4))
@settings(max_examples=200)
def test_any_program_is_read_or_refused(pieces, junk):
    for value in (b"".join(pieces), b"".join(pieces) + junk):
        try:
            state = read_all(zipped(value))
        except ValueError:
            continue
        assert all(isinstance(array, np.ndarray) for array in state.values())
