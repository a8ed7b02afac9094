"""One catalog entry, ready to encode."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from tokenfleet.core.blocks import packed_hashes
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import TokenizerBundle
from tokenfleet.tokenizer.borders import Borders, find_borders
from tokenfleet.tokenizer.conversation import invalid, json_object, json_objects, messages_of
from tokenfleet.tokenizer.encoders import Encoder, open_encoder
from tokenfleet.tokenizer.least_tokens import TokenLength, token_length
from tokenfleet.tokenizer.prompt_encoder import Encoded, PromptEncoder
from tokenfleet.tokenizer.template import ChatTemplate
from tokenfleet.tokenizer.wire import write_arrays
from tokenfleet.v1 import common_pb2, tokenizer_pb2


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Safe to use from any thread."""

    spec: common_pb2.ModelSpec
    bundle: TokenizerBundle
    encoder: Encoder
    template: ChatTemplate | None
    prompts: PromptEncoder
    token_length: TokenLength = field(default=TokenLength(), kw_only=True)

    def encode(self, job: tokenizer_pb2.EncodeJob, result: tokenizer_pb2.EncodeResult) -> None:
        """Fills the result. Raises FleetError, with nothing but the job's id in the result."""
        encoded = self._encoded(job)
        count = result.token_count = len(encoded.ids)
        result.cached_tokens = encoded.known
        if not (job.count_only or 0 < job.max_tokens < count):
            write_arrays(result, encoded.ids, encoded.hashes)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Raises FleetError when an id is not in the vocabulary."""
        self._check(token_ids)
        return self.encoder.decode(token_ids, skip_special_tokens)

    def describe(self) -> tokenizer_pb2.DescribeModelResponse:
        return tokenizer_pb2.DescribeModelResponse(
            model=self.spec.name,
            vocabulary_size=self.encoder.vocabulary_size,
            context_length=self.spec.context_length or self.bundle.context_length,
            block_size=self.spec.block_size,
            eos_token_ids=self.bundle.eos_token_ids,
            bos_token_id=self.bundle.bos_token_id or 0,
            has_chat_template=self.template is not None,
            tokenizer_digest=self.bundle.digest,
        )

    def _encoded(self, job: tokenizer_pb2.EncodeJob) -> Encoded:
        match job.WhichOneof("input"):
            case "chat":
                return self.prompts.encode(self._bounded(job, self.prompt(job.chat)), job.cache_salt)
            case "text":
                text = self._bounded(job, job.text)
                return self.prompts.encode(text, job.cache_salt, job.add_special_tokens)
            case "tokens":
                ids = array("I", job.tokens.token_ids)
                self._check(ids)
                return Encoded(ids, packed_hashes(ids, self.spec.block_size, job.cache_salt))
            case _:
                raise invalid("input", "the job has neither text, chat nor tokens")

    def prompt(self, chat: tokenizer_pb2.ChatInput) -> str:
        """The conversation as the model reads it. Raises FleetError."""
        messages = messages_of(chat)
        if self.template is None:
            raise FleetError(
                common_pb2.REASON_UNSUPPORTED,
                f"the model {self.spec.name} has no chat template: use plain completions",
                field="messages",
            )
        return self.template.render(
            messages,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            tools=json_objects(chat.tools_json, "tools"),
            variables=json_object(chat.template_kwargs_json, "chat_template_kwargs"),
        )

    def _bounded(self, job: tokenizer_pb2.EncodeJob, text: str) -> str:
        """The text, unless it must have more tokens than are wanted: that is seen without encoding it."""
        least = self.token_length.least_tokens(text, job.max_tokens) if job.max_tokens else 0
        if not least:
            return text
        raise FleetError(
            common_pb2.REASON_CONTEXT_LENGTH_EXCEEDED,
            f"at most {job.max_tokens} tokens are taken, but the prompt has {least} or more: shorten it",
            field="messages" if job.HasField("chat") else "prompt",
        )

    def _check(self, token_ids: Sequence[int]) -> None:
        size = self.encoder.vocabulary_size
        if len(token_ids) and max(token_ids) >= size:
            position = next(index for index, token in enumerate(token_ids) if token >= size)
            raise invalid(
                f"token_ids[{position}]",
                f"{token_ids[position]} is not in the vocabulary of {self.spec.name} (0 to {size - 1})",
            )


def open_model(
    spec: common_pb2.ModelSpec, bundle: TokenizerBundle, backend: str, prefix_cache_bytes: int
) -> LoadedModel:
    """Reads the tokenizer and compiles the template: a few hundred milliseconds. Raises FleetError."""
    if spec.block_size < 1:
        raise invalid("block_size", f"the catalog entry {spec.name} must have at least 1 token a block")
    template = None
    if bundle.chat_template is not None:
        template = ChatTemplate(
            bundle.chat_template,
            bos_token=bundle.bos_token,
            eos_token=bundle.eos_token,
            system_prompt=spec.system_prompt,
        )
    encoder = open_encoder(bundle, backend)
    borders = _borders(bundle, encoder) if prefix_cache_bytes else Borders({})
    prompts = PromptEncoder(encoder, borders, spec.block_size, prefix_cache_bytes)
    return LoadedModel(spec, bundle, encoder, template, prompts, token_length=token_length(bundle))


def _borders(bundle: TokenizerBundle, encoder: Encoder) -> Borders:
    added = orjson.loads(bundle.tokenizer_json.read_bytes()).get("added_tokens") or []
    marks = [token for token in (bundle.bos_token, bundle.eos_token) if token]
    return find_borders(added, marks, bundle.chat_template or "", encoder)
