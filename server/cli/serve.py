"""Serve a model over an OpenAI-compatible HTTP API.

Every option can also be set in the environment (COVERVLM_KEEP_TOKENS=64) or in a TOML file that --config names
(keep_tokens = 64). Sizes take units: 512MiB. Examples:

    covervlm serve
    covervlm serve llava-hf/llava-1.5-7b-hf --keep-tokens 64 --clip-model openai/clip-vit-large-patch14-336
"""

import argparse
import asyncio
from typing import Any, get_args, get_origin

from pydantic import ByteSize
from pydantic_settings import CliSettingsSource

from covervlm.server.cli import vllm_options
from covervlm.server.cli.errors import USAGE, CommandError, startup_errors
from covervlm.server.settings import SECTIONS, Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of Settings in the group of its section, the model as a positional, and vLLM's names for options."""
    parser.usage = "covervlm serve [MODEL] [OPTION ...]"
    parser.add_argument("positional_model", nargs="?", metavar="MODEL", help="the same as --model MODEL")
    firsts = {first: title for title, first in SECTIONS.items()}
    group: Any = parser

    def add(_: Any, *flags: str, **options: Any) -> None:
        nonlocal group
        name = options["dest"]
        if name in firsts:
            group = parser.add_argument_group(firsts[name])
        if not options.get("metavar", "{").startswith("{"):  # neither a switch nor a choice
            options["metavar"] = _metavar(name)
        group.add_argument(*flags, **options | {"help": _help(name)})

    source = CliSettingsSource[Settings](
        Settings,
        root_parser=parser,
        add_argument_method=add,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )
    vllm_options.add_arguments(parser)
    parser.set_defaults(settings_source=source)


def _metavar(name: str) -> str:
    """What a value is, as a person would call it: N, SECONDS, SIZE, or the last word of the option's name."""
    annotation = Settings.model_fields[name].annotation
    kinds = {annotation, *get_args(annotation)}
    if ByteSize in kinds:
        return "SIZE"
    if float in kinds and name.endswith(("timeout", "seconds")):
        return "SECONDS"
    if int in kinds:
        return "N"
    last = name.rpartition("_")[2].upper()
    return f"{last.removesuffix('S')},..." if get_origin(annotation) is tuple else last


def _help(name: str) -> str:
    """The field's description, and its default where the description does not say it and there is one."""
    field = Settings.model_fields[name]
    text, default = field.description or "", field.default
    if default in (None, "", ()) or "by default" in text:
        return text.replace("%", "%%")
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    elif isinstance(default, bool):
        default = "on" if default else "off"
    elif isinstance(default, float):
        default = f"{default:g}"
    elif isinstance(default, ByteSize):
        default = default.human_readable(separator="").replace(".0", "")
    return f"{text} (default: {default})".strip().replace("%", "%%")


def run(arguments: argparse.Namespace) -> None:
    with startup_errors():
        settings = settings_of(arguments)
        # Imported here: the web framework and torch take seconds, and mistakes in the options are reported before that.
        from covervlm.server.serving import serve

        asyncio.run(serve(settings))


def settings_of(arguments: argparse.Namespace) -> Settings:
    """What the parsed options, the environment and the file come to."""
    source = vars(arguments).pop("settings_source")
    model = vars(arguments).pop("positional_model")
    if model is not None:
        if getattr(arguments, "model", None) not in (None, model):
            raise CommandError(f"two models are named, {model} and --model {arguments.model}; name one", USAGE)
        arguments.model = model
    passed_on = vllm_options.passed_on(arguments)
    settings = Settings(_cli_settings_source=source(parsed_args=arguments))  # type: ignore[call-arg]
    return settings.model_copy(update={"vllm_args": f"{settings.vllm_args} {passed_on}".strip()})
