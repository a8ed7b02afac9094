"""A batch as one rectangle: ids, masks, positions and the KV cache of rows that are padded on the left.

Its columns, of which each row leaves out what it lacks (`·`):

    cached prefixes     rest of the prompts   generated
    · · · ·             · a b c d e           f g h
    p q r s             · · t u v             w x y

Padding on the left puts the last token of every prompt into the same column, so that one forward pass gives
all of them their first id. Keys carry their true positions, so columns may be left out anywhere, and be cut
off when the rows that needed them have gone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Columns that nobody needs any more are cut off when they are so many: a cut copies the cache.
_WORTH_CUTTING = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt, and the KV blocks of its beginning."""

    ids: Sequence[int]
    budget: int
    prefix: Sequence[torch.Tensor] = ()
    block_size: int = 1

    @property
    def cached(self) -> int:
        return len(self.prefix) * self.block_size

    @property
    def to_prefill(self) -> int:
        return len(self.ids) - self.cached


class Batch:
    """`prefill` until `left` is 0, then `decode`; both answer logits, a row each, in order of the rows."""

    def __init__(self, model: Any, rows: Sequence[Row]) -> None:
        device = model.device
        self._model = model
        knows = inspect.signature(model.forward).parameters
        self._keep_last = {"logits_to_keep": 1} if "logits_to_keep" in knows else {}
        # renamed in transformers 5.24
        self._cache_name = "cache" if "cache" in knows else "past_key_values"
        self._cached = max(row.cached for row in rows)
        self._prompt = max(row.to_prefill for row in rows)
        self._done = 0  # columns of the prompts' rest that were computed
        width = self._cached + self._prompt
        self._starts = [width - row.to_prefill for row in rows]
        ids = torch.zeros(len(rows), self._prompt, dtype=torch.long)
        positions = torch.zeros(len(rows), self._prompt, dtype=torch.long)
        mask = torch.ones(len(rows), width + max(row.budget for row in rows), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, self._prompt - row.to_prefill :] = torch.tensor(row.ids[row.cached :])
            positions[index, self._prompt - row.to_prefill :] = torch.arange(row.cached, len(row.ids))
            mask[index, : self._cached - row.cached] = 0
            mask[index, self._cached : self._starts[index]] = 0
        self._ids, self._positions, self._mask = ids.to(device), positions.to(device), mask.to(device)
        self._cache = DynamicCache(config=model.config)
        if self._cached:
            self._put_prefixes(rows)

    @property
    def left(self) -> int:
        """Columns of the prompts that are still to be computed."""
        return self._prompt - self._done

    @property
    def rows(self) -> int:
        return len(self._starts)

    @property
    def held(self) -> int:
        """Tokens that the KV cache holds, padding included."""
        return self.rows * int(self._cache.get_seq_length())

    def prefill(self, columns: int) -> torch.Tensor:
        """Computes the next columns; the logits mean something when none is left."""
        begin, end = self._done, min(self._done + columns, self._prompt)
        logits = self._forward(self._ids[:, begin:end], self._positions[:, begin:end])
        self._done = end
        if end == self._prompt:
            self._positions = self._positions[:, -1:]
        return logits

    def decode(self, tokens: Sequence[int]) -> torch.Tensor:
        """Appends a token to each row."""
        self._positions = self._positions + 1
        ids = torch.tensor(tokens, device=self._ids.device).unsqueeze(1)
        return self._forward(ids, self._positions)

    def keep(self, rows: Sequence[int]) -> None:
        """Leaves the other rows out from now on, and frees what only they needed."""
        chosen = torch.tensor(rows, device=self._ids.device)
        self._ids, self._positions, self._mask = (
            self._ids[chosen],
            self._positions[chosen],
            self._mask[chosen],
        )
        self._starts = [self._starts[row] for row in rows]
        if self._cache.get_seq_length():
            self._cache.batch_select_indices(chosen)
        if not self.left:
            self._cut()

    def blocks(self, row: int, count: int, block_size: int) -> list[torch.Tensor]:
        """The first KV blocks of a row's prompt behind its cached prefix, as `BlockStore` has them.

        Only right after the prefill, while all columns are there.
        """
        if not count:
            return []
        start = self._starts[row]
        columns = slice(start, start + count * block_size)
        parts = [part[row, :, columns] for layer in self._cache.layers for part in (layer.keys, layer.values)]
        heads, _, width = parts[0].shape
        run = torch.stack(parts).view(-1, 2, heads, count * block_size, width)
        return [block.clone() for block in run.split(block_size, dim=3)]

    @property
    def shareable(self) -> bool:
        """Whether each layer keeps keys and values as they are, in one shape: then columns can be moved."""
        layers = self._cache.layers
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return False
        shapes = {part.shape[1::2] for layer in layers for part in (layer.keys, layer.values)}
        return len(shapes) == 1

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        seen = int(self._cache.get_seq_length()) + ids.shape[1]
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask[:, :seen],
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: self._cache},
            **self._keep_last,
        )
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def _put_prefixes(self, rows: Sequence[Row]) -> None:
        sample = next(row.prefix[0] for row in rows if row.prefix)
        layers, _, heads, _, width = sample.shape
        shape = (layers, 2, len(rows), heads, self._cached, width)
        run = torch.zeros(shape, dtype=sample.dtype, device=sample.device)
        for index, row in enumerate(rows):
            if row.prefix:
                run[:, :, index, :, self._cached - row.cached :] = torch.cat(list(row.prefix), dim=3)
        for number, (keys, values) in enumerate(run):
            self._cache.update(keys, values, number)

    def _cut(self) -> None:
        """Leading columns in which no row has anything."""
        lead = int(self._mask.any(dim=0).nonzero()[0])
        if lead < _WORTH_CUTTING or not self.shareable:
            return
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[:, :, lead:].clone(), layer.values[:, :, lead:].clone()
        self._mask = self._mask[:, lead:]
