"""The ids of prompts seen before, found by their text: a radix tree whose edges end at borders.

A turn of a conversation begins with all turns before it, and conversations begin with the same instructions.
Text is compared as it is, never by a hash, so a hit is certain. A conversation that only grows is one node,
which grows with it; where another one leaves its path, at whatever turn, the node is split at the last border
that both have. Each node carries the hashes of the blocks that end in it, too: they go on from there.

The memory has a limit. What was not used for the longest time goes first; since every use of a node counts as
one of its ancestors as well, that is always a leaf. Prompts of different cache salts share nothing, the tree
included: how long an answer takes would tell one tenant what another one asked.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenfleet.tokenizer.borders import Borders, Cut

# What a node takes beside its contents: the object, its arrays' heads, its places in two dictionaries.
NODE_BYTES = 700
# In characters; a text beyond is encoded afresh, since looking for its borders would hold everybody up.
LONGEST_TEXT = 1 << 20


@dataclass(slots=True, eq=False)
class _Node:
    """A stretch of text that ends right behind a border."""

    parent: _Node | None
    key: str  # up to the first border: what tells it from its siblings; a root's is its salt
    text: str = ""
    border: str = ""
    start: int = 0  # tokens before it
    ids: array[int] = field(default_factory=lambda: array("I"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))  # of the blocks that end in it
    children: dict[str, _Node] = field(default_factory=dict)
    size: int = 0  # bytes, as counted

    @property
    def end(self) -> int:
        return self.start + len(self.ids)

    def measure(self) -> int:
        """Counts it anew and answers by how much it grew."""
        before = self.size
        texts = sys.getsizeof(self.text) + sys.getsizeof(self.key)
        self.size = NODE_BYTES + texts + 4 * len(self.ids) + 8 * len(self.hashes)
        return self.size - before


@dataclass(slots=True)
class Prefix:
    """The longest part of a text that is known. It ends behind a border, or is empty."""

    characters: int
    border: str
    ids: array[int]
    hashes: array[int]
    # Where it ends in the tree, for as long as that is of this version.
    node: _Node | None = None
    version: int = -1


class PrefixCache:
    """Safe to use from any thread."""

    def __init__(self, borders: Borders, block_size: int, max_bytes: int) -> None:
        self.borders = borders
        self._block_size = block_size
        self._max_bytes = max_bytes
        self._roots: dict[str, _Node] = {}
        self._by_use: OrderedDict[_Node, None] = OrderedDict()
        self._lock = threading.Lock()
        self._version = 0  # grows with every change
        self.bytes = 0

    def find(self, text: str, salt: str) -> Prefix:
        """What is known of the text's beginning."""
        with self._lock:
            path, characters = self._descend(text, salt)
            if not path:
                return Prefix(0, "", array("I"), array("Q"), None, self._version)
            ids, hashes = array("I"), array("Q")
            for node in path:
                ids += node.ids
                hashes += node.hashes
            self._evict()  # a split may have taken memory
            last, version = path[-1], self._version
        return Prefix(characters, last.border, ids, hashes, last, version)

    def add(
        self, prefix: Prefix, text: str, cut: Cut, ids: array[int], hashes: array[int], salt: str
    ) -> None:
        """Keeps the ids of the text up to the cut, of which the prefix was known.

        `hashes` may go on beyond the cut.
        """
        if cut.position > LONGEST_TEXT:
            return
        with self._lock:
            last, known = prefix.node, prefix.characters
            if prefix.version != self._version:  # another thread was here
                path, known = self._descend(text[: cut.position], salt)
                last = path[-1] if path else None
            if known < cut.position:
                if last is None:
                    last = self._roots.setdefault(salt, _Node(None, salt))
                self._extend(last, text[known : cut.position], cut.border, ids, hashes)
            self._evict()

    def _extend(self, last: _Node, text: str, border: str, ids: array[int], hashes: array[int]) -> None:
        """Hangs the text, of which `ids` are the last, on the node, or adds it to a node that was a leaf."""
        start, size = last.end, self._block_size
        fresh = hashes[start // size : len(ids) // size]
        if last.children or last.parent is None:
            key = text[: self.borders.first(text, 0)]
            if not key or key in last.children:
                return  # too little to be found again, or what is there cannot be split
            node = _Node(last, key, text, border, start, ids[start:], fresh)
            last.children[key] = node
            self._by_use[node] = None
        else:
            node = last
            node.text += text
            node.border = border
            node.ids += ids[start:]
            node.hashes += fresh
        self._version += 1
        self._use(node)
        self.bytes += node.measure()

    def _descend(self, text: str, salt: str) -> tuple[list[_Node], int]:
        """The nodes whose texts the text begins with, and where they end in it."""
        node, position = self._roots.get(salt), 0
        path: list[_Node] = []
        while node is not None and node.children and (end := self.borders.first(text, position)):
            child = node.children.get(text[position:end])
            if child is None:
                break
            if not text.startswith(child.text, position):
                split = self._split(child, text, position)
                if split is None:
                    break
                child = split
            path.append(child)
            position += len(child.text)
            node = child
        if path:
            self._use(path[-1])
        return path, position

    def _split(self, node: _Node, text: str, position: int) -> _Node | None:
        """Parts the node at the last border up to which the text goes along; answers the upper part."""
        cuts = self.borders.all(node.text)
        shared = _shared_cuts(node.text, cuts, text, position)
        # every border in the text has its id: with as many ids as borders none came about in another way
        known = set(self.borders.ids.values())
        places = [index for index, token in enumerate(node.ids) if token in known]
        if not shared or len(places) != len(cuts):
            return None
        cut, tokens = cuts[shared - 1], places[shared - 1] + 1
        lower_end = self.borders.first(node.text, cut.position)
        if not lower_end:
            return None
        size = self._block_size
        blocks = (node.start + tokens) // size - node.start // size
        head = node.text[: cut.position]
        ids, hashes = node.ids[:tokens], node.hashes[:blocks]
        upper = _Node(node.parent, node.key, head, cut.border, node.start, ids, hashes)
        assert node.parent is not None
        node.parent.children[node.key] = upper
        node.parent, node.key = upper, node.text[cut.position : lower_end]
        node.text, node.start = node.text[cut.position :], node.start + tokens
        node.ids, node.hashes = node.ids[tokens:], node.hashes[blocks:]
        upper.children[node.key] = node
        self._by_use[upper] = None
        self._version += 1
        self.bytes += node.measure() + upper.measure()
        return upper

    def _use(self, node: _Node) -> None:
        """From the node upwards, so that none is older than what hangs on it."""
        above: _Node | None = node
        while above is not None and above.parent is not None:
            self._by_use.move_to_end(above)
            above = above.parent

    def _evict(self) -> None:
        while self.bytes > self._max_bytes:
            self._version += 1
            oldest, _ = self._by_use.popitem(last=False)
            self.bytes -= oldest.size
            above = oldest.parent
            assert above is not None
            del above.children[oldest.key]
            if above.parent is None and not above.children:
                del self._roots[above.key]


def _shared_cuts(known: str, cuts: Sequence[Cut], text: str, position: int) -> int:
    """How many of the cuts lie in the part that both texts share."""
    low, high = 0, len(cuts)
    while low < high:
        middle = (low + high + 1) // 2
        if text.startswith(known[: cuts[middle - 1].position], position):
            low = middle
        else:
            high = middle - 1
    return low
