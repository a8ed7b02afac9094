"""What tokenfleet costs and how it compares: each module is one benchmark, its results are in `results/`."""
