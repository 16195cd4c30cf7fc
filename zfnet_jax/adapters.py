"""Models of every kind as a function of a list of arrays and a batch of images."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import nnx

from zfnet_jax.layers import parent


class Adapter(NamedTuple):
    """A model as a function of a list of arrays and a batch of images.

    Attributes:
        apply: The function.
        read: Reads the arrays as they are now.
        paths: For each of them the path of its module, or None.
        closed_over: Paths of other arrays, by identity.
    """

    apply: Callable[[list[Any], Any], Any]
    read: Callable[[], list[Any]]
    paths: list[str | None]
    closed_over: Mapping[int, str]


def adapt(model: Any, params: Any, image_shape: tuple[int, ...]) -> Adapter:
    """Find out how a model is called."""
    if params is not None:
        is_linen = _is_a(model, "flax.linen", "Module")
        return _adapt_tree(params, model.apply if is_linen else model)
    if isinstance(model, nnx.Module):
        return _adapt_tree(model, _call_nnx)
    if _is_a(model, "flax.linen", "Module"):
        raise ValueError(
            "a Linen module needs its variables: zf.network(module.apply, image_shape, "
            "params=variables)"
        )
    if _is_a(model, "equinox", "Module"):
        return _adapt_equinox(model, image_shape)
    if _is_a(model, "keras", "Model"):
        return _adapt_keras(model)
    if not callable(model):
        raise TypeError(f"model is a {type(model).__name__}, which cannot be called")
    return Adapter(lambda _, x: model(x), list, [], _closed_over(model))


def _is_a(model: Any, package: str, name: str) -> bool:
    """Check a model's class by name, without importing its package."""
    return package in sys.modules and isinstance(
        model, getattr(sys.modules[package], name)
    )


def _adapt_tree(tree: Any, call: Callable[[Any, Any], Any]) -> Adapter:
    def read() -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(tree) if _is_array(leaf)]

    # Compiled programs keep this function, so it must not keep the weights.
    flat, structure = jax.tree.flatten(tree)
    static = {i: leaf for i, leaf in enumerate(flat) if not _is_array(leaf)}
    count = len(flat)
    del flat

    def apply(weights: list[Any], images: Any) -> Any:
        rest = iter(weights)
        filled = [static[i] if i in static else next(rest) for i in range(count)]
        return call(jax.tree.unflatten(structure, filled), images)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = [module_path(path) for path, leaf in leaves if _is_array(leaf)]
    if isinstance(tree, Mapping) and "params" in tree:
        # A collection of Linen: the first name is not a module's.
        paths = [path.partition(".")[2] or path for path in paths]
    return Adapter(apply, read, [*paths], {})


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _adapt_equinox(module: Any, image_shape: tuple[int, ...]) -> Adapter:
    """A module of one image, channels last if it takes that and else first."""
    last = _adapt_tree(module, lambda module, x: jax.vmap(module)(x))
    try:
        images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
        jax.eval_shape(last.apply, last.read(), images)
    except (TypeError, ValueError):
        return _adapt_tree(
            module, lambda module, x: jax.vmap(module)(x.transpose(0, 3, 1, 2))
        )
    return last


def _call_nnx(module: nnx.Module, images: Any) -> Any:
    for _, part in nnx.iter_graph(module):
        if (
            getattr(part, "use_running_average", None) is False
            or getattr(part, "deterministic", None) is False
        ):
            raise ValueError(
                f"the model is in training mode ({type(part).__name__}): call "
                "model.eval()"
            )
    return cast(Any, module)(images)


def _adapt_keras(model: Any) -> Adapter:
    trainable = len(model.trainable_variables)

    def variables() -> list[Any]:
        return [*model.trainable_variables, *model.non_trainable_variables]

    def apply(weights: list[Any], images: Any) -> Any:
        return model.stateless_call(
            weights[:trainable], weights[trainable:], images, training=False
        )[0]

    # The model's own name counts the models of its kind that the process has made.
    paths = [variable.path.removeprefix(f"{model.name}/") for variable in variables()]
    return Adapter(
        apply,
        lambda: [variable.value for variable in variables()],
        [path.rpartition("/")[0] or None for path in paths],
        {},
    )


def keras_image_shape(model: Any) -> tuple[int, ...]:
    """Shape of the images of a Keras model; ValueError for any other."""
    shape = model.input_shape[1:] if _is_a(model, "keras", "Model") else ()
    if not shape or None in shape:
        raise ValueError("image_shape is needed: (height, width, channels)")
    return shape


def module_path(path: tuple[Any, ...]) -> str:
    """Path of the module that a parameter belongs to."""
    names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    if len(names) > 1 and names[-1] == "value":  # of an NNX variable
        names.pop()
    name = ".".join(names)
    return parent(name) or name


def _closed_over(function: Any) -> dict[int, str]:
    """Paths of the arrays of the modules that a function closes over."""
    owners: list[Any] = [getattr(function, "__self__", None)]
    if isinstance(function, functools.partial):
        owners += [*function.args, *function.keywords.values()]
        function = function.func
    function = inspect.unwrap(function)
    owners.append(function)
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        owners += [*variables.nonlocals.values(), *variables.globals.values()]
    return {
        id(leaf): module_path(path)
        for owner in owners
        if isinstance(owner, nnx.Module | Mapping) or _is_a(owner, "equinox", "Module")
        for path, leaf in jax.tree_util.tree_leaves_with_path(owner)
    }
