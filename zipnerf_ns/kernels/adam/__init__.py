"""The optimizer's pass over hash tables."""
