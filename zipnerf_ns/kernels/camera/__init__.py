"""Rays of pixels and of pictures."""
