"""From a request's tools to the functions in its prompt and the grammar of its answer."""

from collections.abc import Sequence
from dataclasses import replace

from covervlm.server.api.wire.chat_request import ChatPrompt
from covervlm.server.api.wire.tools import AnyTool, NamedChoice, functions_of
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import SamplingParams, ToolUse
from covervlm.server.tools.formats import FORMATS
from covervlm.server.tools.grammar import calls_grammar


def tool_use(body: ChatPrompt, offered: Sequence[AnyTool], form: str | None) -> ToolUse:
    """Those of the offered tools that may be called; form: how the model writes calls, None if unknown.

    Raises InvalidRequest where the model cannot choose to call one.
    """
    choice = body.tool_choice or "auto"
    if choice == "auto" and form is None:
        raise InvalidRequest(
            "This model's chat template takes no tools, or calls them in an unknown form, so the model cannot choose "
            "to call one. Set tool_choice to 'required' or to a function, which works with every model; or "
            f"start the server with --tool-format ({', '.join(FORMATS)}).",
            param="tools",
            code="unsupported_parameter",
        )
    functions, named = functions_of(offered), isinstance(choice, NamedChoice)
    if isinstance(choice, NamedChoice):
        functions = tuple(function for function in functions if function.name == choice.function.name)
    return ToolUse(functions, body.parallel_tool_calls is not False and not named, named, form or "json")


def held_to_tools(sampling: SamplingParams, body: ChatPrompt, tools: ToolUse) -> SamplingParams:
    """The sampling with the grammar that the choice asks for; answers without calls then have `response_format`'s form.

    Raises InvalidRequest where the answer would be held to another form as well.
    """
    grammar = sampling.grammar
    may_not_call = body.tool_choice in (None, "auto")
    is_format = grammar is not None and grammar.param.startswith("response_format")
    if grammar is not None and not (is_format or (may_not_call and grammar.kind == "json")):
        raise InvalidRequest(
            f"An answer can be held to one form only, but there are 'tools' and '{grammar.param}'; drop one.",
            param=grammar.param,
            code="invalid_value",
        )
    if not may_not_call:
        return replace(sampling, grammar=calls_grammar(tools))
    if grammar is not None:
        return replace(sampling, grammar=calls_grammar(tools, otherwise=grammar))
    return replace(sampling, skip_special_tokens=False) if FORMATS[tools.format].special else sampling
