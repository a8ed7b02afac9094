"""Hugging Face transformers behind a micro-batcher: what serves where no serving engine runs.

A batch is static: it is put together once, computed as one rectangle of left-padded rows, and ends with its
last sequence. It is also what continuous batching has to be better than.

- `engine`    the `Engine`: arguments, and what the child process is told (`hosted` does the rest)
- `child`     the child's main program: loads the model
- `stepper`   micro-batches, steps and ends: the engine as the child's loop drives it
- `batch`     the rectangle: ids, masks, positions and the KV cache of a batch
- `blocks`    KV blocks of prompts that are kept for later ones
- `sampler`   the next id out of a row's logits
"""
