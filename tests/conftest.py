"""What every test may rely on, however the tests are started."""

import signal


def pytest_configure() -> None:
    # A shell without job control starts background commands with SIGINT ignored, and their children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
