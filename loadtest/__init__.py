"""Load against a fleet: what locust scenarios and benchmarks generate it with."""
