"""Asks a server many questions about pictures, several at a time, pruned in one way or another."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import takewhile
from typing import Any, TypeVar

from covervlm.clients import BadRequestError, Client, assistant, user
from covervlm.server.tuning.search import Cell
from covervlm.server.tuning.trial import Given

J = TypeVar("J")
R = TypeVar("R")

_READING = {"continue_final_message": True, "add_generation_prompt": False, "prompt_logprobs": 1}


def ask(client: Client, image: str, text: str, cell: Cell | None, **options: Any) -> Given:
    """The likeliest answer, by a cell or unpruned (None). image: a path or a URL. Raises as the client's calls do."""
    start = time.perf_counter()
    answer = client.chat(image, text, **pruned(cell), **options, temperature=0.0)
    return Given(
        answer.text.strip(),
        answer.usage.prompt_tokens,
        sum(picture.total for picture in answer.images),
        time.perf_counter() - start,
        answer.usage.completion_tokens,
        answer.finish_reason == "stop",
    )


def compared(client: Client, image: str, text: str, cell: Cell, given: Given, reference: Given, model: str) -> Given:
    """A cell's answer with how many tokens of the unpruned one, `reference`, its model would have written.

    Greedy answers that are the same agree in every token. Otherwise the pruned model is made to read the unpruned
    answer: the server continues it by one token, and tells of all tokens of the prompt which is the likeliest in its
    place. Where it cannot, words are compared. Raises as the client's calls do.
    """
    whole = max(1, reference.tokens)
    if (given.text, given.ended) == (reference.text, reference.ended):
        return replace(given, compared=whole, agreeing=whole)
    if not reference.text:
        return replace(given, compared=whole, agreeing=0)
    read = _read(client, image, text, cell, given, reference, model)
    if read is not None:
        return replace(given, compared=len(read), agreeing=sum(read))
    ours, theirs = given.text.split(), reference.text.split()
    common = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))))
    return replace(given, compared=len(theirs) + 1, agreeing=common, forced=False)


def pruned(cell: Cell | None) -> dict[str, Any]:
    """A cell as options of the client's calls."""
    return {"method": cell.method, "keep_tokens": cell.keep} if cell else {"method": "none"}


def at_once(work: Callable[[J], R], jobs: Sequence[J], number: int) -> Iterator[tuple[J, Future[R]]]:
    """Each job with what has come of it, in the order in which they end. A loop that is left starts no more of them."""
    pool = ThreadPoolExecutor(number)
    try:
        under_way = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(under_way):
            yield under_way[future], future
    finally:
        pool.shutdown(cancel_futures=True)


def _read(
    client: Client, image: str, text: str, cell: Cell, given: Given, reference: Given, model: str
) -> list[bool] | None:
    """Of each token of the unpruned answer, whether the pruned model would have chosen it; None if it cannot be told.

    The answer's tokens are those that follow the prompt that `given` answers.
    """
    messages = [user(text, image), assistant(reference.text)]
    options: dict[str, Any] = {**pruned(cell), "model": model, "max_tokens": 1, "temperature": 0.0}
    try:
        answer = client.chat_messages(messages, **options, extra_body=_READING)
    except BadRequestError:
        return None
    tokens = ((answer.raw or {}).get("prompt_logprobs") or [])[given.prompt_tokens :]
    if not tokens or not all(tokens):
        return None
    read = [_likeliest(token) for token in tokens]
    return [*read, answer.finish_reason == "stop"] if reference.ended else read


def _likeliest(token: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether no token is likelier in its place than the prompt's own, which comes first."""
    own, *others = (-1e9 if one["logprob"] is None else one["logprob"] for one in token.values())
    return all(own >= other for other in others)
