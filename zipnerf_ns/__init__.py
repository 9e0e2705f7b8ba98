"""Zip-NeRF as a Nerfstudio method: anti-aliased grid-based radiance fields (Barron et al., ICCV 2023)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Imported when first asked for: whoever wants one of them need not wait for the others, or for Nerfstudio.
_PUBLIC = {
    "HashGridConfig": "encoding",
    "ProposalConfig": "settings",
    "Rays": "rays",
    "ZipNerf": "zipnerf",
    "ZipNerfConfig": "settings",
    "ZipNerfModelConfig": "model_config",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
