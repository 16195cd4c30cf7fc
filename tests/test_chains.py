"""The public ImageNet chains against PyTorch's own modules."""

from typing import Any

import jax
import numpy as np
import pytest

import zfnet_jax as zf
from tests import reference_deconvnet as reference
from tests.comparison import distance
from tests.networks import random_model
from tests.references.chain_cases import CHAINS, DIRECTION, STORE, case
from tests.test_deconvnet import with_dtype
from zfnet_jax.arch import ARCHITECTURES, Architecture, Dense, MaxPool
from zfnet_jax.data import Preprocessing


def compare(name: str, expected: dict[str, np.ndarray]) -> None:
    """Logits as users get them; gradients in float64, where rounding flips no ReLU."""
    arch, state, image = case(name).arch, case(name).state, case(name).image
    tensors = dict(zip(expected["names"].tolist(), state.values(), strict=True))
    model = zf.load_weights(tensors, arch)
    logits = np.asarray(jax.jit(lambda x: model(x))(image[None]))
    assert distance(logits[0], expected["logits"]) <= 1e-5

    def weigh(model: zf.ConvNet, image: Any) -> jax.Array:
        return (model(image)[0] * DIRECTION).sum()

    with jax.enable_x64(True):
        wide = with_dtype("float64", model)
        grads = jax.jit(jax.grad(weigh))(wide, image[None].astype(np.float64))
    norms = []
    for layer in arch.kernel_shapes():
        affine = getattr(grads, layer)
        norms += [np.linalg.norm(x[...]) for x in (affine.kernel, affine.bias)]
    np.testing.assert_allclose(norms, expected["norms"], rtol=1e-5)
    kernel = getattr(grads, arch.layers[0].name).kernel[..., 0]
    assert distance(np.moveaxis(kernel, -1, 0), expected["gradient"]) <= 1e-5


@pytest.mark.parametrize("name", CHAINS)
def test_logits_and_gradients_are_those_stored(name):
    with np.load(STORE) as arrays:
        keys = "names", "logits", "norms", "gradient"
        compare(name, {key: arrays[f"{name}/{key}"] for key in keys})


def test_a_file_keeps_that_sizes_are_rounded_up(tmp_path):
    arch = case("zfnet-imagenet").arch.with_input(63)
    model = random_model(arch)
    preprocess = Preprocessing(np.zeros((63, 63, 3), np.float32))
    names = [str(number) for number in range(arch.num_classes)]
    about = {"preprocess": preprocess, "class_names": names, "metadata": {}}
    zf.save(tmp_path / "net", model, **about)
    assert zf.load(tmp_path / "net").model.arch == arch


# --- against PyTorch ---


@pytest.fixture(scope="module")
def pytorch():
    pytest.importorskip("torchvision", reason="needs the parity extra")
    from tests.references import make_chains

    return make_chains


@pytest.mark.parity
@pytest.mark.parametrize("name", CHAINS)
def test_pytorch_gives_the_same(pytorch, name):
    compare(name, pytorch.references(name, case(name)))


@pytest.mark.parity
@pytest.mark.parametrize("name", CHAINS)
def test_full_networks_have_the_shapes_of_pytorchs(pytorch, name):
    tensors = pytorch.build(name).state_dict().values()
    weights = [tuple(tensor.shape) for tensor in tensors if tensor.ndim > 1]
    kernels = ARCHITECTURES[name].kernel_shapes().values()
    assert [(*shape[:-3:-1], *shape[:-2]) for shape in kernels] == weights


@pytest.mark.parity
def test_pytorch_rounds_up_alike():
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    for extent in range(2, 12):
        x = np.random.default_rng(0).normal(size=(extent, extent + 1, 2))
        for window in [(3, 2, 0), (2, 2, 1), (2, 3, 1), (3, 3, 1), (1, 2, 0)]:
            layers = MaxPool("pool", *window, True), Dense("logits", 1, relu=False)
            pool = Architecture("net", x.shape[:2], layers, channels=2).layers[0]
            assert isinstance(pool, MaxPool)
            actual, _ = reference.pool(x, pool)
            pool = torch.nn.MaxPool2d(*window, ceil_mode=True)
            expected = pool(torch.from_numpy(np.moveaxis(x, -1, 0))[None])[0]
            np.testing.assert_array_equal(np.moveaxis(actual, -1, 0), expected)
