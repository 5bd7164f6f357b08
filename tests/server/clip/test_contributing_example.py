"""The CLIP method that CONTRIBUTING.md shows is extracted from it, registered, and used over HTTP."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip.methods import registry
from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.table import methods_table
from tests.server.api.clip_app import SHAPES, clip_client, error, finished, urls
from tests.server.clip import test_fit_rules as rules
from tests.server.clip import test_method_rules as every

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Does what the guide says: the code block in a file, the line in the table."""
    section = GUIDE.split("## Add a CLIP method")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    name, module, cls = re.search(r'^    "(\w+)": \("([\w.]+)", "(\w+)"\),$', section, re.MULTILINE).groups()
    path = tmp_path / "example.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(module, path)
    monkeypatch.setitem(sys.modules, module, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules[module])
    monkeypatch.setitem(registry._METHODS["fit"], name, (module, cls))
    return name


def test_the_example_learns_what_it_says(registered):
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(6, 3, generator=generator), dim=0)
    features = normalize(text.T.repeat(5, 1) + 0.1 * torch.randn(15, 6, generator=generator), dim=1)
    head = registry.method_class("fit", registered)(temperature=1e-3).fit(Examples(features, text))
    means = torch.stack([torch.cat([features[c::3], text.T[c : c + 1]]).mean(0) for c in range(3)], dim=1)
    torch.testing.assert_close(head.proxies, normalize(means, dim=0), atol=1e-5, rtol=0)


def test_the_example_keeps_the_rules_of_its_contract(registered):
    for n in (1, 2, 40):
        for dtype in (torch.float32, torch.float64):
            rules.test_a_head_scores_each_class_in_the_features_dtype("fit", registered, dtype, n)
    rules.test_two_classes_are_enough_and_one_image_many_times_is_no_harm("fit", registered)
    rules.test_the_same_seed_gives_the_same_and_the_inputs_stay_as_they_are("fit", registered)
    rules.test_classes_in_another_order_are_learned_in_that_order("fit", registered)
    rules.test_without_what_it_needs_nothing_is_learned("fit", registered)
    every.test_values_outside_the_bounds_are_refused_by_name("fit", registered)
    every.test_progress_never_falls_and_can_end_the_work("fit", registered)


def test_the_example_is_a_method_of_the_api_with_a_schema_of_its_own(registered, tmp_path):
    with clip_client(tmp_path) as client:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        number, null = schemas["CentroidsParameters"]["properties"]["temperature"]["anyOf"]
        assert (number["maximum"], null) == (10, {"type": "null"})
        body = {"name": "mine", "classes": SHAPES, "images": urls(4), "method": registered}
        job = client.post("/v1/classifiers", json=body | {"parameters": {"temperature": 0.5}}).json()
        assert (job["kind"], job["method"]) == ("classifier", registered)
        assert finished(client, job["id"])["state"] == "succeeded"
        card = client.get("/v1/classifiers/mine").json()["about"]
        assert (card["method"], card["parameters"], card["temperature"]) == (registered, {"temperature": 0.5}, 0.5)
        assert client.post("/v1/classify", json={"images": urls(1), "classifier": "mine"}).is_success
        for parameters, param in (({"temperature": 0}, "temperature"), ({"gamma": 0.5}, "gamma")):
            refused = client.post("/v1/classifiers", json=body | {"parameters": parameters})
            assert error(refused, 400)["param"] == f"parameters.{param}"
        other = client.post("/v1/classifiers", json=body | {"method": "nope"})
        assert f"'inmap', '{registered}'" in error(other, 400)["message"]


def test_the_table_in_the_documentation_is_that_of_the_methods():
    documented = re.search(r"<!-- python -m ([\w.]+) -->\n(.*?)<!-- end -->", (ROOT / "docs/clip.md").read_text(), re.S)
    assert documented.groups() == (methods_table.__module__, methods_table())
