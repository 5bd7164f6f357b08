"""A server that dies in the midst of learning by every method at once, and what the next one has of each."""

import hashlib
import json
import os
import signal
import sys
from dataclasses import fields

import pytest

from covervlm.server.clip.methods.registry import method_class, method_names
from tests.server.api.clip_app import SHAPES, finished, urls
from tests.server.api.test_clip_crash import server

# Two servers and two dozen jobs, however busy the machine is.
pytestmark = pytest.mark.timeout(900)
LEARNERS = [(kind, name) for kind in ("fit", "train", "choose", "project") for name in method_names(kind)]
PLACE = {"fit": "classifiers", "train": "classifiers", "choose": "classifiers", "project": "projections"}
IMAGES = urls(8)

# `covervlm serve` whose jobs, but for the first of each method, learn up to the half and wait; it tells when all wait.
PROGRAM = f"""
import functools, itertools, sys, threading
from covervlm.server.cli import main
from covervlm.server.clip import service
from covervlm.server.jobs import runner

numbers, waiting, never = itertools.count(), set(), threading.Event()

class Reporter(runner.Reporter):
    def __init__(self, publish):
        super().__init__(publish)
        self.waits = next(numbers) >= {len(LEARNERS)}

    def __call__(self, share, **details):
        super().__call__(share, **details)
        if not self.waits or details.get("phase") != "fitting" or share < 0.5:
            return
        waiting.add(self)
        if len(waiting) == {len(LEARNERS)}:
            print("halfway", flush=True)
        while not never.wait(0.01):
            self.check()

runner.Reporter = Reporter
service.JobRunner = functools.partial(service.JobRunner, turn_seconds=0.05)
sys.exit(main(sys.argv[1:]))
"""


def key(method):
    return {"Authorization": f"Bearer {method}"}


def job(client, kind, method):
    """Its id, once it is submitted under a key of its own: jobs of one key run one after another."""
    few = {"iterations": 4, "epochs": 4, "dimensions": 5}
    steps = {f.name: few[f.name] for f in fields(method_class(kind, method)) if f.name in few}
    if kind == "fit":
        body = {"classes": SHAPES[:2], "images": IMAGES}
    else:
        body = {"examples": [{"image": image, "label": SHAPES[i % 2]} for i, image in enumerate(IMAGES)]}
    body |= {"name": "it", "method": method, "parameters": steps}
    answer = client.post(f"/v1/{PLACE[kind]}", json=body, headers=key(method))
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def use(client, kind, method):
    """What the server answers with what it has learned."""
    if kind == "project":
        answer = client.post("/v1/embeddings", json={"model": "demo-clip/it", "input": "a star"}, headers=key(method))
    else:
        answer = client.post("/v1/classify", json={"images": IMAGES[:2], "classifier": "it"}, headers=key(method))
    assert answer.status_code == 200, answer.text
    return answer.json()


def apart(answer):
    """An answer without its fractions, and these."""
    fractions = []
    return json.loads(json.dumps(answer), parse_float=lambda text: fractions.append(float(text))), fractions


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
    """The next server; and of each method the id of the job that was halfway, and what it answered before."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("".join(f"sha256:{hashlib.sha256(name.encode()).hexdigest()}\n" for _, name in LEARNERS))
    folder, options = tmp_path_factory.mktemp("data"), ("--threads", "1", "--api-keys-file", str(keys))
    program = [sys.executable, "-P", "-c", PROGRAM]
    answers = {}
    with server(folder, *options, program=program) as (client, process):
        done = {method: job(client, kind, method) for kind, method in LEARNERS}
        for kind, method in LEARNERS:
            assert finished(client, done[method], headers=key(method))["state"] == "succeeded"
            answers[method] = use(client, kind, method)
        halfway = {method: job(client, kind, method) for kind, method in LEARNERS}
        assert "halfway\n" in process.stdout
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with server(folder, *options) as (client, _):
        yield client, halfway, answers


@pytest.mark.parametrize(("kind", "method"), LEARNERS)
def test_what_was_learned_is_there_and_what_was_half_learned_has_failed_and_left_nothing(restarted, kind, method):
    client, halfway, answers = restarted
    failed = client.get(f"/v1/jobs/{halfway[method]}", headers=key(method)).json()
    assert (failed["state"], failed["error"]["code"]) == ("failed", "server_restarted")
    shape, numbers = apart(use(client, kind, method))
    wanted, expected = apart(answers[method])
    assert shape == wanted
    assert numbers == pytest.approx(expected, abs=1e-5)  # in company pictures are embedded in other batches
    cards = client.get(f"/v1/{PLACE[kind]}", headers=key(method)).json()["data"]
    assert [(card["name"], card["version"]) for card in cards] == [("it", 1)]
