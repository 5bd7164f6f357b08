"""`import covervlm` costs next to nothing, and each of its names needs only what it works with."""

import subprocess
import sys
from importlib.metadata import version

import pytest

HEAVY = ("torch", "transformers", "httpx", "pydantic", "numpy", "PIL", "fastapi")
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"blocked {{name}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_heavy_and_the_version_neither():
    program = "import sys, covervlm\nprint(covervlm.__version__)\nprint(*sys.modules)"
    shown, loaded = run(program).splitlines()
    assert shown == version("covervlm")
    assert not {name.partition(".")[0] for name in loaded.split()} & set(HEAVY)


def test_it_can_be_imported_where_nothing_else_is_installed():
    program = f"{BLOCKED.format(names=HEAVY)}\nimport covervlm\nprint(covervlm.__version__, *covervlm.__all__)"
    assert run(program).split() == [version("covervlm"), "AsyncClient", "Client", "Model", "__version__", "load"]


def test_the_clients_need_no_torch():
    program = f"""{BLOCKED.format(names=("torch", "transformers", "pydantic", "fastapi", "numpy"))}
import covervlm, covervlm.clients
print(covervlm.Client is covervlm.clients.Client, covervlm.AsyncClient is covervlm.clients.AsyncClient)
"""
    assert run(program) == "True True"


def test_a_name_that_is_not_there_is_an_attribute_error():
    import covervlm

    with pytest.raises(AttributeError, match="no attribute 'loud'"):
        covervlm.loud  # noqa: B018
    assert set(covervlm.__all__) <= set(dir(covervlm))


def test_python_m_covervlm_is_the_command():
    done = subprocess.run([sys.executable, "-m", "covervlm", "version"], capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stdout) == (0, f"covervlm {version('covervlm')}\n")
    done = subprocess.run([sys.executable, "-m", "covervlm", "dance"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: covervlm ")
