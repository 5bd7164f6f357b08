"""The agent of MMTok: a cheap first answer to the question, whose words join those that guide the selection.

The paper asks a small model (arXiv 2508.18264, section on agents); here it is the served model itself with a handful
of vision tokens, or another OpenAI-compatible endpoint. An agent that fails costs no more than its time limit.
"""

import asyncio
import logging
import time
from dataclasses import replace

from covervlm.server.asking.asker import Asker, NoAnswer
from covervlm.server.core.errors import EngineError
from covervlm.server.core.generation import AgentReport, GenerationRequest, SamplingParams

log = logging.getLogger(__name__)

_SAMPLING = SamplingParams(max_tokens=32, temperature=0)
_LONGEST_ANSWER = 1000
"""Characters of another endpoint's answer, which may ignore how many tokens it was asked for."""


class Agent:
    """Asks for a first answer, from `tokens` vision tokens per image where the served model is asked."""

    def __init__(self, ask: Asker, tokens: int, timeout: float) -> None:
        """`timeout`: seconds after which the request goes on without its agent."""
        self._ask = ask
        self._tokens = tokens
        self._timeout = timeout

    async def __call__(self, request: GenerationRequest) -> AgentReport:
        """What the agent says; whatever goes wrong becomes part of the report."""
        started = time.perf_counter()
        try:
            report = await asyncio.wait_for(self._ask(self._first_pass(request)), self._timeout)
        except TimeoutError:
            report = AgentReport(error="timeout")
        except (EngineError, NoAnswer) as error:
            log.warning("request %s goes on without its agent: %s", request.request_id, error)
            report = AgentReport(error="failed")
        return replace(report, answer=report.answer[:_LONGEST_ANSWER], seconds=time.perf_counter() - started)

    def _first_pass(self, request: GenerationRequest) -> GenerationRequest:
        pruning = replace(
            request.pruning,
            keep_tokens=self._tokens,
            keep_tokens_per_crop=None,
            keep_ratio=None,
            coverage=None,
            guide="last_user",
            return_indices=False,
        )
        tools = replace(request.tools, functions=())
        name = f"{request.request_id}-agent"
        return replace(request, request_id=name, pruning=pruning, sampling=_SAMPLING, tools=tools)
