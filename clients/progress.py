"""A progress bar on stderr where somebody is there to see it: on a terminal, and with tqdm installed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = Callable[[float, str], None]
"""Takes the share of the work that is done, from 0 to 1, and what is going on."""


@contextmanager
def progress_bar(*, shown: bool = True) -> Iterator[Progress]:
    """Gives what moves the bar; it is gone once the block ends."""
    try:
        from tqdm import tqdm
    except ImportError:
        shown = False
    if not shown:
        yield lambda share, what: None
        return
    form = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
    # tqdm takes None for "unless stderr is no terminal".
    with tqdm(total=1.0, disable=None, leave=False, bar_format=form, dynamic_ncols=True) as bar:

        def move(share: float, what: str) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update(share - bar.n)
            bar.refresh()

        yield move
