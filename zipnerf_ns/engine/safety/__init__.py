"""What keeps a fault from costing the run."""
