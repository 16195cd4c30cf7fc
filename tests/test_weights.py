"""Weight files: each tensor in its place, or an error that names it."""

import io
import json
import os
import tempfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from zfnet_jax import weights
from zfnet_jax.arch import (
    ARCHITECTURES,
    ZFNET32,
    Architecture,
    Conv,
    Dense,
    MaxPool,
    ablate,
)
from zfnet_jax.data import Preprocessing
from zfnet_jax.files import DamagedFileError, DataNotFoundError
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, network
from zfnet_jax.weights import find_weights, load, load_weights, save

# Every extent differs, so that exchanging two axes cannot go unnoticed.
SMALL = Architecture(
    "small",
    (9, 11),
    (
        Conv("conv1", 4, kernel=(3, 2), stride=(1, 2), padding=((1, 0), (0, 1))),
        MaxPool("pool1", kernel=2, stride=(2, 1)),
        Conv("conv2", 6, kernel=3, padding=1, groups=2),
        Dense("fc3", 7),
        Dense("logits", 5, relu=False),
    ),
)
SHAPES = {
    "conv1.weight": (4, 3, 3, 2),
    "conv1.bias": (4,),
    "conv2.weight": (6, 2, 3, 3),
    "conv2.bias": (6,),
    "fc3.weight": (7, 6 * 4 * 5),
    "fc3.bias": (7,),
    "fc4.weight": (5, 7),
    "fc4.bias": (5,),
}
# Made by references/make_torch_files.py, where SMALL is written in PyTorch.
REFERENCES = Path(__file__).parent / "references"
TORCH_FILES = ("torch_zip.pt", "torch_legacy.pth")
METADATA = {"command": "train --seed 3", "seed": 3, "accuracy": 0.1 + 0.2}
NAMES = ("aéroplane", "b", "c", "d", "e")


def draw_state():
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def state():
    return draw_state()


@pytest.fixture(scope="module")
def model(state):
    return load_weights(state, SMALL)


@pytest.fixture(scope="module")
def images():
    values = np.random.default_rng(1).normal(size=(3, 9, 11, 3))
    return jnp.asarray(values, jnp.float32)


@pytest.fixture
def preprocessing():
    mean = np.random.default_rng(2).uniform(0, 255, (9, 11, 3)).astype(np.float32)
    return Preprocessing(mean, 1 / 58)


@pytest.fixture
def about(preprocessing):
    return {
        "preprocess": preprocessing,
        "class_names": NAMES,
        "metadata": METADATA,
    }


@pytest.fixture
def file(tmp_path, model, about):
    save(tmp_path / "net", model, **about)
    return tmp_path / "net"


@pytest.mark.parametrize(
    ("removed", "number"), [((), 4), (("fc3",), 3), (("conv1", "conv2", "fc3"), None)]
)
def test_classifier_is_numbered_after_the_last_layer(tmp_path, about, removed, number):
    layers = (
        SMALL.layers[0],
        SMALL.layers[1],
        Conv("conv2", 6, kernel=3),
        *SMALL.layers[3:],
    )
    arch = ablate(Architecture("varied", (9, 11), layers), remove=removed)
    model = ConvNet(arch, init=lambda _, *spec: jnp.ones(*spec), rngs=nnx.Rngs(0))
    save(tmp_path / "net", model, **about)
    arrays = safetensors.numpy.load_file(tmp_path / "net")
    name = f"fc{number}" if number else "logits"
    assert f"{name}.weight" in arrays
    assert len(arrays) == 1 + 2 * (4 - len(removed))
    assert load(tmp_path / "net").model.arch == arch


def test_architectures_survive_in_a_file(tmp_path):
    gray = Architecture("gray", (9, 11), SMALL.layers, channels=1)
    for arch in (ZFNET32, gray):
        # Narrow, as only the description is tested.
        widths = {layer.name: 2 for layer in arch.layers if isinstance(layer, Dense)}
        narrow = ablate(arch, widths=widths)
        model = ConvNet(
            narrow, init=lambda _, *spec: jnp.zeros(*spec), rngs=nnx.Rngs(0)
        )
        mean = np.zeros((*arch.input_hw, arch.channels), np.float32)
        save(
            tmp_path / "net",
            model,
            preprocess=Preprocessing(mean),
            class_names=("a", "b"),
            metadata={},
        )
        again = load(tmp_path / "net").model.arch
        assert again == narrow and hash(again) == hash(narrow)
        assert load_weights(tmp_path / "net").arch == narrow


def test_round_trip(file, model, preprocessing, images):
    net = load(file)
    np.testing.assert_array_equal(net.model(images), model(images))
    assert net.model.arch == SMALL
    # It is a network as any other, under `jax.jit` too.
    assert isinstance(net, Network) and network(net) is net
    np.testing.assert_allclose(net(images), model(images), rtol=1e-5)
    np.testing.assert_array_equal(jax.jit(lambda n, x: n(x))(net, images), net(images))
    assert net.targets("b", 2).tolist() == [1, 1]
    assert net.class_names == NAMES
    assert net.metadata == METADATA
    assert isinstance(net.preprocess, Preprocessing)
    assert net.preprocess.scale == preprocessing.scale
    np.testing.assert_array_equal(net.preprocess.mean, preprocessing.mean)
    np.testing.assert_array_equal(load_weights(file, SMALL)(images), model(images))


def test_file_has_torch_names_and_layout(file, state):
    arrays = safetensors.numpy.load_file(file)
    assert arrays.pop("preprocessing.mean").shape == (9, 11, 3)
    assert arrays.keys() == state.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, state[name])


def test_same_content_is_same_bytes(tmp_path, file, model, about):
    about["metadata"] = dict(reversed(METADATA.items()))
    for given in (model, network(model)):
        save(tmp_path / "again", given, **about)
        assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_damage_is_one_line(file, tmp_path):
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    description = content.index(b"architecture")
    damaged = [content[:length] for length in (0, 1, 8, 9, 100, len(content) - 1)]
    for position in (0, 7, description, header - 300, header, len(content) - 1):
        changed = bytearray(content)
        changed[position] ^= 1
        damaged.append(bytes(changed))
    for name in TORCH_FILES:
        torch = (REFERENCES / name).read_bytes()
        damaged += [torch[: len(torch) // n] for n in (1000, 20, 2)]
    damaged += [b"PK\3\4" + bytes(1000), b"<html>" * 9]
    for content in damaged:
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(DamagedFileError, match=f"^{tmp_path}/damaged is") as caught:
            load(tmp_path / "damaged")
        assert "\n" not in str(caught.value)


# Files of PyTorch


@pytest.mark.parametrize("name", TORCH_FILES)
def test_torch_files_against_stored_logits(name):
    expected = np.load(REFERENCES / "torch_logits.npz")
    logits = load_weights(REFERENCES / name, SMALL)(expected["images"])
    assert np.abs(expected["logits"]).max() > 0.1
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [*TORCH_FILES, "net.safetensors"])
def test_a_zip_around_a_file_is_the_file(tmp_path, state, images, name, monkeypatch):
    file = REFERENCES / name
    if name == "net.safetensors":
        file = tmp_path / name
        safetensors.numpy.save_file(state, file)
    with zipfile.ZipFile(tmp_path / "net.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file, f"folder/{name}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    logits = load_weights(tmp_path / "net.zip", SMALL)(images)
    np.testing.assert_array_equal(logits, load_weights(file, SMALL)(images))
    with pytest.raises(ValueError, match=r"net\.zip has weights alone"):
        load(tmp_path / "net.zip")
    assert not [*(tmp_path / "temporary").iterdir()]


def test_absent_and_irregular_files(tmp_path):
    path = tmp_path / "absent"
    os.mkfifo(tmp_path / "pipe")
    for read in (
        find_weights,
        load,
        lambda path: load_weights(path, SMALL),
    ):
        with pytest.raises(DataNotFoundError, match=f"no weight file {path}"):
            read(path)
        for irregular in (tmp_path, tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(
                ValueError, match=f"^{irregular} is a folder, pipe or dev"
            ):
                read(irregular)
    with pytest.raises(DataNotFoundError, match=r"no weight file absent\.safetensors"):
        load("absent.safetensors")


def test_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match="called 'zfnet33'; give one of ") as caught:
        load("zfnet33")
    assert "zfnet32-cifar10, zfnet-imagenet" in str(caught.value)


def test_the_shipped_network_knows_its_origin():
    net = load("zfnet32-cifar10")
    assert len(net.class_names) == net.num_classes
    assert {"command", "seed", "test_accuracy"} <= net.metadata.keys()


def described_otherwise(file, tmp_path, change):
    """A copy of a file with another description, and the digest that fits it."""
    with safetensors.safe_open(file, framework="numpy") as content:
        arrays = {name: content.get_tensor(name) for name in content.keys()}
        header = json.loads(content.metadata()["zfnet_jax"])
    del header["sha256"]
    change(header, arrays)
    header["sha256"] = weights._digest(header, arrays)
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(arrays, path, {"zfnet_jax": json.dumps(header)})
    return path


def put(entry, value):
    def change(header, arrays):
        del arrays
        *path, last = entry.split(".")
        for name in path:
            header = header[name]
        header[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, arrays: header.pop("architecture"), "architecture"),
        (lambda header, arrays: header.pop("class_names"), "class_names"),
        (lambda header, arrays: arrays.pop("preprocessing.mean"), "mean"),
        (put("preprocessing", [1]), "invalid description"),
        (put("class_names", ["one"]), "1 class names, expected 5"),
        (put("class_names", [1, 2, 3, 4, 5]), "class names must be text"),
        (put("class_names", 5), "invalid description"),
        (put("metadata.accuracy", [0.5]), "metadata accuracy must be text or a finite"),
        (put("metadata.accuracy", float("nan")), "metadata accuracy must"),
        (put("metadata", "text"), "invalid description"),
        (put("preprocessing.scale", float("inf")), "scale inf is not a finite number"),
        (put("preprocessing.scale", "1"), "scale '1' is not"),
        (put("preprocessing.size", [9, 9]), r"images \(9, 9, 3\), expected"),
        (put("preprocessing.size", 9), "invalid description"),
        (put("architecture.layers", 5), "invalid description"),
        (put("architecture.layers", [{"kind": "Pool3d"}]), "'Pool3d'"),
        (
            lambda header, arrays: header["architecture"]["layers"][0].update(
                name="../../conv1"
            ),
            "cannot name a layer",
        ),
        (
            lambda header, arrays: arrays["preprocessing.mean"].fill(np.nan),
            "the mean image is not finite",
        ),
    ],
)
def test_invalid_descriptions(file, tmp_path, change, message, monkeypatch):
    # The users' own checks, without those of the tests.
    monkeypatch.setitem(jaxtyping.config.__dict__, "jaxtyping_disable", True)
    path = described_otherwise(file, tmp_path, change)
    for read in (load, load_weights):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} has an invalid description")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert load_weights(path, SMALL).arch == SMALL


def test_a_type_that_numpy_lacks(tmp_path):
    entry = {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"conv1.bias": entry}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"00")
    with pytest.raises(ValueError, match="has a type that NumPy lacks"):
        load_weights(path, ARCHITECTURES["zfnet32"])


def test_nothing_wrong_is_written(tmp_path, model, about, monkeypatch):
    monkeypatch.setitem(jaxtyping.config.__dict__, "jaxtyping_disable", True)
    path = tmp_path / "net"
    for wrong, message in [
        ({"class_names": NAMES[:4]}, "4 class names, expected 5"),
        ({"metadata": {"accuracy": [1]}}, "metadata accuracy must be"),
        (
            {"preprocess": Preprocessing(np.zeros((9, 11, 1), np.float32))},
            r"11, 1\), expected",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            save(path, model, **{**about, **wrong})
    function = network(lambda x: x.mean((1, 2)), (9, 11, 3))
    with pytest.raises(ValueError, match="save takes a ConvNet, not a function"):
        save(path, function, **about)
    broken = nnx.clone(model)
    bias = vars(broken)["fc3"].bias
    bias[...] = bias[...].at[2].set(jnp.inf)
    with pytest.raises(ValueError, match=r"fc3\.bias is not finite"):
        save(path, broken, **about)
    (tmp_path / "occupied").mkdir()
    with pytest.raises(OSError, match="occupied"):
        save(tmp_path / "occupied", model, **about)
    assert [path.name for path in tmp_path.iterdir()] == ["occupied"]


def torch_bytes(state, **options):
    import torch

    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_live(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    from tests.references.make_torch_files import small

    def checkpoint(net):
        """Entries that training loops put beside the weights."""
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.randn(1, 3, 9, 11)).sum().backward()
        optimizer.step()
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
        return {
            "network": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": [torch.get_rng_state(), np.random.get_state()],
            "types": {torch.float16, torch.device("cpu"), torch.Size([3, 4])},
            "keys": {1: b"\x00", (2, "x"): frozenset({3}), torch.int8: 2 + 1j},
            "path": Path("data"),
        }

    torch.manual_seed(zipped)
    net = small()
    images = torch.randn(3, 3, 9, 11)
    path = tmp_path / "weights"
    for dtype, wrapped in [
        (torch.float32, lambda net: dict(net.named_parameters())),
        (torch.float64, lambda net: {"epoch": 1, "model": net.state_dict()}),
        (torch.float16, lambda net: torch.nn.DataParallel(net).state_dict()),
        (torch.bfloat16, lambda net: {"model_state_dict": net.state_dict()}),
        # Averages have the same names.
        (
            torch.float32,
            lambda net: {
                "state_dict_ema": {n: 0 * x for n, x in net.state_dict().items()},
                "state_dict": net.state_dict(),
            },
        ),
        (torch.float32, checkpoint),
        (
            torch.float32,
            lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict(),
        ),
    ]:
        content = torch_bytes(
            wrapped(net.to(dtype)),
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        path.write_bytes(content)
        with torch.no_grad():
            expected = net.to(torch.float32)(images).numpy()
        logits = load_weights(path, SMALL)(images.permute(0, 2, 3, 1).numpy())
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    for whole in (net, {"epoch": 1, "model": net}):
        torch.save(whole, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(DamagedFileError, match=r"'torch\.nn\..*model\.state_dict"):
            load_weights(path, SMALL)
