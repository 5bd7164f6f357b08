"""What every test may rely on, however the tests are started."""

import os
import signal
import tempfile

import hypothesis
import pytest

# The same examples each time, and no time limit for one: a run tells what the code does, not how busy the machine was.
# `make test-fuzz` looks for new ones.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    # A shell without job control starts background commands with SIGINT ignored, and their children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Servers that are given no data folder use the default one, which must not be the developer's own.
    home = tempfile.TemporaryDirectory(prefix="covervlm-tests-")
    os.environ["XDG_DATA_HOME"] = home.name
    config.add_cleanup(home.cleanup)
