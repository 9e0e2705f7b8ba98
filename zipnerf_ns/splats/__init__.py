"""Gaussians that look like a trained field and are drawn hundreds of times a second."""
