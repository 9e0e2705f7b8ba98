"""The built-in scene: what stands in it, and how it is rendered exactly."""
