"""What vLLM's processes load of this package knows no web framework, no wire types and no settings."""

import subprocess
import sys

ROOMS = ("core", "models", "selection", "tools")
PROGRAM = f"""
import importlib, pkgutil, sys
for room in {ROOMS!r}:
    package = importlib.import_module("covervlm.server." + room)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(package.__name__ + "." + module.name)
print(*sys.modules)
"""


def test_core_models_and_selection_load_no_web_framework_and_no_other_room():
    run = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=True)
    loaded = set(run.stdout.split())
    assert not loaded & {"fastapi", "starlette", "uvicorn", "pydantic_settings"}
    rooms = {name.split(".")[2] for name in loaded if name.startswith("covervlm.server.")}
    assert rooms == set(ROOMS)
