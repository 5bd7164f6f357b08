"""vLLM's sources say whether they still have all that ours depend on."""

import ast
import shutil
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
from contract import CALLS, OVERRIDES, READS
from contract_changes import changes
from our_sources import OurSources
from vllm_sources import Sources

from covervlm.server.core.generation import SamplingParams

INSTALLED = Path(find_spec("vllm").submodule_search_locations[0]).parent
OWNERS = OVERRIDES.keys() | CALLS.keys() | READS.keys()
NAMES = {f"{owner}.{name}" for table in (OVERRIDES, CALLS) for owner, entries in table.items() for name in entries}
NAMES |= {f"{owner}.{name}" for owner, names in READS.items() for name in names.split()}


@pytest.fixture(scope="module")
def ours():
    return OurSources(Path(__file__).parents[2] / "server/engines/vllm")


@pytest.fixture(scope="module")
def installed():
    return Sources(INSTALLED)


def test_the_installed_vllm_keeps_the_contract(installed):
    assert changes(installed) == []


SAMPLE = """
from vllm.v1.engine.async_llm import AsyncLLM

class Engine(AsyncLLM):
    def shutdown(self):
        super().shutdown_workers()

class Watch:
    def __init__(self, llm: AsyncLLM | None):
        self.engine = llm

    async def priorities(self, others):
        for other, request in zip(others, self.engine.waiting_requests):
            yield other.name, request.priority_class
        answer = await self.engine.ask_workers(deadline_ms=3)
        print(answer["kept_tokens"], getattr(answer, "lateness", None))
"""


def test_what_sources_take_from_vllm_is_found(tmp_path):
    (tmp_path / "sample.py").write_text(SAMPLE)
    sample = OurSources(tmp_path)
    assert sample.imports == {"vllm.v1.engine.async_llm.AsyncLLM": "sample.py"}
    assert list(sample.overrides()) == [("vllm.v1.engine.async_llm.AsyncLLM", "shutdown")]
    assert sample.passed == {"deadline_ms": "sample.py:15"}
    assert sample.reached.keys() == {
        "shutdown_workers",
        "waiting_requests",
        "priority_class",
        "ask_workers",
        "kept_tokens",
        "lateness",
    }


def test_every_import_from_vllm_is_in_the_contract(ours):
    assert len(ours.imports) > 40
    assert {name: place for name, place in ours.imports.items() if name not in NAMES | OWNERS} == {}


def test_every_attribute_of_vllm_that_we_reach_is_in_the_contract(ours):
    assert len(ours.reached) > 60
    known = {name.rpartition(".")[2] for name in NAMES}
    assert {name: place for name, place in ours.reached.items() if name not in known} == {}


def test_every_keyword_that_we_pass_to_vllm_is_in_the_contract(ours):
    calls = [ast.parse(f"f({passed})", mode="eval").body for entries in CALLS.values() for passed in entries.values()]
    known = {keyword.arg for call in calls for keyword in call.keywords}
    assert len(ours.passed) > 10
    assert {name: place for name, place in ours.passed.items() if name not in known} == {}


def test_every_method_of_vllm_that_we_override_is_in_the_contract(ours, installed):
    overridden = {f"{base}.{method}" for base, method in ours.overrides() if installed.find(f"{base}.{method}")}
    assert len(overridden) > 50
    assert overridden - NAMES == set()


def test_every_sampling_parameter_that_we_send_is_in_the_contract():
    call = ast.parse(f"f({CALLS['vllm']['SamplingParams']})", mode="eval").body
    ours = {field.name for field in fields(SamplingParams)} - {"top_logprobs", "grammar"}
    assert {keyword.arg for keyword in call.keywords} == ours | {
        "max_tokens",
        "logprobs",
        "structured_outputs",
        "detokenize",
        "output_kind",
    }


_BASE = "vllm.multimodal.processing.BaseMultiModalProcessor"
_UTILS = "vllm.model_executor.model_loader.utils"
BROKEN = [
    (
        "multimodal/processing/processor.py",
        "        mm_is_cached: MultiModalIsCached,\n    ) -> Mapping[str, object]:",
        "        cached: MultiModalIsCached,\n    ) -> Mapping[str, object]:",
        f"{_BASE}._get_cache_missing_processor_kwargs, which we override, took (inputs, mm_is_cached) and now takes "
        "(inputs, cached)",
    ),
    (
        "v1/metrics/prometheus.py",
        "def get_prometheus_registry(",
        "def get_registry(",
        "vllm.v1.metrics.prometheus.get_prometheus_registry, which we call, is not there to be called any more",
    ),
    (
        "model_executor/model_loader/utils.py",
        "def get_model_cls(model_config: ModelConfig)",
        "def get_model_cls(model_config: ModelConfig, role: str)",
        f"{_UTILS}.get_model_cls, which we call as (config), now takes (model_config, role): "
        "missing a required argument: 'role'",
    ),
    (
        "v1/metrics/stats.py",
        "num_running_reqs: int = 0",
        "running: int = 0",
        "vllm.v1.metrics.stats.SchedulerStats.num_running_reqs is gone",
    ),
    (
        "v1/engine/async_llm.py",
        "    @property\n    def errored(self)",
        "    def errored(self)",
        "vllm.v1.engine.async_llm.AsyncLLM.errored, which we read, is a function now",
    ),
]
"""A file, what is replaced in it, by what, and the line that says so."""


def test_a_broken_copy_is_reported_by_the_names_of_what_changed(tmp_path):
    shutil.copytree(INSTALLED / "vllm", tmp_path / "vllm", ignore=_all_but_python)
    for file, there, instead, _ in BROKEN:
        path = tmp_path / "vllm" / file
        source = path.read_text()
        assert source.count(there) == 1
        path.write_text(source.replace(there, instead))
    reports = set(changes(Sources(tmp_path)))
    wanted = {report for *_, report in BROKEN}
    assert wanted <= reports
    # Processors inherit the method, so each says it too.
    assert all("_get_cache_missing_processor_kwargs, which we override, took" in more for more in reports - wanted)


def _all_but_python(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".py") and not (Path(folder) / name).is_dir()]
