"""The `covervlm` command: serve a model, show what pruning keeps of an image, print the version."""

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource

from covervlm.server.engines.registry import StartupError
from covervlm.server.settings import Settings, SettingsError, one_line

_SERVE = """Serve a model over an OpenAI-compatible HTTP API. Every option can also be set in the environment
(COVERVLM_KEEP_TOKENS=64) or in a TOML file that --config names (keep_tokens = 64). Sizes take units: 512MiB."""
_PRUNE = """Ask which vision tokens of an image a question needs, without generating an answer, and draw them:
kept patches stay bright. The environment's COVERVLM_* options apply here too."""


class CommandError(Exception):
    """What the person at the command line has to mend; one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the result is the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="covervlm", description="Vision-language models that read only the vision tokens that matter."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a model over HTTP", description=_SERVE)
    options = CliSettingsSource[Settings](
        Settings,
        root_parser=serve,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )
    _add_prune_arguments(commands.add_parser("prune", help="draw what pruning keeps", description=_PRUNE))
    commands.add_parser("version", help="print the version")
    parsed = parser.parse_args(arguments)
    try:
        match parsed.command:
            case "serve":
                _serve(Settings(_cli_settings_source=options(parsed_args=parsed)))  # type: ignore[call-arg]
            case "prune":
                asyncio.run(_prune(parsed))
            case "version":
                print(f"covervlm {version('covervlm')}")
    except ValidationError as error:
        return _complain(parsed.command, one_line(error), 2)
    except SettingsError as error:
        return _complain(parsed.command, str(error), 2)
    except (CommandError, StartupError) as error:
        return _complain(parsed.command, str(error), 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _complain(command: str, problem: str, status: int) -> int:
    print(f"covervlm {command}: error: {problem}", file=sys.stderr)
    return status


def _serve(settings: Settings) -> None:
    # Imported here, because the web framework and torch take seconds that --help and mistakes need not wait for.
    from covervlm.server.serving import serve

    asyncio.run(serve(settings))


def _add_prune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a PNG, JPEG, WebP, GIF or BMP file")
    parser.add_argument("question", metavar="QUESTION", help="what guides the selection")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--keep", type=int, metavar="N", help="vision tokens to keep (default: 64)")
    budget.add_argument("--keep-ratio", type=float, metavar="SHARE", help="share of the vision tokens to keep")
    budget.add_argument("--coverage", type=float, metavar="SHARE", help="keep as few as reach this share of coverage")
    parser.add_argument("--method", help="pruning method (default: mmtok)")
    parser.add_argument("--model", help="the built-in 'demo', a local folder, or a hub id")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the picture goes, e.g. overlay.png")
    parser.add_argument("--json", action="store_true", help="print the whole report, with indices, as JSON")


async def _prune(arguments: argparse.Namespace) -> None:
    from covervlm.server.api.pruning_policy import VisionPruning, pruning_policy
    from covervlm.server.engines.base import (
        EngineError,
        GenerationRequest,
        InvalidRequest,
        Message,
        PruningPolicy,
        TextPart,
    )
    from covervlm.server.engines.registry import start_engine
    from covervlm.server.media import ImageLimits, image_part

    chosen = {name: getattr(arguments, name) for name in ("method", "model", "device", "dtype")}
    settings = Settings(**{name: value for name, value in chosen.items() if value is not None})
    asked = VisionPruning(
        keep_tokens=arguments.keep, keep_ratio=arguments.keep_ratio, coverage=arguments.coverage, return_indices=True
    )
    policy = pruning_policy(asked, alias_budget=64, default=PruningPolicy(method=settings.method))
    try:
        data = arguments.image.read_bytes()
        image = image_part(data, ImageLimits(int(settings.max_image_bytes), settings.max_image_pixels))
    except OSError as error:
        raise CommandError(f"{arguments.image}: {error.strerror or error}") from None
    except InvalidRequest as error:
        raise CommandError(f"{arguments.image}: {error}") from None

    engine = await start_engine(settings)
    try:
        message = Message("user", (image, TextPart(arguments.question)))
        report = await engine.prune(GenerationRequest("prune", (message,), pruning=policy))
    except EngineError as error:
        raise CommandError(str(error)) from None
    finally:
        await engine.stop()

    kept = report.images[0]
    if arguments.output:
        _draw(arguments.output, image.image, kept)
    if arguments.json:
        print(json.dumps({"prompt_tokens": report.prompt_tokens, **dataclasses.asdict(kept)}))
    else:
        coverage = "" if kept.coverage is None else f", coverage {kept.coverage:.3f}"
        print(f"{kept.method} keeps {kept.kept} of {kept.total} vision tokens{coverage}, {kept.milliseconds:.1f} ms")


def _draw(path: Path, image: Any, kept: Any) -> None:
    from covervlm.server.overlay import draw_overlay

    if kept.grid is None:
        raise CommandError("this model's vision tokens form no single grid that could be drawn")
    try:
        draw_overlay(image, kept.grid, kept.indices, box=kept.box).save(path)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from None
