"""From a catalog entry to files on this node: weights for the engine, a tokenizer for everybody else.

A source says where a model comes from (`sources`: a package, `pip_wheel`, a hub, `hub`, or this node's disk),
the cache fetches it once per node however many processes ask (`cache`), within a bound (`room`), and refuses
what is broken (`weights_check`). A gguf's own metadata is turned into the `tokenizer.json` that the tokenizer
libraries read (`gguf_metadata`, `gguf_tokenizer`). `Vocabulary` is what a worker needs of it: the bytes of
each id.
"""

from tokenfleet.runtime.models.bundle import TokenizerBundle
from tokenfleet.runtime.models.cache import ModelCache, default_cache_dir
from tokenfleet.runtime.models.progress import Progress
from tokenfleet.runtime.models.vocabulary import Vocabulary, load_vocabulary

__all__ = ["ModelCache", "Progress", "TokenizerBundle", "Vocabulary", "default_cache_dir", "load_vocabulary"]
