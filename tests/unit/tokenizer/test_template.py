"""Templates of the common families, shortened where only length would be lost."""

from typing import Any

import pytest

from tests.tiny_model import CHAT_TEMPLATE as SMOLLM2
from tokenfleet.runtime.errors import FleetError
from tokenfleet.tokenizer.template import ChatTemplate
from tokenfleet.v1 import common_pb2

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}

OWN_PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)
TURN = "<|im_start|>user\nHi<|im_end|>\n"
REPLY = "<|im_start|>assistant\n"

# Llama 3: a begin token, then headers. With a default prompt, as some of its descendants have.
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = default %}
{%- endif %}
{%- if system_message %}
    {{- '<|start_header_id|>system<|end_header_id|>\n\n' + system_message + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

DATED = """{{- bos_token }}{{- 'Today: ' + strftime_now('%Y') + '\n' }}
{%- for message in messages %}{{- '[' + message['role'] + ']' + message['content'] }}{%- endfor %}"""

# Llama 2 and Mistral: turns must alternate, the system message goes into the first one.
ALTERNATING = """{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}"""


def template(source: str, system_prompt: str = "", bos: str | None = "<|im_start|>") -> ChatTemplate:
    return ChatTemplate(source, bos_token=bos, eos_token="</s>", system_prompt=system_prompt)


def refusal(render: Any) -> FleetError:
    with pytest.raises(FleetError) as caught:
        render()
    assert isinstance(caught.value, FleetError)
    return caught.value


def test_an_empty_system_prompt_means_no_system_message() -> None:
    text = template(SMOLLM2).render([USER], add_generation_prompt=True)
    assert text == TURN + REPLY


def test_the_catalogs_system_prompt_is_the_default() -> None:
    smollm2 = template(SMOLLM2, system_prompt="Be kind.")
    assert smollm2.render([USER]) == "<|im_start|>system\nBe kind.<|im_end|>\n" + TURN
    assert smollm2.render([SYSTEM, USER]) == "<|im_start|>system\nBe brief.<|im_end|>\n" + TURN


@pytest.mark.parametrize("system_prompt", ["", "Be kind."])
def test_a_conversations_own_system_message_stays(system_prompt: str) -> None:
    smollm2 = template(SMOLLM2, system_prompt)
    assert smollm2.render([SYSTEM, USER]) == "<|im_start|>system\nBe brief.<|im_end|>\n" + TURN
    empty = {"role": "system", "content": ""}
    assert smollm2.render([empty, USER]) == "<|im_start|>system\n<|im_end|>\n" + TURN


def test_the_template_itself_would_insert_a_prompt() -> None:
    """What the tests above rely on."""
    raw = template(SMOLLM2)._rendered([USER], False, None, {})
    assert raw == OWN_PROMPT + TURN


def test_the_begin_token_stays_when_a_default_prompt_goes() -> None:
    llama3 = LLAMA3.replace("= default", "= 'You are helpful.'")
    body = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    assert template(llama3, bos="<bos>").render([USER]) == "<bos>" + body
    with_system = template(llama3, bos="<bos>").render([SYSTEM, USER])
    assert with_system.startswith("<bos><|start_header_id|>system<|end_header_id|>\n\nBe brief.")


def test_a_template_without_a_prompt_of_its_own_is_left_alone() -> None:
    llama3 = LLAMA3.replace("= default", "= ''")
    body = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    assert template(llama3, bos="<bos>").render([USER]) == "<bos>" + body
    assert template(ALTERNATING, bos="<s>").render([USER]) == "<s>[INST] Hi [/INST]"


def test_white_space_at_the_beginning_is_no_prompt() -> None:
    spaced = "{{ bos_token }}\n\n{% for m in messages %}{{ m.role + ': ' + m.content + ';' }}{% endfor %}"
    assert template(spaced, bos="<s>").render([USER]) == "<s>\n\nuser: Hi;"


def test_a_date_is_information_and_stays() -> None:
    assert "Today: 20" in template(DATED, bos="<bos>").render([USER])


def test_a_prompt_about_tools_stays() -> None:
    source = SMOLLM2.replace("helpful AI assistant", "{{ tools }}").replace("'<|im_start|>system", "'SYSTEM")
    tool = {"type": "function", "function": {"name": "f"}}
    assert template(source).render([USER], tools=[tool]).startswith("SYSTEM")
    assert template(source).render([USER]) == TURN


def test_alternation_is_the_templates_rule_and_its_words_reach_the_caller() -> None:
    error = refusal(lambda: template(ALTERNATING, bos="<s>").render([USER, USER]))
    assert error.reason == common_pb2.REASON_INVALID_ARGUMENT
    assert error.field == "messages"
    assert "must alternate" in error.message


def test_a_default_prompt_goes_into_alternating_templates_only_if_they_take_it() -> None:
    error = refusal(lambda: template(ALTERNATING, "Be kind.", bos="<s>").render([USER]))
    assert "must alternate" in error.message


def test_developer_is_system_where_the_template_does_not_know_it() -> None:
    developer = {"role": "developer", "content": "Be brief."}
    assert template(SMOLLM2).render([developer, USER]).startswith("<|im_start|>system\nBe brief.")
    knowing = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}{# developer #}"
    assert template(knowing).render([developer]) == "developer=Be brief.;"


def test_the_final_message_can_be_continued() -> None:
    smollm2 = template(SMOLLM2)
    begun = {"role": "assistant", "content": "Hello, my "}
    text = smollm2.render([USER, begun], continue_final_message=True)
    assert text == TURN + REPLY + "Hello, my "
    trimming = SMOLLM2.replace("message['content']", "message['content'] | trim")
    text = template(trimming).render([USER, begun], continue_final_message=True)
    assert text == TURN + REPLY + "Hello, my"


def test_continuing_excludes_a_new_answer() -> None:
    render = template(SMOLLM2).render
    error = refusal(lambda: render([USER], add_generation_prompt=True, continue_final_message=True))
    assert error.field == "continue_final_message"


def test_a_message_that_the_template_changes_cannot_be_continued() -> None:
    shouting = template("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    error = refusal(lambda: shouting.render([USER, ASSISTANT], continue_final_message=True))
    assert error.reason == common_pb2.REASON_UNSUPPORTED


def test_variables_reach_the_template_but_do_not_replace_the_conversation() -> None:
    thinking = template("{{ messages[0].content }}{% if enable_thinking %} think{% endif %}")
    assert thinking.render([USER], variables={"enable_thinking": True}) == "Hi think"
    error = refusal(lambda: thinking.render([USER], variables={"messages": []}))
    assert error.field == "chat_template_kwargs"


def test_the_dialect_is_hugging_faces() -> None:
    source = """{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% generation %}{{ {'b': '<é>', 'a': message.content} | tojson }}{% endgeneration %}
{% endfor %}
{{ eos_token }}{{ undefined_name }}"""
    assert template(source).render([SYSTEM, USER]) == '{"b": "<é>", "a": "Hi"}</s>'


def test_blocks_leave_no_lines_of_their_own() -> None:
    source = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\nend"
    assert template(source).render([USER]) == "Hi\nend"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for m in messages %}{{ m.__class__.__mro__ }}{{ loop.__init__.__globals__ }}{% endfor %}",
        "{% for m in messages %}{{ m.update({}) }}{% endfor %}",
        "{% for i in range(1000000000) %}x{% endfor %}",
    ],
)
def test_a_template_stays_in_its_sandbox(attack: str) -> None:
    error = refusal(lambda: template("{{ messages[0].content }}" + attack).render([USER]))
    assert error.field == "messages"


def test_a_template_that_trips_over_the_conversation_is_a_clear_error() -> None:
    error = refusal(lambda: template("{{ messages[0].tool_calls[0].name + 1 }}").render([USER]))
    assert "chat template refuses" in error.message


def test_a_template_that_does_not_compile_is_the_models_fault() -> None:
    error = refusal(lambda: template("{% if %}"))
    assert error.reason == common_pb2.REASON_LOAD_FAILED
    assert "line 1" in error.message
