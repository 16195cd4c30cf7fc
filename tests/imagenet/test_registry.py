"""Published networks by name, fetched from a server of the test's own."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import zfnet_jax as zf
from tests.loopback import serve
from tests.networks import random_tensors
from tests.torch_writer import write_state
from zfnet_jax import weights
from zfnet_jax.arch import Architecture
from zfnet_jax.data import CAFFE, TORCHVISION
from zfnet_jax.files import DamagedFileError, DataNotFoundError
from zfnet_jax.imagenet import registry, resnet, squeezenet
from zfnet_jax.imagenet.classes import CLASS_NAMES, WORDNET_IDS
from zfnet_jax.imagenet.registry import PUBLIC, PublicNetwork
from zfnet_jax.weights import BareWeightsError

SHARED = Path(__file__).parents[3] / "shared" / "squeezenet_v1_0"
ARCH = Architecture(
    "tiny",
    (12, 12),
    (zf.Conv("conv1", 2, kernel=5, stride=3), zf.Dense("logits", 1000, relu=False)),
)
RNG = np.random.default_rng(0)
TENSORS = {
    "features.0.weight": RNG.normal(size=(2, 3, 5, 5)).astype(np.float32),
    "features.0.bias": RNG.normal(size=2).astype(np.float32),
    "classifier.6.weight": RNG.normal(size=(1000, 18)).astype(np.float32),
    "classifier.6.bias": RNG.normal(size=1000).astype(np.float32),
}


def pack(tensors: dict[str, np.ndarray]) -> bytes:
    """A file of PyTorch in the format of 2019."""
    buffer = io.BytesIO()
    write_state(buffer, tensors, is_zip=False)
    return buffer.getvalue()


LEGACY = pack(TENSORS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of fetched files, empty."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("zfnet_jax.download.cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def wrap(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net.pth", content)
    return buffer.getvalue()


def test_the_classes_are_those_of_imagenet():
    assert len(set(CLASS_NAMES)) == len(set(WORDNET_IDS)) == 1000
    assert list(WORDNET_IDS) == sorted(WORDNET_IDS)
    assert CLASS_NAMES[0] == "tench" and CLASS_NAMES[999] == "toilet tissue"


# Parameters, as their publishers count them, and the file of each network.
PUBLISHED = {
    "zfnet-imagenet": (62_357_608, "zfnet-1727-d010ddca.pth.zip"),
    "zfnetb-imagenet": (107_627_624, "zfnetb-1490-f6bec24e.pth.zip"),
    "alexnet-imagenet": (62_378_344, "alexnet-1664-2768cdb3.pth.zip"),
    "alexnet-torchvision": (61_100_840, "alexnet-owt-7be5be79.pth"),
    "vgg11": (132_863_336, "vgg11-8a719046.pth"),
    "vgg13": (133_047_848, "vgg13-19584684.pth"),
    "vgg16": (138_357_544, "vgg16-397923af.pth"),
    "vgg19": (143_667_240, "vgg19-dcbb9e9d.pth"),
    "vgg11-bn": (132_863_336, "vgg11_bn-6002323d.pth"),
    "vgg13-bn": (133_047_848, "vgg13_bn-abd245e5.pth"),
    "vgg16-bn": (138_357_544, "vgg16_bn-6c64b313.pth"),
    "vgg19-bn": (143_667_240, "vgg19_bn-c79401a0.pth"),
    "squeezenet-v1.0": (1_248_424, "compressed_SqueezeNet.net"),
    "squeezenet-torchvision": (1_248_424, "squeezenet1_0-b66bff10.pth"),
    "squeezenet-1.1-torchvision": (1_235_496, "squeezenet1_1-b8a52dc0.pth"),
    # Folded, batch normalization leaves one number per channel.
    "resnet18": (11_689_512 - 4_800, "resnet18-f37072fd.pth"),
    "resnet34": (21_797_672 - 8_512, "resnet34-b627a593.pth"),
    "resnet50": (25_557_032 - 26_560, "resnet50-0676ba61.pth"),
}


def test_every_name_has_its_network_file_and_preprocessing():
    assert PUBLIC.keys() == PUBLISHED.keys()
    for name, (parameters, file) in PUBLISHED.items():
        net, is_caffe = PUBLIC[name].network(), name == "squeezenet-v1.0"
        assert (net.parameters, PUBLIC[name].url.rpartition("/")[2]) == (
            parameters,
            file,
        )
        assert net.num_classes == 1000 and net.class_names == CLASS_NAMES
        side, preprocess = (227, CAFFE) if is_caffe else (224, TORCHVISION)
        assert net.image_shape == (side, side, 3) and net.preprocess == preprocess
        assert preprocess.crop == side / 256


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_network_is_fetched_by_name_and_checked(cache, monkeypatch, algorithm):
    digits = hashlib.new(algorithm, LEGACY).hexdigest()[:8]
    is_zip = algorithm == "sha1"
    with serve(wrap(LEGACY) if is_zip else LEGACY) as server:
        url = f"{server.base}net-{digits}.pth{'.zip' if is_zip else ''}"
        if not is_zip:
            monkeypatch.setattr(registry, "_TORCHVISION", server.base)
        monkeypatch.setitem(PUBLIC, "tiny", PublicNetwork(url, ARCH))
        net = zf.load("tiny")
    images = RNG.normal(size=(2, 12, 12, 3))
    expected = zf.load_weights(TENSORS, ARCH)(images)
    np.testing.assert_array_equal(net(images), expected)
    assert net.class_names == CLASS_NAMES
    assert net.metadata == {"name": "tiny", "source": url}
    assert [path.name for path in cache.iterdir()] == [f"net-{digits}.pth"]
    np.testing.assert_array_equal(zf.load("tiny")(images), expected)  # offline
    path = weights.find_weights("tiny")
    path.write_bytes(LEGACY[:-1] + b"!")
    with pytest.raises(DamagedFileError, match="was removed"):
        zf.load("tiny")
    assert not path.exists()


def test_offline_the_message_says_where_to_put_the_file(cache, monkeypatch):
    url = "http://127.0.0.1:9/net-12345678.pth"
    monkeypatch.setitem(PUBLIC, "tiny", PublicNetwork(url, ARCH))
    with pytest.raises(DataNotFoundError) as error:
        zf.load("tiny")
    assert f"put {url} there" in str(error.value) and str(cache) in str(error.value)


def test_a_file_is_recognized_by_its_tensors(tmp_path, monkeypatch):
    file = tmp_path / "fetched by hand.pth"
    file.write_bytes(LEGACY)
    with pytest.raises(BareWeightsError):
        zf.load(file)
    monkeypatch.setitem(zf.arch.ARCHITECTURES, "vgg11", ARCH)
    public = PublicNetwork("http://somewhere/", ARCH)
    monkeypatch.setitem(PUBLIC, "tiny", public)
    assert zf.load(file).metadata == {"name": "tiny", "source": str(file)}
    # For other classes, ImageNet's names would be wrong.
    few = {n: x[:5] if "6" in n else x for n, x in TENSORS.items()}
    file.write_bytes(pack(few))
    with pytest.raises(BareWeightsError, match="tiny for 5 classes"):
        zf.load(file)
    assert zf.load(file, class_names="abcde").class_names == (*"abcde",)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_function_is_recognized_by_its_tensors(tmp_path, prefix):
    tensors = random_tensors(squeezenet.V1_1.shapes)
    file = tmp_path / "squeezenet.safetensors"

    def load(tensors: dict[str, np.ndarray], **options: Any) -> Any:
        renamed = {f"{prefix}{name}": x for name, x in tensors.items()}
        safetensors.numpy.save_file(renamed, file)
        return zf.load(file, **options)

    net = load(tensors)
    assert net.metadata["name"] == "squeezenet-1.1-torchvision"
    image = RNG.normal(size=(1, 224, 224, 3)).astype(np.float32)
    few = {n: x[:7] if n.startswith("classifier") else x for n, x in tensors.items()}
    with pytest.raises(BareWeightsError, match="for 7 classes: give class_names"):
        load(few)
    logits = load(few, class_names="abcdefg")(image)
    np.testing.assert_allclose(logits, net(image)[:, :7], rtol=1e-5)
    for change, problem in (
        ({"features.0.bias": np.full(64, np.inf, np.float32)}, "is not finite"),
        ({"features.0.bias": np.zeros(64, np.int64)}, "has dtype int64"),
        ({"features.0.bias": np.zeros(63, np.float32)}, "has shape"),
        ({"other.weight": np.zeros(3, np.float32)}, "is not expected"),
    ):
        with pytest.raises(ValueError, match=problem):
            load(tensors | change)


def test_a_negative_variance_is_refused():
    tensors = random_tensors(resnet.RESNET18.shapes)
    tensors["bn1.running_var"][3] = -1
    with pytest.raises(ValueError, match="it: bn1 has a negative variance"):
        PUBLIC["resnet18"].build("it", tensors)


def compress(tensors: dict[str, np.ndarray]) -> bytes:
    """Encode weights of at most 255 values that are not 0 per layer."""
    counts, parts = [], []
    for name in (name for name in tensors if name.endswith(".weight")):
        flat = tensors[name].ravel()
        values = np.unique(flat[flat != 0])
        table = np.zeros(256, "<f4")
        table[1 : 1 + values.size] = values
        codes, gaps, zeros = [], [], 0
        for code in (np.searchsorted(values, flat) + 1) * (flat != 0):
            if code or zeros == 15:
                codes.append(code)
                gaps.append(zeros)
                zeros = 0
            else:
                zeros += 1
        gaps += [0] * (len(gaps) % 2)
        pairs = np.array(gaps[::2]) + 16 * np.array(gaps[1::2])
        counts.append(len(codes))
        bias = tensors[name.replace("weight", "bias")].astype("<f4")
        parts += [table, bias, np.array(codes, np.uint8), pairs.astype(np.uint8)]
    return b"".join(x.tobytes() for x in (np.array(counts, "<u4"), *parts))


def test_compressed_weights_are_decoded(tmp_path, monkeypatch):
    file, target = tmp_path / "compressed.net", tmp_path / "weights.safetensors"
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.integers(-99, 99, shape) * (rng.random(shape) < 0.2)).astype("f4")
        for name, shape in squeezenet.V1_0_CAFFE.shapes.items()
    }
    file.write_bytes(compress(tensors))
    with pytest.raises(DamagedFileError):
        squeezenet.decompress(file, target)
    assert not file.exists() and not target.exists()
    ordered = (tensors[name] for name in sorted(tensors))
    monkeypatch.setattr(squeezenet, "_DIGEST", zf.files.digest(*ordered))
    file.write_bytes(compress(tensors))
    squeezenet.decompress(file, target)
    decoded = safetensors.numpy.load_file(target)
    assert decoded.keys() == tensors.keys()
    assert all((decoded[name] == tensors[name]).all() for name in tensors)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the published weights")
def test_the_published_weights_have_660_kb_and_their_digest(cache, monkeypatch):
    tensors = safetensors.numpy.load_file(SHARED / "squeezenet_v1_0.safetensors")
    content = compress({n: tensors[n] for n in squeezenet.V1_0_CAFFE.shapes})
    assert round(len(content) / 1024) == 660
    with serve(content) as server:
        public = PUBLIC["squeezenet-v1.0"]
        url = server.base + public.url.rpartition("/")[2]
        monkeypatch.setitem(PUBLIC, "squeezenet-v1.0", public._replace(url=url))
        net = zf.load("squeezenet-v1.0")
    photograph = SHARED.parent / "imagenet_sample" / "n02099601_golden_retriever.jpg"
    logits = net(net.load_images(photograph)[:])
    assert net.class_names[int(logits.argmax())] == "golden retriever"
    (path,) = cache.iterdir()
    tensors["conv1.bias"][0] += 1
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(DamagedFileError, match="was removed"):
        zf.load("squeezenet-v1.0")
    assert not path.exists()
