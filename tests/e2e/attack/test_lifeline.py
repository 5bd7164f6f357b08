"""The harness leaves no process behind, however it ends."""

import os
import select
import subprocess
import sys

from tests.e2e.attack import process
from tests.e2e.attack.children import ROOT

HARNESS = """
from tests.e2e.attack.children import child

attacking, bystander = child("attacking"), child("bystander")
attacking.reply({"do": "replay", "pace": [1, 1], "seconds": 0.1}, 60)
bystander.line(0, 60)
print("begun", flush=True)
input()
"""


def test_a_harness_that_is_killed_takes_attacker_sink_and_bystander_with_it():
    harness = subprocess.Popen(
        [sys.executable, "-c", HARNESS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with harness:
        assert harness.stdout is not None
        assert harness.stdout.readline() == "begun\n"
        below = process.tree(harness.pid)[1:]
        ends = [os.pidfd_open(pid) for pid in below]
        harness.kill()
        harness.wait(30)
    left = [pid for pid, end in zip(below, ends, strict=True) if not select.select([end], [], [], 30)[0]]
    for end in ends:
        os.close(end)
    assert len(below) == 3
    assert not left
