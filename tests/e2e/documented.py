"""What a Markdown file tells its reader to run: fenced blocks, indented commands, and commands within sentences."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = (
    "covervlm",
    ".venv/bin/covervlm",
    "python",
    ".venv/bin/python",
    "make",
    "pip",
    ".venv/bin/pip",
    "docker",
    "kubectl",
    "vllm",
    "curl",
    ".",
)
"""The first words of what counts as a command."""


@dataclass(frozen=True)
class Block:
    """A fenced block, or one command (`language` is "command"). place: file and line, for messages."""

    language: str
    text: str
    section: str
    place: str


def blocks(path: Path) -> list[Block]:
    """All of them, in order. Fences in languages that nobody runs (text, jsonc, none at all) are left out."""
    return [block for block in _blocks(path) if block.language in ("sh", "python", "toml", "command")]


def sections(path: Path, language: str) -> list[Block]:
    """The blocks of one language, those of a section joined: later ones use what earlier ones define."""
    joined: dict[str, Block] = {}
    for block in blocks(path):
        if block.language == language:
            before = joined.get(block.section)
            text = block.text if before is None else f"{before.text}\n{block.text}"
            place = block.place if before is None else before.place
            joined[block.section] = Block(language, text, block.section, place)
    return list(joined.values())


def _blocks(path: Path) -> Iterator[Block]:
    section, language, fenced = "", None, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{path.name}:{number}"
        if language is not None:
            if line.strip() == "```":
                yield from _fenced(language, "\n".join(fenced) + "\n", section, place)
                language, fenced = None, []
            else:
                fenced.append(line)
        elif line.startswith("```"):
            language = line[3:].strip() or "text"
        elif line.startswith("#"):
            section = line.strip("# ")
        elif line.startswith("    "):
            if _is_command(command := _without_comment(line)):
                yield Block("command", command, section, place)
        else:
            for span in re.findall(r"`([^`]+)`", line):
                if _is_command(span) and span != "pip install":
                    yield Block("command", span, section, place)


def _fenced(language: str, text: str, section: str, place: str) -> Iterator[Block]:
    """The block; one of nothing but single commands is these commands."""
    lines = [_without_comment(line) for line in text.replace("\\\n", " ").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if language == "sh" and all(_is_command(line) and not re.search(r"[|<>&;]", line) for line in lines):
        yield from (Block("command", line, section, place) for line in lines)
    else:
        yield Block(language, text, section, place)


def _is_command(line: str) -> bool:
    return line.startswith(tuple(f"{program} " for program in PROGRAMS))


def _without_comment(line: str) -> str:
    return re.sub(r"\s+# .*$", "", line.strip())
