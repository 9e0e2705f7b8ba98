"""Dataparsers that nerfstudio registers by entry point: they know checks and scales, never a datamanager or trainer."""
