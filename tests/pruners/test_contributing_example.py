"""The pruning method that CONTRIBUTING.md shows is extracted from it, registered and run."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from covervlm.pruners import PruneInput, get_pruner, pruner_names, registry

GUIDE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Does what the guide says: the code block in a file, the line in the table."""
    section = GUIDE.split("## Add a pruning method")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    name, module, cls = re.search(r'^    "(\w+)": \("([\w.]+)", "(\w+)"\),$', section, re.MULTILINE).groups()
    path = tmp_path / "example.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(module, path)
    monkeypatch.setitem(sys.modules, module, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules[module])
    monkeypatch.setitem(registry._METHODS, name, (module, cls))
    yield name, code
    get_pruner.cache_clear()  # a pruner of a module that is gone with this test


def test_the_example_has_at_most_fifteen_lines_of_code(registered):
    assert len([line for line in registered[1].splitlines() if line.strip()]) <= 15


def test_the_example_is_accepted_wherever_a_method_is_named(registered):
    name, _ = registered
    assert name in pruner_names()
    features = torch.tensor([[1.0, 1.0], [0.0, 5.0], [4.0, 3.0], [0.1, 0.0], [7.0, 0.0]])
    image = PruneInput(torch.randn(5, 3), features, allowed=torch.tensor([True, True, True, True, False]))
    (selection,) = get_pruner(name).choose([image], 2)
    assert selection.indices.tolist() == [1, 2]
    assert 0 < selection.coverage < 1
    assert get_pruner(name, p=1.0).select([image], 1)[0].tolist() == [2]
    assert len(get_pruner(name).select([image], 4)[0]) == 4
    assert len(get_pruner(name).choose_for_coverage([image], 1.0)[0].indices) == 4
