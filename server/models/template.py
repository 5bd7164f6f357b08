"""What a checkpoint's chat template has a place for, found out by trying it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from covervlm.server.core.answer import CallBegins
from covervlm.server.core.generation import Function, Message, ToolCall
from covervlm.server.tools.formats import FORMATS
from covervlm.server.tools.reader import CallReader

_CALL = ToolCall("a1b2c3d4e", "look_at_it", '{"where": "corner"}')
_FUNCTION = Function("measure_it", "Measures.", {"type": "object", "properties": {"side": {"type": "string"}}})
_USER, _RESULT = Message("user", ("Is it so?",)), Message("tool", ("As found.",), tool_call_id=_CALL.id)
_CALLING = Message("assistant", ("",), (_CALL,))
_SYSTEM = Message("system", ("Be brief.",))

Render = Callable[[Sequence[Message], Sequence[Function], bool], str]
"""Messages and functions to a prompt, which ends where an answer begins if the last argument says so."""


@dataclass(frozen=True)
class ChatTemplate:
    """What the template has a place for: a system's message, functions, and calls with their results.

    tool_format: the form in which it writes calls; None where there are no functions or the form is not known.
    """

    system: bool = False
    functions: bool = False
    calls: bool = False
    tool_format: str | None = None

    @classmethod
    def tried(cls, render: Render) -> "ChatTemplate":
        """Found out by rendering; `render` may raise anything where the template has no place for something."""

        def shows(messages: Sequence[Message], *said: str, functions: Sequence[Function] = ()) -> bool:
            try:
                text = render(messages, functions, True)
            except Exception:  # templates refuse with exceptions of all kinds
                return False
            return all(word in text for word in said)

        functions = shows([_USER], _FUNCTION.name, "side", functions=[_FUNCTION])
        calls = shows([_USER, _CALLING, _RESULT], _CALL.name, "corner", _RESULT.text)
        form = _form_of_calls(render) if functions and calls else None
        return cls(shows([_SYSTEM, _USER], _SYSTEM.text), functions, calls, form)


def _form_of_calls(render: Render) -> str | None:
    """The format in which the template's own call can be read."""
    before, whole = render([_USER], (), True), render([_USER, _CALLING, _RESULT], (), False)
    if not whole.startswith(before):
        return None
    answer = whole[len(before) :]
    for name, form in FORMATS.items():
        reader = CallReader(form, {_CALL.name})
        found = [part for part in reader.feed(answer) if isinstance(part, CallBegins)]
        if found and form.before.strip() in answer and f'"{form.key}"' in answer:
            return name
    return None
