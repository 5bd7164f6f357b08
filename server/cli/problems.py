"""How a command fails: in one line, with a status that tells whose move it is."""

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class CommandError(Exception):
    """What the person at the command line has to mend; one line. `status` is the process's exit status."""

    def __init__(self, problem: str, status: int = FAILED) -> None:
        super().__init__(problem)
        self.status = status
