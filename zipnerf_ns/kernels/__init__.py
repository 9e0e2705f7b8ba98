"""Triton kernels, each behind the signature of its torch twin in ``zipnerf_ns.functional``; and tinycudann.

Only this package imports triton, and only ``zipnerf_ns.ops`` imports this package: once ``support``, which needs no
Triton, has found that the kernels can run.
"""
