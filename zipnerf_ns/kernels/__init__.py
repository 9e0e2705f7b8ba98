"""Triton kernels, each behind the signature of its torch twin in ``zipnerf_ns.functional``.

Only this package imports triton, and only where it is installed: the modules here can be imported anywhere, and say
through their ``is_available`` whether they can run.
"""
