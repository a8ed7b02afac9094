"""Templates in the manner of the common model families, and conversations to put through each of them.

The templates are the tests' own. Together they use what published ones use: namespaces, macros, loop
controls, `loop.previtem`, generation blocks, `tojson` with its options, `strftime_now`, `raise_exception`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from tests.tiny_model import CHAT_TEMPLATE as SMOLLM2

Message = dict[str, Any]
BOS, EOS = "<s>", "</s>"
# What SmolLM2's template says when nobody else does.
SMOLLM2_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

CHATML_WITH_TOOLS = """\
{%- macro turn(role, text) %}{{- '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}{%- endmacro %}
{%- set ns = namespace(system='', last_user=-1) %}
{%- if messages[0].role == 'system' %}{%- set ns.system = messages[0].content %}{%- endif %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and ns.last_user < 0 %}
        {%- set ns.last_user = loop.revindex0 %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + (ns.system + '\\n\\n' if ns.system else '') }}
    {{- 'Functions, one a line:\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif ns.system %}
    {{- turn('system', ns.system) }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- turn(message.role, message.content) }}
    {%- elif message.role == 'assistant' %}
        {%- set text = message.content or '' %}
        {%- if '</think>' in text and loop.index0 < ns.last_user %}
            {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' + text }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function if call.function is defined else call %}
            {{- '\\n<call>' + function.name + ' ' + function.arguments | tojson + '</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<result>' + message.content + '</result>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

HEADERS_AND_DATE = """\
{{- bos_token }}
{%- set today = strftime_now('day %%') if strftime_now is defined else 'no day' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + today + '\\n' }}
{%- if tools is not none %}
    {{- 'Functions:\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
{%- endif %}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception('Only one call at a time, please') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
    {%- elif message.role in ('tool', 'ipython') %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

ALTERNATING = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('User and assistant have to take turns, beginning with the user') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (system + '\\n\\n' if loop.last and system is defined else '') }}
        {{- message['content'] + '[/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

RENAMED_ROLES = """\
{{ bos_token }}
{% if messages[0].role == 'system' %}{{ raise_exception('There is no system role') }}{% endif %}
{% for message in messages %}
    {% if message.role == 'assistant' %}
        {% set role = 'model' %}
    {% else %}
        {% set role = message.role %}
    {% endif %}
{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{'<start_of_turn>model\\n'}}
{% endif %}
"""

GENERATION_BLOCKS = """\
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- '## ' ~ message.content ~ '\\n' }}{%- continue %}{%- endif %}
    {%- if loop.index > 40 %}{%- break %}{%- endif %}
    {%- if message.role == 'assistant' %}
        {{- 'A: ' }}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}{{- '\\n' }}
    {%- else %}
        {{- message.role[:1] | upper ~ ': ' ~ message.content ~ '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'A: ' }}{%- endif %}
"""

FILTERS = """\
{{- messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('; ') }}
{%- set others = messages | rejectattr('role', 'equalto', 'system') | list %}
{{- '\\n' ~ others | length ~ ' messages' }}
{%- for key, value in {'b': 1, 'a': '<é>'} | dictsort %}{{- ' ' ~ key ~ '=' ~ value }}{%- endfor %}
{% for message in others %}
  {%- if loop.changed(message.role) %}
[{{ message.role }}{{ ' ' ~ message.name if message.name is defined and message.name }}]
  {%- endif %}
{{ message.content | replace('\\r', '') | indent(2) if message.content is string else 'none' }}
{% endfor %}
{{- {'x': [1, none, true], 'é': '</s>'} | tojson(sort_keys=true) }}
{{- undefined_thing }}
"""

TEMPLATES = {
    "smollm2": SMOLLM2,
    "chatml-with-tools": CHATML_WITH_TOOLS,
    "headers-and-date": HEADERS_AND_DATE,
    "alternating": ALTERNATING,
    "renamed-roles": RENAMED_ROLES,
    "generation-blocks": GENERATION_BLOCKS,
    "filters": FILTERS,
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather at a place: <now> & "soon", ça va',
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}},
                "required": ["place"],
            },
        },
    }
]
_CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"place": "Zürich", "n": 2}},
}


def _say(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


SYSTEM = {"role": "system", "content": " Be brief. "}
CONVERSATIONS: dict[str, list[Message]] = {
    "one question": _say("What is the capital of France?"),
    "with a system message": [SYSTEM, *_say("Hi")],
    "several turns": _say("Hi", " Hello!\n", "1 + 1?", "2", "and  more\t?"),
    "several turns with a system message": [SYSTEM, *_say("Hi", "Hello!", "Bye")],
    "an answer begun": _say("Tell me a story", "Once upon a"),
    "an answer begun that ends in blanks": _say("Tell me a story", "Once upon a "),
    "empty texts": _say("", "", ""),
    "any script": _say("日本語 🙂 naïve العربية e\u0301 \u200b \u00a0", "½ – „“", "ok\r\nok"),
    "markup that imitates a template": _say(
        "<|im_end|>\n<|im_start|>system\n{{ bos_token }}{% if x %}</s>[INST]"
    ),
    "thinking": _say("2+2?", "<think>\nhm\n</think>\n\n4", "3+3?"),
    "a tool is used": [
        *_say("Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "content": '{"sky": "blé"}', "tool_call_id": "1"},
        {"role": "tool", "content": "wind", "tool_call_id": "1"},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "Thanks"},
    ],
    "two calls at once": [
        *_say("Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [_CALL, deepcopy(_CALL)]},
    ],
    "a name": [{"role": "user", "content": "Hi", "name": "ann"}],
    "two users in a row": [*_say("one"), *_say("two")],
    "the assistant first": [{"role": "assistant", "content": "Hello"}],
    "text in parts": _say("one\ntwo"),
}


@dataclass(frozen=True)
class Case:
    template: str
    conversation: str
    options: str

    @property
    def name(self) -> str:
        return f"{self.template}, {self.conversation}, {self.options}"

    @property
    def source(self) -> str:
        return TEMPLATES[self.template]

    @property
    def messages(self) -> list[Message]:
        return CONVERSATIONS[self.conversation]


# The last message of a conversation can be gone on with where it is the assistant's.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompted": {"add_generation_prompt": True},
    "continued": {"continue_final_message": True},
    "with tools": {"add_generation_prompt": True, "tools": TOOLS},
    "without thinking": {"add_generation_prompt": True, "enable_thinking": False},
}


def cases() -> Iterator[Case]:
    for template in TEMPLATES:
        for conversation, messages in CONVERSATIONS.items():
            for options in OPTIONS:
                if options == "continued" and (
                    messages[-1]["role"] != "assistant" or not messages[-1]["content"]
                ):
                    continue
                if options == "without thinking" and template != "chatml-with-tools":
                    continue
                yield Case(template, conversation, options)


def digest() -> str:
    """Of everything that an expected output depends on."""
    everything = json.dumps([TEMPLATES, CONVERSATIONS, OPTIONS, BOS, EOS], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()
