"""The operations of `zfnet_jax.ops` in forms that XLA's CPU backend runs faster.

XLA's own gradients of convolution and pooling are several times slower there than they
need to be. Each function names what it equals, and is tested against it.
"""

from zfnet_jax.cpu import conv, pool

__all__ = ["conv", "pool"]
