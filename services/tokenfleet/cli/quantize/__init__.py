"""`tokenfleet quantize`: a smaller file or folder of the same model.

- `methods`    what there is to choose from
- `source`     where the model comes from: a path, or a name of the catalog
- `gguf_file`  gguf to gguf, tensor by tensor; needs no torch
- `rounding`   Hugging Face's folder to one for vLLM, by AutoRound, in a process of its own
- `check`      the same questions before and after
- `command`    puts these together
"""
