"""Zeiler & Fergus (2013) in JAX: ZFNet, and tools to see what any network learned."""

import importlib
from typing import TYPE_CHECKING, Any

from zfnet_jax.analysis.correspondence import correspondence
from zfnet_jax.analysis.evolution import evolution
from zfnet_jax.analysis.invariance import invariance
from zfnet_jax.analysis.mining import top_activations
from zfnet_jax.analysis.occlusion import occlusion
from zfnet_jax.analysis.probe import probe
from zfnet_jax.analysis.relevance import relevance
from zfnet_jax.analysis.sanity import sanity
from zfnet_jax.arch import (
    ALEXNET,
    ZFNET,
    ZFNET32,
    ZFNET_PLAIN,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
    ablate,
    receptive_field,
)
from zfnet_jax.attribution import attribute
from zfnet_jax.deconvnet import backproject
from zfnet_jax.metrics import deletion, insertion
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import network
from zfnet_jax.projections import project
from zfnet_jax.relu_rules import with_relu_rule
from zfnet_jax.weights import load, load_weights, save

if TYPE_CHECKING:
    from zfnet_jax import viz as viz
    from zfnet_jax.analysis.likeness import likeness
    from zfnet_jax.analysis.transfer import transfer
    from zfnet_jax.galleries import gallery
    from zfnet_jax.recipes import FAST, PAPER
    from zfnet_jax.training import train

__version__ = "0.1.0"

__all__ = [
    "ALEXNET",
    "FAST",
    "PAPER",
    "ZFNET",
    "ZFNET32",
    "ZFNET_PLAIN",
    "Architecture",
    "ContrastNorm",
    "Conv",
    "ConvNet",
    "Dense",
    "MaxPool",
    "ablate",
    "attribute",
    "backproject",
    "correspondence",
    "deletion",
    "evolution",
    "gallery",
    "insertion",
    "invariance",
    "likeness",
    "load",
    "load_weights",
    "network",
    "occlusion",
    "probe",
    "project",
    "receptive_field",
    "relevance",
    "sanity",
    "save",
    "top_activations",
    "train",
    "transfer",
    "with_relu_rule",
]


_LAZY = {
    "FAST": "recipes",
    "PAPER": "recipes",
    "gallery": "galleries",
    "likeness": "analysis.likeness",
    "train": "training",
    "transfer": "analysis.transfer",
}


def __getattr__(name: str) -> Any:
    """Import what takes long to import when it is first used."""
    if module := _LAZY.get(name):
        return getattr(importlib.import_module(f"zfnet_jax.{module}"), name)
    if name in ("training", "viz"):
        return importlib.import_module(f"zfnet_jax.{name}")
    raise AttributeError(f"module 'zfnet_jax' has no attribute {name!r}")
