"""What stands behind the benchmark."""
