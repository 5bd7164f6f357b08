"""What our engine asks of vLLM's workers, which answer by `plugin.worker`."""

from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM


async def every_worker(llm: AsyncLLM, method: str, *arguments: Any) -> list[Any]:
    """The answer of every worker of every data-parallel engine; `AsyncLLM.collective_rpc` has the first engine's only.

    Raises EngineDeadError.
    """
    engines = await llm.engine_core.call_utility_all_async("collective_rpc", method, None, arguments, None)
    return [answer for engine in engines for answer in engine]
