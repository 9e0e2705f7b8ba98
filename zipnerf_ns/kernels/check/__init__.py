"""What the kernels take on a GPU that is not here, asked of Triton's compiler; and launches made again alone."""
