"""Data of scenes that move: when each photo was taken, and formats that say so."""
