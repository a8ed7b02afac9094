"""What keys and certificates cost: the same streams through fleets that differ in nothing else."""
