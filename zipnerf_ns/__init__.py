"""Zip-NeRF as a Nerfstudio method: anti-aliased grid-based radiance fields (Barron et al., ICCV 2023)."""

__version__ = "0.1.0"
