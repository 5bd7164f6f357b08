"""Serve a model over an OpenAI-compatible HTTP API.

Every option can also be set in the environment (COVERVLM_KEEP_TOKENS=64) or in a TOML file that --config names
(keep_tokens = 64). Sizes take units: 512MiB.
"""

import argparse
import asyncio

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource

from covervlm.server.cli.problems import USAGE, CommandError
from covervlm.server.engines.registry import StartupError
from covervlm.server.settings import Settings, SettingsError, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of Settings."""
    options = CliSettingsSource[Settings](
        Settings,
        root_parser=parser,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )
    parser.set_defaults(settings_source=options)


def run(arguments: argparse.Namespace) -> None:
    source = vars(arguments).pop("settings_source")
    try:
        settings = Settings(_cli_settings_source=source(parsed_args=arguments))  # type: ignore[call-arg]
        # Imported here, because the web framework and torch take seconds that mistakes need not wait for.
        from covervlm.server.serving import serve

        asyncio.run(serve(settings))
    except ValidationError as error:
        raise CommandError(one_line(error), USAGE) from None
    except SettingsError as error:
        raise CommandError(str(error), USAGE) from None
    except StartupError as error:
        raise CommandError(str(error)) from None
