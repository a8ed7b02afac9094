"""The tokenizer service: text and conversations become token ids and block hashes here, once.

Everything behind it moves ids. It is CPU-bound work that must not sit on a gateway's event loop, so it has
its own processes, as many as the load wants.
"""
