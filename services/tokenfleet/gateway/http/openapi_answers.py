"""What the gateway answers, as types: the response half of `/openapi.json`.

Nothing here is on the way of a request, whose bytes are laid down by hand for speed. So that these shapes
cannot drift from those bytes, each is closed (a field that is not named here is a violation), and the tests'
HTTP and WebSocket clients hold every answer they get against the document.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

CLOSED: Any = with_config(extra="forbid")

Finish = Literal["stop", "length"]


@CLOSED
class ErrorDetail(TypedDict):
    message: str  # for people: what is wrong and what to do about it
    type: Literal[
        "authentication_error",
        "invalid_request_error",
        "permission_error",
        "rate_limit_error",
        "server_error",
        "service_unavailable_error",
        "timeout_error",
    ]
    param: str | None
    code: str
    missing_bytes: NotRequired[int]


@CLOSED
class Error(TypedDict):
    """OpenAI's error object: `message` is for people, `code` for programs, `param` the field at fault.

    With `out_of_memory`, `missing_bytes` is how much more memory the roomiest worker would need for it.
    """

    error: ErrorDetail


@CLOSED
class PromptTokensDetails(TypedDict):
    cached_tokens: int


@CLOSED
class Usage(TypedDict):
    """In tokens. Each prompt counts once, each answer in full, however many workers it took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


@CLOSED
class TokenLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


@CLOSED
class TokenLogprobs(TokenLogprob):
    top_logprobs: list[TokenLogprob]


@CLOSED
class ChatLogprobs(TypedDict):
    content: list[TokenLogprobs]
    refusal: None


@CLOSED
class CompletionLogprobs(TypedDict):
    """Parallel lists, one entry a token; `text_offset` counts characters from the answer's start."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


@CLOSED
class Attempt(TypedDict):
    worker_id: str
    from_token: int


@CLOSED
class Fallback(TypedDict):
    """Why not the model that was asked for."""

    requested: str
    reason: str


@CLOSED
class Provenance(TypedDict):
    """Where another model answered, why; where token ids were asked for, for each answer the workers that it
    came from, in order, and from which token on."""

    attempts: NotRequired[list[list[Attempt]]]
    fallback: NotRequired[Fallback]


@CLOSED
class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str


@CLOSED
class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    token_ids: NotRequired[list[int]]


@CLOSED
class ChatCompletion(TypedDict):
    """Fields about token ids and workers are there for requests with `return_token_ids`. `model` answered."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: NotRequired[list[int]]
    tokenfleet: NotRequired[Provenance]


@CLOSED
class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish
    token_ids: NotRequired[list[int]]


@CLOSED
class Completion(TypedDict):
    """Fields about token ids and workers are there for requests with `return_token_ids`. `model` answered."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    prompt_token_ids: NotRequired[list[int]]
    tokenfleet: NotRequired[Provenance]


@CLOSED
class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


@CLOSED
class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    token_ids: NotRequired[list[int]]


@CLOSED
class ChatCompletionChunk(TypedDict):
    """One event. With `stream_options.include_usage` the last one before `[DONE]` has the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    prompt_token_ids: NotRequired[list[int]]
    tokenfleet: NotRequired[Provenance]


@CLOSED
class TextChunkChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None
    token_ids: NotRequired[list[int]]


@CLOSED
class CompletionChunk(TypedDict):
    """One event. With `stream_options.include_usage` the last one before `[DONE]` has the usage."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: NotRequired[Usage | None]
    prompt_token_ids: NotRequired[list[int]]
    tokenfleet: NotRequired[Provenance]


@CLOSED
class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["tokenfleet"]
    max_model_len: int


@CLOSED
class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


@CLOSED
class Tokens(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]


@CLOSED
class Text(TypedDict):
    prompt: str


@CLOSED
class Liveness(TypedDict):
    status: Literal["live"]


@CLOSED
class Readiness(TypedDict):
    """Part by part, what a request needs."""

    status: Literal["ready", "not ready"]
    accepting: bool
    catalog: bool
    tokenizers: bool
    router: bool


@CLOSED
class LoadProgress(TypedDict):
    """Bytes are 0 where they mean nothing; `stage` ends with ready."""

    model: str
    stage: Literal[
        "unspecified", "queued", "fetching", "verifying", "starting_engine", "warming_up", "ready", "failed"
    ]
    bytes_done: int
    bytes_total: int
    eta_s: float | None  # null: not known
    worker_id: str


@CLOSED
class Failure(TypedDict):
    reason: str  # stable
    message: str
    retry_after_s: float


@CLOSED
class Place(TypedDict):
    worker_id: str
    worker: str
    zone: str
    state: Literal["loading", "ready", "unloading", "asleep", "failed"]
    memory_bytes: int
    running: int  # sequences


@CLOSED
class ManagedModel(TypedDict):
    """`wants_memory_bytes` is not 0 while it is wanted and no worker has that much for it."""

    name: str
    source: str
    context_length: int
    policy: Literal["unspecified", "warm", "lazy"]
    engines: list[str]
    fallback: str
    added: bool  # not by the catalog file
    pinned: bool
    places: list[Place]
    loading: LoadProgress | None
    quarantine: Failure | None  # why it is not tried again yet
    last_used_unix_s: float | None
    loads: int
    failures: int
    last_load_s: float | None
    wants_memory_bytes: int


@CLOSED
class WorkerMemory(TypedDict):
    worker_id: str
    worker: str
    zone: str
    engines: list[str]
    budget_bytes: int  # 0: not known
    taken_bytes: int


@CLOSED
class ManagedModels(TypedDict):
    models: list[ManagedModel]
    workers: list[WorkerMemory]


@CLOSED
class Unloaded(TypedDict):
    worker_id: str
    done: bool
    freed_bytes: int
    failure: Failure | None


@CLOSED
class UnloadResult(TypedDict):
    """What became of it on each worker that held it."""

    model: str
    workers: list[Unloaded]


@CLOSED
class Pinned(TypedDict):
    model: str
    pinned: bool


@CLOSED
class Added(TypedDict):
    model: str
    source: str


@CLOSED
class Removed(TypedDict):
    model: str
    removed: Literal[True]


@CLOSED
class SocketCancel(TypedDict):
    """Ends a request that is running on this socket; one that has ended just now is no error."""

    type: Literal["cancel"]
    request_id: str


@CLOSED
class SocketLoading(TypedDict):
    """The model is being loaded. Bytes are 0 where they are not known."""

    type: Literal["loading"]
    request_id: str
    model: str
    stage: str
    bytes_done: int
    bytes_total: int
    eta_s: float | None  # null: not known


@CLOSED
class SocketFallback(TypedDict):
    """The requested model cannot be had, and why; `model` answers."""

    type: Literal["fallback"]
    request_id: str
    model: str
    requested: str
    reason: str


@CLOSED
class SocketDelta(TypedDict):
    type: Literal["delta"]
    request_id: str
    index: int
    text: str
    token_ids: NotRequired[list[int]]
    logprobs: NotRequired[ChatLogprobs | CompletionLogprobs | None]


@CLOSED
class SocketFinish(TypedDict):
    """The end of an answer; the request's last one has the usage."""

    type: Literal["finish"]
    request_id: str
    index: int
    finish_reason: Finish
    usage: NotRequired[Usage]
    prompt_token_ids: NotRequired[list[int]]
    tokenfleet: NotRequired[Provenance]


@CLOSED
class SocketError(TypedDict):
    """The end of a request, or about a message that started none: then `request_id` is null."""

    type: Literal["error"]
    request_id: str | None
    error: ErrorDetail
    retry_after_s: NotRequired[float]


SocketAnswer = SocketLoading | SocketFallback | SocketDelta | SocketFinish | SocketError
