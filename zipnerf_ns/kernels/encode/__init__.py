"""The prefiltered hash encoding: of samples and of cones."""
