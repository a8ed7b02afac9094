"""The OpenAI-compatible HTTP surface: parsing, server-sent events, errors in OpenAI's shape."""
