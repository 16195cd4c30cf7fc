"""Networks that others trained on ImageNet and published, by name.

>>> PUBLIC["vgg16"].url.rpartition("/")[2]
'vgg16-397923af.pth'
>>> PUBLIC["vgg16"].network().layers["conv5_3"].receptive_field.size
(196, 196)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from zfnet_jax import download, state_dict
from zfnet_jax.arch import ARCHITECTURES, Architecture
from zfnet_jax.data.preprocessing import CAFFE, TORCHVISION, Normalization
from zfnet_jax.files import extract_single
from zfnet_jax.imagenet import resnet, squeezenet
from zfnet_jax.imagenet.classes import CLASS_NAMES
from zfnet_jax.imagenet.plain import PlainNetwork
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, network

_TORCHVISION = "https://download.pytorch.org/models/"
_IMGCLSMOB = "https://github.com/osmr/imgclsmob/releases/download/"
_DEEP_COMPRESSION = (
    "https://raw.githubusercontent.com/songhan/SqueezeNet-Deep-Compression/"
    "5623e3cdbe1fcd83328c61ce2ee42c34ed319aa3/compressed_SqueezeNet.net"
)


class PublicNetwork(NamedTuple):
    """A published network.

    Attributes:
        url: Address of its weights.
        model: An architecture, or a function of parameters and images.
        preprocess: Preprocessing of its images.
    """

    url: str
    model: Architecture | PlainNetwork
    preprocess: Normalization = TORCHVISION

    def fetch(self) -> Path:
        """Return the path of the weights, after fetching them if they are missing.

        Raises:
            DamagedFileError: The file is not what was published; it is removed.
            DataNotFoundError: The file is missing and cannot be fetched.
        """
        folder, name = download.cache_folder(), self.url.rpartition("/")[2]
        stem, *packing = re.split(r"(\.net|\.zip)$", name)
        path = folder / (f"{stem}.safetensors" if ".net" in packing else stem)
        if not path.exists():
            file = download.fetch(self.url, folder, ", or give the path of the file")
            if ".net" in packing:
                squeezenet.decompress(file, path)
            elif ".zip" in packing:
                extract_single(file, path)
            if file != path:
                file.unlink()
        if digits := re.search(r"-([0-9a-f]{8})\.pth", name):
            # torchvision names its files by their sha256, imgclsmob by their sha1.
            is_torchvision = self.url.startswith(_TORCHVISION)
            download.check(path, "sha256" if is_torchvision else "sha1", digits[1])
        return path

    def network(self) -> Network:
        """Build the network without its weights, for what is known of its layers."""
        if isinstance(self.model, Architecture):
            arch = self.model
            return self._finish(nnx.eval_shape(lambda: ConvNet(arch, rngs=nnx.Rngs(0))))
        return self._finish({n: np.zeros(x) for n, x in self.model.shapes.items()})

    def build(self, source: str, tensors: Mapping[str, Any]) -> Network:
        """Build the network from the tensors of its file.

        Args:
            source: Where the tensors come from, for messages.
            tensors: As for `state_dict.build`.

        Raises:
            ValueError: The tensors do not fit.
        """
        if isinstance(self.model, Architecture):
            return self._finish(state_dict.build(source, tensors, self.model))
        arrays = {}
        for name in self.model.shapes:
            arrays[name] = np.asarray(tensors[name][:], np.float32)
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{source}: {name} is not finite in float32")
        return self._finish(arrays)

    def _finish(self, weights: Any) -> Network:
        known = {"preprocess": self.preprocess, "class_names": CLASS_NAMES}
        if isinstance(self.model, Architecture):
            return network(weights, **known)
        params = self.model.convert(weights)
        return network(self.model.apply, self.model.image_shape, params=params, **known)


def recognize(tensors: Mapping[str, Any]) -> str | None:
    """Name the network whose file has tensors of these names and shapes, if any."""
    shapes = {name: x.shape for name, x in tensors.items()}
    shapes = {n: x for n, x in shapes.items() if not n.endswith(".num_batches_tracked")}
    for name, public in PUBLIC.items():
        if isinstance(public.model, PlainNetwork) and public.model.shapes == shapes:
            return name
    try:
        arch = state_dict.recognize("", tensors)
    except ValueError:
        return None
    has_norm = any(name.endswith(".running_mean") for name in shapes)
    name = f"{arch.name}-bn" if has_norm else arch.name
    # A network for other classes has other names for them.
    return name if name in PUBLIC and arch == PUBLIC[name].model else None


def _chain(arch: str, file: str) -> PublicNetwork:
    base = _TORCHVISION if "/" not in file else _IMGCLSMOB
    return PublicNetwork(f"{base}{file}", ARCHITECTURES[arch])


def _function(model: PlainNetwork, file: str) -> PublicNetwork:
    return PublicNetwork(f"{_TORCHVISION}{file}", model)


PUBLIC = {
    "zfnet-imagenet": _chain("zfnet-imagenet", "v0.0.395/zfnet-1727-d010ddca.pth.zip"),
    "zfnetb-imagenet": _chain(
        "zfnetb-imagenet", "v0.0.400/zfnetb-1490-f6bec24e.pth.zip"
    ),
    "alexnet-imagenet": _chain(
        "alexnet-imagenet", "v0.0.481/alexnet-1664-2768cdb3.pth.zip"
    ),
    "alexnet-torchvision": _chain("alexnet-torchvision", "alexnet-owt-7be5be79.pth"),
    "vgg11": _chain("vgg11", "vgg11-8a719046.pth"),
    "vgg13": _chain("vgg13", "vgg13-19584684.pth"),
    "vgg16": _chain("vgg16", "vgg16-397923af.pth"),
    "vgg19": _chain("vgg19", "vgg19-dcbb9e9d.pth"),
    "vgg11-bn": _chain("vgg11", "vgg11_bn-6002323d.pth"),
    "vgg13-bn": _chain("vgg13", "vgg13_bn-abd245e5.pth"),
    "vgg16-bn": _chain("vgg16", "vgg16_bn-6c64b313.pth"),
    "vgg19-bn": _chain("vgg19", "vgg19_bn-c79401a0.pth"),
    "squeezenet-v1.0": PublicNetwork(_DEEP_COMPRESSION, squeezenet.V1_0_CAFFE, CAFFE),
    "squeezenet-torchvision": _function(squeezenet.V1_0, "squeezenet1_0-b66bff10.pth"),
    "squeezenet-1.1-torchvision": _function(
        squeezenet.V1_1, "squeezenet1_1-b8a52dc0.pth"
    ),
    "resnet18": _function(resnet.RESNET18, "resnet18-f37072fd.pth"),
    "resnet34": _function(resnet.RESNET34, "resnet34-b627a593.pth"),
    "resnet50": _function(resnet.RESNET50, "resnet50-0676ba61.pth"),
}
