"""The operations of `zfnet_jax.ops` in forms that XLA's CPU backend runs faster.

XLA's own gradients of convolution and pooling are several times slower there than they
need to be. Each function names what it equals, and is tested against it.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from zfnet_jax.cpu import conv, pool

__all__ = ["conv", "pool", "replace_with", "use_definitions"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Within `use_definitions(True)` the definitions run on the CPU too: a network is read
# from their equations.
use_definitions = jax.make_user_context(False)


def replace_with(
    fast: Callable[_P, _T],
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Run `fast` in place of a definition on XLA's CPU backend."""

    def decorate(definition: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(definition)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            if jax.default_backend() == "cpu" and not use_definitions.value:
                return fast(*args, **kwargs)
            return definition(*args, **kwargs)

        return run

    return decorate
