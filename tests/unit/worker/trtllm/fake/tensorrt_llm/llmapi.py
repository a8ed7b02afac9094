"""As TensorRT-LLM exports them."""

from tensorrt_llm import GuidedDecodingParams, KvCacheConfig

__all__ = ["GuidedDecodingParams", "KvCacheConfig"]
