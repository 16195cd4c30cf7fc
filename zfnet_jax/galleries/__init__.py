"""Static pages that show what every unit of a network responds to."""

from zfnet_jax.galleries.archive import zip_gallery
from zfnet_jax.galleries.build import Gallery, gallery

__all__ = ["Gallery", "gallery", "zip_gallery"]
