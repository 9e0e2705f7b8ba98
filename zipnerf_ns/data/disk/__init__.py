"""Pixels of captures that no memory holds: a store on disk, and the part of it that is drawn from."""
