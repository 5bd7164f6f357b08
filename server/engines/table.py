"""The documentation's table of architectures: `python -m covervlm.server.engines.table`."""

from importlib import import_module

from covervlm.server.engines.vllm import plugin
from covervlm.server.models.registry import ARCHITECTURES, UNSERVED


def architectures_table() -> str:
    """Markdown: every image-text architecture of transformers, which engines prune it, and what it is, or why not."""
    rows = ["| architecture | engines | what it is, or why it is not served |", "| --- | --- | --- |"]
    for name, (module, _) in ARCHITECTURES.items():
        engines = "embedded, vLLM" if name in plugin.ARCHITECTURES else "embedded"
        rows.append(f"| `{name}` | {engines} | {str(import_module(module).__doc__).splitlines()[0]} |")
    rows += [f"| `{name}` | none | {reason} |" for name, reason in sorted(UNSERVED.items())]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(architectures_table(), end="")
