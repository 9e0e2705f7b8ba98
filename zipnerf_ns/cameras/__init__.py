"""Cameras: rays of their pixels, corrections of their poses, and where held-out ones stand."""
