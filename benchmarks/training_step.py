"""Time one training step against the same network in PyTorch eager, side by side.

    pip install -e ".[parity]" && python -m benchmarks.training_step

Both sides do forward, backward and an SGD update with momentum on the same random
images, in float32, with as many threads as there are processors; PyTorch in
channels_last. They take turns, after a warm-up, and the ratio PyTorch / ours is taken
turn by turn: above 1 our step is the faster one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.typing import DTypeLike

import zfnet_jax as zf
from benchmarks.turns import take_turns

CASES = {
    "zfnet32": (zf.ZFNET32, 128),
    "zfnet-plain": (zf.ZFNET_PLAIN, 32),
    "zfnet": (zf.ZFNET, 32),
    "alexnet": (zf.ALEXNET, 32),
}
_RATE, _MOMENTUM = 1e-3, 0.9


@dataclasses.dataclass(frozen=True)
class Options:
    """Time training steps against PyTorch eager."""

    cases: tuple[Literal["zfnet32", "zfnet-plain", "zfnet", "alexnet"], ...] = (
        "zfnet32",
        "zfnet-plain",
    )
    """The networks."""
    turns: int = 7
    """Turns that each side takes."""
    steps: int = 3
    """Steps in one turn."""


def jax_side(
    arch: zf.Architecture,
    images: np.ndarray,
    labels: np.ndarray,
    dtype: DTypeLike = jnp.float32,
) -> Callable[[int], None]:
    """A function that does some steps in one jitted program, and waits for them."""
    model: Any = zf.ConvNet(arch, dtype=dtype, rngs=nnx.Rngs(0))
    optimizer = optax.sgd(_RATE, _MOMENTUM)

    def loss(model, images, labels):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def run(model, opt_state, images, labels, count):
        def step(_, carry):
            model, opt_state = carry
            grads = jax.grad(loss)(model, images, labels)
            updates, opt_state = optimizer.update(grads, opt_state)
            return optax.apply_updates(model, updates), opt_state

        return jax.lax.fori_loop(0, count, step, (model, opt_state))

    state: list[Any] = [model, optimizer.init(model)]
    batch = (jnp.asarray(images), jnp.asarray(labels))

    def steps(count: int) -> None:
        state[:] = jax.block_until_ready(run(*state, *batch, count))

    return steps


def torch_side(
    arch: zf.Architecture,
    images: np.ndarray,
    labels: np.ndarray,
    device: str = "cpu",
    backend: str | None = None,
    is_bfloat16: bool = False,
) -> Callable[[int], None]:
    """The same network and step in PyTorch: eager, or compiled by a backend."""
    import torch
    from torch import nn

    from benchmarks.torch_network import torch_images, torch_network

    is_gpu = device == "cuda"
    if is_gpu:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    model = torch_network(arch, inplace=True).to(device)
    # PyTorch's stubs lack the form of `to` that takes a memory format alone.
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(model.parameters(), _RATE, _MOMENTUM, fused=is_gpu)
    run = model if backend is None else torch.compile(model, backend=backend)
    x = torch_images(images, device).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels).long().to(device)
    cast = torch.autocast(device, torch.bfloat16, enabled=is_bfloat16)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with cast:
                loss = nn.functional.cross_entropy(run(x), y)
            loss.backward()
            optimizer.step()
        if is_gpu:
            torch.cuda.synchronize()

    return steps


def draw_batch(arch: zf.Architecture, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of noise, float32 [n, h, w, c], and int32 labels."""
    rng = np.random.default_rng(0)
    shape = (count, *arch.input_hw, arch.channels)
    images = rng.standard_normal(shape, np.float32)
    return images, rng.integers(0, arch.num_classes, count).astype(np.int32)


def main(options: Options) -> None:
    """Print one row for each network: median times, and the ratio's spread."""
    print(f"{'network':>12} {'batch':>5} {'PyTorch':>9} {'ours':>9}  ratio (min..max)")
    for name in options.cases:
        arch, batch = CASES[name]
        data = draw_batch(arch, batch)
        theirs, ours = (
            functools.partial(side(arch, *data), options.steps)
            for side in (torch_side, jax_side)
        )
        result = take_turns(theirs, ours, options.turns)
        their_ms, our_ms = (
            1e3 * seconds / options.steps for seconds in (result.theirs, result.ours)
        )
        print(
            f"{name:>12} {batch:>5} {their_ms:>6.0f} ms {our_ms:>6.0f} ms  {result}",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
