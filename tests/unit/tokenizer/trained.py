"""Small tokenizers of every common kind, trained on the spot: each splits and normalizes in its own way."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokenfleet.runtime.models import TokenizerBundle

START, END, TOOL = "<|im_start|>", "<|im_end|>", "[TOOL]"
# Beside the plain ones: tokens that share text with others, or look at their neighbours.
AWKWARD = ("<|im_end|>!", "<|im", "<pad>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}{# [TOOL] #}"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = [
    "user assistant system\n hello world, it's 12345 naïve cafés 日本語 🙂  two  blanks\n\n\tand tabs",
    "the quick brown fox jumps over the lazy dog; don't we'll they've ① ½ !!! ==> [TOOL] <|im_ im_end|>",
] * 5


def byte_level() -> Tokenizer:
    return _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))


def byte_level_digits() -> Tokenizer:
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return _bpe(pre_tokenizers.Sequence(split))


def byte_level_llama3() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _bpe(pre_tokenizers.Sequence([split, byte_level]))


def byte_level_prefix_space() -> Tokenizer:
    return _bpe(pre_tokenizers.ByteLevel(add_prefix_space=True))


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _train(
        tokenizer, trainers.WordPieceTrainer(show_progress=False, vocab_size=200, special_tokens=["[UNK]"])
    )


def unigram() -> Tokenizer:
    """As SentencePiece makes them: a blank is put before the very beginning, and before nothing else.

    Its pieces hold the special tokens, too, so that normalized text may come out as one of them.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", START, END, TOOL]
    trainer = trainers.UnigramTrainer(
        show_progress=False, vocab_size=150, unk_token="<unk>", special_tokens=special
    )
    return _train(tokenizer, trainer)


def prepending() -> Tokenizer:
    """As Llama 2's: a blank is put before every stretch between added tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _train(
        tokenizer, trainers.BpeTrainer(show_progress=False, vocab_size=200, special_tokens=["<unk>"])
    )


KINDS: dict[str, Callable[[], Tokenizer]] = {
    kind.__name__: kind
    for kind in (
        byte_level,
        byte_level_digits,
        byte_level_llama3,
        byte_level_prefix_space,
        wordpiece,
        unigram,
        prepending,
    )
}


@lru_cache
def _content(kind: str, awkward: bool) -> str:
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (START, END, TOOL)])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    if awkward:
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in AWKWARD])
    return str(tokenizer.to_str())


def bundle(kind: str, folder: Path, *, awkward: bool = False) -> TokenizerBundle:
    path = folder / f"{kind}-{awkward}.json"
    path.write_text(_content(kind, awkward), encoding="utf-8")
    return TokenizerBundle(path, TEMPLATE, START, END, None, (), "", 0)


def _bpe(split: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _train(
        tokenizer, trainers.BpeTrainer(show_progress=False, vocab_size=400, initial_alphabet=alphabet)
    )


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer
