"""The documentation's table of methods, from the methods themselves: `python -m covervlm.server.clip.methods.table`."""

from dataclasses import fields
from typing import Any, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from covervlm.server.clip.methods.registry import Kind, method_class, method_names


def methods_table() -> str:
    """Markdown: every method's kind, name, first sentence, and parameters with defaults and bounds."""
    rows = ["| kind | method | what it does | parameters |", "|---|---|---|---|"]
    for kind in get_args(Kind):
        for name in method_names(kind):
            cls = method_class(kind, name)
            hints = get_type_hints(cls, include_extras=True)
            told = (f"`{f.name}` {f.default}{_bounds(hints[f.name])}" for f in fields(cls))
            does = " ".join(str(cls.__doc__).split("\n\n")[0].split())
            rows.append(f"| {kind} | `{name}` | {does} | {', '.join(told)} |")
    return "\n".join(rows) + "\n"


def _bounds(hint: Any) -> str:
    signs = {Gt: ("gt", "> "), Ge: ("ge", "≥ "), Lt: ("lt", "< "), Le: ("le", "≤ ")}
    told = []
    for bound in getattr(hint, "__metadata__", ()):
        attribute, sign = signs[type(bound)]
        told.append(f"{sign}{getattr(bound, attribute):,}")
    return f" ({', '.join(told)})" if told else ""


if __name__ == "__main__":
    print(methods_table(), end="")
