"""What chat templates have a place for, tried on templates of the kinds that checkpoints have."""

import json
from types import SimpleNamespace

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import Message, TemplateOptions, ToolCall, ToolUse
from covervlm.server.models.processor import ChatProcessor
from covervlm.server.models.template import ChatTemplate
from covervlm.server.tools.prompt import definitions

_TEXT = "{% for part in m.content %}{{ part.text }}{% endfor %}"
TEMPLATES = {
    # Qwen3-VL's and Qwen2.5's
    "hermes": "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role if m.role != 'tool' else 'user' }}\n"
    "{% if m.role == 'tool' %}<tool_response>\n" + _TEXT + "\n</tool_response>{% else %}" + _TEXT + "{% endif %}"
    "{% for call in m.tool_calls or [] %}{% if not loop.first %}\n{% endif %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # Llama 3.1's
    "llama3_json": "{% for m in messages %}<|start_header_id|>"
    "{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{% if loop.first and tools %}{% for tool in tools %}{{ tool | tojson(indent=4) }}\n\n{% endfor %}{% endif %}"
    "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
    '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
    "{% else %}" + _TEXT + "{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    # Pixtral's, which refuses ids of another length
    "mistral": "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS][{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{% endfor %}]</s>{% elif m.role == 'tool' %}[TOOL_RESULTS]" + _TEXT + "[/TOOL_RESULTS]"
    "{% elif m.role == 'user' %}[INST]" + _TEXT + "[/INST]{% elif m.role == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}{% endfor %}",
    # Qwen3-Coder's
    "of another kind": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    + _TEXT
    + "{% for call in m.tool_calls or [] %}<tool_call>\n<function={{ call.function.name }}>\n"
    "{% for name, value in call.function.arguments.items() %}<parameter={{ name }}>\n{{ value }}\n</parameter>\n"
    "{% endfor %}</function>\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # Granite Vision's
    "functions without calls": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role in ('system', 'user') %}<|{{ m.role }}|>" + _TEXT + "{% endif %}{% endfor %}<|assistant|>",
    "none": "{% for m in messages %}{{ m.role }}: " + _TEXT + "\n{% endfor %}assistant:",
    "broken": "{{ raise_exception('never') }}",
}
EXPECTED = {
    "hermes": ChatTemplate(True, True, True, "hermes"),
    "llama3_json": ChatTemplate(True, True, True, "llama3_json"),
    "mistral": ChatTemplate(False, True, True, "mistral"),
    "of another kind": ChatTemplate(True, True, True, None),
    "functions without calls": ChatTemplate(True, True, False, None),
    "none": ChatTemplate(True, False, False, None),
    "broken": ChatTemplate(),
}


def turn(message):
    made = {"role": message.role, "content": [{"type": "text", "text": text} for text in message.content]}
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return made


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_has_a_place_for_is_found_out(name):
    def render(messages, functions, answers):
        texts, _ = render_jinja_template(
            conversations=[[turn(message) for message in messages]],
            tools=definitions(functions) or None,
            chat_template=TEMPLATES[name],
            add_generation_prompt=answers,
        )
        return texts[0]

    assert ChatTemplate.tried(render) == EXPECTED[name]


class ReadsArguments:
    """A processor whose template goes through a call's arguments one by one."""

    @staticmethod
    def tokenizer(text, **_):
        return SimpleNamespace(input_ids=[])

    def apply_chat_template(self, chat, *, tools, add_generation_prompt, continue_final_message, tokenize):
        texts, _ = render_jinja_template(
            conversations=[chat],
            tools=tools,
            chat_template=TEMPLATES["of another kind"],
            add_generation_prompt=add_generation_prompt,
        )
        return texts[0]


@pytest.mark.parametrize("arguments", ["[1]", "{at: top", '"top"', "null"])
def test_arguments_that_a_template_cannot_read_are_refused_by_their_place(arguments):
    chat = ChatProcessor(ReadsArguments(), {})
    calls = (ToolCall("c", "look", "{}"), ToolCall("d", "look", arguments))
    messages = [Message("user", ("Where?",)), Message("assistant", ("",), calls), Message("tool", ("7",), (), "c")]
    with pytest.raises(InvalidRequest, match="should be an object in JSON") as refused:
        chat._render(messages, TemplateOptions(), ToolUse())
    assert refused.value.param == "messages[1].tool_calls[1].function.arguments"
