"""The plugin is loaded where it can work, and refuses in plain words where it cannot."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import vllm
import vllm.plugins
from vllm import ModelRegistry
from vllm.model_executor.model_loader import utils as loader
from vllm.plugins import load_general_plugins

from covervlm.server.demo import model_path
from covervlm.server.engines.vllm.engine import VllmEngine, VllmEngineConfig
from covervlm.server.engines.vllm.plugin import ARCHITECTURES, UnsupportedVllm, check_version, register

LLAVA = "LlavaForConditionalGeneration"


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu", "0.32.1.dev3+g12ab", "0.33.0"])
def test_this_vllm_is_supported(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "0.34.0rc1", "1.0.0", "0.8.5", "dev"])
def test_another_vllm_is_refused_with_the_range_and_the_way_out(version):
    with pytest.raises(UnsupportedVllm, match=rf"vLLM >=0\.32,<0\.34, but vLLM {version} is.*VLLM_PLUGINS"):
        check_version(version)


def test_the_range_is_the_one_that_pip_installs():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "vllm>=0.32,<0.34" in project["optional-dependencies"]["vllm"]


def test_an_unsupported_vllm_ends_the_process_that_loads_its_plugins(monkeypatch):
    monkeypatch.setattr(vllm, "__version__", "0.34.0")
    monkeypatch.setattr(vllm.plugins, "plugins_loaded", False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    with pytest.raises(UnsupportedVllm):
        vllm.plugins.load_general_plugins()


def test_vllm_resolves_every_architecture_to_a_class_of_ours():
    register()
    for architecture, path in ARCHITECTURES.items():
        assert ModelRegistry.models[architecture].module_name == path.partition(":")[0]


PROGRAM = """
import importlib, pkgutil, sys
import covervlm.server.engines.vllm.plugin as plugin
for module in pkgutil.iter_modules(plugin.__path__):
    importlib.import_module(plugin.__name__ + "." + module.name)
print(*sys.modules)
"""


def test_the_plugin_loads_no_wire_types_and_no_settings():
    """vLLM itself loads FastAPI; that these rooms do not is tested where there is no vLLM."""
    run = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=True)
    loaded = [name.split(".") for name in run.stdout.split() if name.startswith("covervlm.server.")]
    assert {name[2] for name in loaded} == {"core", "engines", "models", "selection", "tools"}
    assert {tuple(name[3:5]) for name in loaded if name[2] == "engines"} == {(), ("vllm",), ("vllm", "plugin")}


async def test_our_server_does_not_start_on_classes_that_do_not_prune(monkeypatch):
    """Before weights are loaded: a server that silently does not prune would only be noticed by its bill."""
    monkeypatch.setattr(loader, "_MODEL_ARCH_BY_HASH", {})
    load_general_plugins()  # once in a process: the start would otherwise register ours again
    ModelRegistry.register_model(LLAVA, f"vllm.model_executor.models.llava:{LLAVA}")
    try:
        with pytest.raises(ValueError, match=r"does not prune.*VLLM_PLUGINS"):
            await VllmEngine(VllmEngineConfig(str(model_path()), vllm_args="--enforce-eager")).start()
    finally:
        register()
