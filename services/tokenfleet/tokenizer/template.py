"""Chat templates, rendered as Hugging Face's `apply_chat_template` renders them, in a sandbox.

A template comes with a model, so it is somebody else's program: it runs in Jinja's immutable sandbox.

**The system prompt.** Many templates insert a system message of their own when the conversation has none.
Here the catalog decides: a non-empty `system_prompt` is inserted, and an empty one means *no* system message
at all. Templates have no switch for that, so the text that a template puts before a first user message is
found once, when it is loaded, by comparing that message's rendering at the beginning of a conversation with
its rendering later on; it is then cut off from conversations without a system message. Two things stay as the
template wants them: what holds a date (it is information, no prompt), and everything when tools are given
(they are described there).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models.bundle import load_failed
from tokenfleet.tokenizer.conversation import Message, invalid
from tokenfleet.v1 import common_pb2

_PROBE_USER: Message = {"role": "user", "content": "probe"}
_PROBE_ASSISTANT: Message = {"role": "assistant", "content": "answer"}
_SYSTEM_ROLES = ("system", "developer")
_OURS = frozenset(("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"))
_OF_DICTIONARIES = frozenset(dir(dict))
_OF_LOOPS = frozenset(("first", "last", "index", "index0", "revindex", "revindex0", "length"))
# What a template's own expressions may raise on a conversation that it was not written for.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """One model's template with the model's special tokens and the catalog's default system prompt."""

    def __init__(
        self, source: str, *, bos_token: str | None, eos_token: str | None, system_prompt: str
    ) -> None:
        self._dated = False
        try:
            self._template = self._environment().from_string(source)
            # a chain of dictionaries otherwise, which every rendering walks through: a third of its time
            self._globals = dict(self._template.globals)
        except jinja2.TemplateSyntaxError as error:
            raise load_failed(f"the chat template does not compile: line {error.lineno}: {error}") from error
        special = {"bos_token": bos_token, "eos_token": eos_token}
        self._special_tokens = {name: token for name, token in special.items() if token is not None}
        self._bos = bos_token or ""
        self._system_prompt = system_prompt
        self._knows_developer = "developer" in source
        self._own_prompt, self._kept = ("", "") if system_prompt else self._inserted_prompt()

    def render(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] = (),
        variables: dict[str, Any] | None = None,
    ) -> str:
        """The prompt's text. Raises FleetError when the template refuses the conversation."""
        if continue_final_message and add_generation_prompt:
            raise invalid("continue_final_message", "it excludes add_generation_prompt")
        if variables and (taken := _OURS.intersection(variables)):
            raise invalid("chat_template_kwargs", f"{', '.join(sorted(taken))} cannot be set")
        if not self._knows_developer and "developer" in [message["role"] for message in messages]:
            messages = [_as_system(message) for message in messages]
        if self._system_prompt and not any(message["role"] in _SYSTEM_ROLES for message in messages):
            messages = [{"role": "system", "content": self._system_prompt}, *messages]
        try:
            text = self._rendered(messages, add_generation_prompt, list(tools) or None, variables or {})
        except _TEMPLATE_ERRORS as error:
            raise invalid(
                "messages", f"the model's chat template refuses the conversation: {error}"
            ) from error
        if self._own_prompt and not tools and messages[0]["role"] not in _SYSTEM_ROLES:
            text = self._without_own_prompt(text)
        return _cut_after(text, messages[-1]["content"]) if continue_final_message else text

    def _rendered(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
    ) -> str:
        names = {
            **self._globals,
            **self._special_tokens,
            **variables,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        # `render` would copy the names twice, list the globals for templates that import this one, and
        # rewrite the traceback of an error that is only quoted
        template = self._template
        context = Context(template.environment, names, template.name, template.blocks)
        return "".join(template.root_render_func(context))

    def _without_own_prompt(self, text: str) -> str:
        if not text.startswith(self._own_prompt):
            return text  # the variables given changed it
        return self._kept + text[len(self._own_prompt) :]

    def _inserted_prompt(self) -> tuple[str, str]:
        """What the template puts before a first user message, and what of it is no prompt; "" if none is."""
        try:
            alone = self._rendered([_PROBE_USER], False, None, {})
            turn = self._rendered([_PROBE_USER, _PROBE_ASSISTANT], False, None, {})
            turns = self._rendered([_PROBE_USER, _PROBE_ASSISTANT, _PROBE_USER], False, None, {})
        except _TEMPLATE_ERRORS:
            return "", ""  # such a template has rules of its own about conversations
        later = turns.removeprefix(turn)
        inserted = alone.removesuffix(later)
        if self._dated or later == turns or inserted == alone:
            return "", ""
        # the begin token stays, unless it is merely what every message begins with
        begins = self._bos and inserted.startswith(self._bos) and not later.startswith(self._bos)
        kept = self._bos if begins else ""
        # white space about it is the template's layout, and no prompt
        return ("", "") if inserted.strip() == kept.strip() else (inserted, kept)

    def _environment(self) -> _Sandbox:
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = self._strftime_now
        return environment

    def _strftime_now(self, layout: str) -> str:
        self._dated = True
        return datetime.now().strftime(layout)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, with a short way for what templates do in every turn: half of the time it takes to render."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`message.role` and `loop.first`: neither is anything that the sandbox would hide."""
        if type(obj) is dict:
            if attribute in obj and attribute not in _OF_DICTIONARIES:
                return obj[attribute]
        elif type(obj) is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


class _GenerationBlock(Extension):
    """`{% generation %}` marks what a model said, for training; here it stands for its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _as_system(message: Message) -> Message:
    """OpenAI's newer name for the system role, for templates that don't know it."""
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _cut_after(text: str, final: str) -> str:
    """The prompt up to the end of the last message, which the model then goes on with."""
    core = final.strip()
    position = text.rfind(core)
    if position < 0:
        raise FleetError(
            common_pb2.REASON_UNSUPPORTED,
            "continue_final_message: the model's chat template changes the last message",
            field="continue_final_message",
        )
    spaced = final.lstrip()
    return text[: position + len(spaced if text.startswith(spaced, position) else core)]
