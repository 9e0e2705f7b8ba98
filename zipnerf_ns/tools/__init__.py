"""Commands a person runs: `python -m zipnerf_ns.tools.<name>`; nothing in the package imports them."""
