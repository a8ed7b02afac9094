"""Static batching behind a micro-batcher against continuous batching: one timing model, one load."""
