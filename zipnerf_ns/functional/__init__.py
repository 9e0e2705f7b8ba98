"""The mathematics of Zip-NeRF as pure functions of tensors: no modules, no configuration, no state, no nerfstudio.

Letters used throughout, last axis first to vary along the ray:

- ``tdist``: fenceposts, distance along a *unit* direction in world units, ``[..., n+1]``;
- ``sdist``: fenceposts in normalized distance, 0 at the near plane and 1 at the far plane, ``[..., n+1]``;
- ``weights``: the share of the ray's color that each of the ``n`` intervals contributes, ``[..., n]``, sum <= 1;
- *level*: a level of the hash grid; *round*: a round of sampling along the ray.

Sources: [Z] Zip-NeRF (arXiv 2304.06706), [M] mip-NeRF 360 (arXiv 2111.12077), [mip] mip-NeRF (ICCV 2021),
[I] Instant-NGP (SIGGRAPH 2022).
"""
