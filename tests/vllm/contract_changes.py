"""Holds vLLM's sources against the contract; as a program, prints what the newest vLLM in a folder has changed."""

import ast
import sys
from collections.abc import Iterator
from inspect import Signature
from pathlib import Path
from zipfile import Path as ZipPath

from contract import CALLS, OVERRIDES, READS
from vllm_sources import Sources, signature_of


def changes(sources: Sources) -> list[str]:
    """What no longer is as the contract says, one line for each name."""
    return [*_overrides(sources), *_calls(sources), *_reads(sources)]


def _overrides(sources: Sources) -> Iterator[str]:
    for name, wanted in _flat(OVERRIDES):
        signature = _signature(sources, name)
        if signature is None:
            yield f"{name}, which we override, is no method any more"
        elif signature != _parsed(wanted):
            yield f"{name}, which we override, took ({wanted}) and now takes {_shown(signature)}"


def _calls(sources: Sources) -> Iterator[str]:
    for name, passed in _flat(CALLS):
        signature = _signature(sources, name)
        if signature is None:
            yield f"{name}, which we call, is not there to be called any more"
            continue
        call = ast.parse(f"call({passed})", mode="eval").body
        assert isinstance(call, ast.Call)
        any_names = any(keyword.arg is None for keyword in call.keywords)
        if any_names and not any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
            yield f"{name}, which we call with any options, now takes {_shown(signature)}"
        try:
            signature.bind(*call.args, **{keyword.arg: keyword for keyword in call.keywords if keyword.arg})
        except TypeError as error:
            yield f"{name}, which we call as ({passed}), now takes {_shown(signature)}: {error}"


def _reads(sources: Sources) -> Iterator[str]:
    for owner, names in READS.items():
        for name in names.split():
            found = sources.find(f"{owner}.{name}")
            if found is None:
                yield f"{owner}.{name} is gone"
            elif found.is_function:
                yield f"{owner}.{name}, which we read, is a function now"


def _signature(sources: Sources, name: str) -> Signature | None:
    found = sources.find(name)
    return None if found is None else sources.signature(found)


def _parsed(parameters: str) -> Signature:
    function = ast.parse(f"def f({parameters}): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    return signature_of(function.args, bound=False)


def _shown(signature: Signature) -> str:
    return str(signature).replace("Ellipsis", "...")


def _flat(table: dict[str, dict[str, str]]) -> Iterator[tuple[str, str]]:
    return ((f"{owner}.{name}", value) for owner, entries in table.items() for name, value in entries.items())


def main() -> None:
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    release = "vLLM " + wheel.name.split("-")[1]
    changed = changes(Sources(ZipPath(wheel)))
    names = len(list(_flat(OVERRIDES))) + len(list(_flat(CALLS))) + sum(len(names.split()) for names in READS.values())
    print(f"{release}: of the {names} names that covervlm depends on, {len(changed)} changed", *changed, sep="\n- ")


if __name__ == "__main__":
    main()
