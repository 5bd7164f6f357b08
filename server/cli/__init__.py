"""The `covervlm` command: one file per subcommand."""

from covervlm.server.cli.main import main

__all__ = ["main"]
