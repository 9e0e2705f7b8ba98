"""What a step's gradients say: their norms, and whether they may be used."""

from __future__ import annotations

import torch


def gradient_norms(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The norm of every parameter's gradient, and their sum as the total, as Nerfstudio names them."""
    norms = {
        f"Gradients/{name}": parameter.grad.norm()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {**norms, "Gradients/Total": sum(norms.values(), torch.zeros(()))}
