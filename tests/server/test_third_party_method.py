"""A pruning method of another package: installed from a wheel, named in a request, refused where it is not offered."""

import base64
import io
import json
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

MODULE = '''
"""Keeps the tokens with the smallest or largest first feature."""

from dataclasses import dataclass

from covervlm.pruners import Pruner, highest


@dataclass(frozen=True)
class FirstFeature(Pruner):
    smallest: bool = False

    def pick(self, inputs, counts, objective):
        sign = -1 if self.smallest else 1
        return [
            highest(sign * image.features[:, 0].float(), count, image.allowed)
            for image, count in zip(inputs, counts, strict=True)
        ]
'''
ENTRY_POINTS = """[covervlm.pruners]
first_feature = elsewhere_pruners:FirstFeature
mmtok = elsewhere_pruners:FirstFeature
not_a_method = json:dumps
broken = elsewhere_pruners:Missing
"""
ASK = """
import json, sys
from starlette.testclient import TestClient
from covervlm.server import create_app
from covervlm.server.engines.registry import build_engine
from covervlm.server.settings import Settings

settings = Settings(**json.loads(sys.argv[1]))
with TestClient(create_app(settings, build_engine(settings))) as client:
    for body in json.loads(sys.stdin.read()):
        answer = client.post("/v1/prune", json=body)
        print(json.dumps([answer.status_code, answer.json()]))
    names = client.get("/openapi.json").json()["components"]["schemas"]
    print(json.dumps(sorted(name for name in names if name.startswith("VisionPruning."))))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip installed the wheel into."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = folder / "elsewhere_pruners-1.0-py3-none-any.whl"
    info = "elsewhere_pruners-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("elsewhere_pruners.py", MODULE)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: elsewhere-pruners\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", ENTRY_POINTS)
        names = [*archive.namelist(), f"{info}/RECORD"]
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    site = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", site, wheel]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return site


def body(**pruning):
    picture = io.BytesIO()
    Image.effect_noise((96, 96), 90).convert("RGB").save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    pruning = {"keep_tokens": 5, "return_indices": True, **pruning}
    return {"messages": [{"role": "user", "content": content}], "vision_pruning": pruning}


def served(site, bodies, **settings):
    """The answers of a server that sees the folder, and the methods whose parameters its schema describes."""
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{ASK}", json.dumps(settings)],
        input=json.dumps(bodies),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    *answers, names = (json.loads(line) for line in run.stdout.splitlines()[-len(bodies) - 1 :])
    return answers, names


OFFERED = ["mmtok", "first_feature"]


def test_an_installed_method_is_named_in_a_request_with_its_own_parameters(installed):
    image = body(method="first_feature")
    other = {**image, "vision_pruning": {**image["vision_pruning"], "parameters": {"smallest": True}}}
    wrong = {**image, "vision_pruning": {**image["vision_pruning"], "parameters": {"smallest": 3}}}
    own = {**image, "vision_pruning": {**image["vision_pruning"], "method": "mmtok"}}
    answers, names = served(installed, [image, other, wrong, own], pruning_methods=OFFERED)
    assert [status for status, _ in answers] == [200, 200, 400, 200]
    (first, second, refused, mmtok) = (answer for _, answer in answers)
    assert first["images"][0]["method"] == "first_feature"
    kept = [set(answer["images"][0]["indices"]) for answer in (first, second, mmtok)]
    assert [len(one) for one in kept] == [5, 5, 5]
    assert not kept[0] & kept[1]
    assert refused["error"]["param"] == "vision_pruning.parameters.smallest"
    assert kept[2] != kept[0]  # no package takes the name of a method of ours
    assert names == ["VisionPruning.first_feature", "VisionPruning.mmtok"]


def test_a_method_that_is_not_offered_is_refused_with_those_that_are(installed):
    bodies = [body(method="first_feature"), body(method="random"), body(method="uniform"), body(method="none")]
    answers, _ = served(installed, bodies, method="uniform", pruning_methods=["uniform"])
    assert [status for status, _ in answers] == [400, 400, 200, 200]
    for _, answer in answers[:2]:
        assert answer["error"]["param"] == "vision_pruning.method"
        assert "uniform, none" in answer["error"]["message"]


@pytest.mark.parametrize(("method", "reason"), [("not_a_method", "no Pruner"), ("broken", "cannot be loaded")])
def test_an_installed_method_that_cannot_be_used_says_so_with_its_package(installed, method, reason):
    program = f"import sys; sys.path.insert(0, {str(installed)!r})\n"
    program += f"from covervlm.pruners import get_pruner\nget_pruner({method!r})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert f"ValueError: pruning method '{method}' of elsewhere-pruners" in run.stderr
    assert reason in run.stderr
