"""Which model is resident where: the only service that orders loads and unloads."""
