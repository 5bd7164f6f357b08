"""`covervlm cluster` groups files by the aspect that is named."""

import pytest

from covervlm.clients import Client
from covervlm.clients.jobs import Jobs
from tests.server.api.clip_app import COLORS

ASPECT = ("--aspect", "color", "--words", ",".join(COLORS), "--prompt", "a photo of something *", "--clusters", "3")


def test_every_picture_is_in_one_group_as_by_the_client(served, folder, report):
    found = report("cluster", "--url", served, folder, *ASPECT, "--seed", "3")
    paths = sorted(folder.glob("*.png"))
    with Client(served) as client:
        job = client.cluster(paths, "color", words=COLORS, prompt="a photo of something *", clusters=3, seed=3)
        expected = client.jobs.wait(job)
    assert [group["name"] for group in found["clusters"]] == [cluster.name for cluster in expected.clusters]
    for number, group in enumerate(found["clusters"]):
        members = [str(path) for path, label in zip(paths, expected.labels, strict=True) if label == number]
        assert (group["images"], group["size"]) == (members, len(members))
    assert (found["aspect"], found["words"], found["silhouette"]) == ("color", list(COLORS), expected.silhouette)


def test_methods_and_their_parameters_are_those_of_the_server(served, folder, run, capsys):
    method = ("--method", "multi_sub", "--set", "rounds=1", "align_epochs=2", "--set", "balance=0.25")
    assert run("cluster", "--url", served, folder, *ASPECT, *method)[0] == 0
    status, _, err = run("cluster", "--url", served, folder, *ASPECT, *method, "epochs=3")
    assert (status, "parameters.epochs" in err) == (1, True)
    assert run("cluster", folder, *ASPECT, "--set", "rounds=many")[0] == 2
    assert run("cluster", folder, *ASPECT, "--method", "magic")[0] == 2


def test_a_model_of_its_own_groups_too(scripted, served, folder, run):
    own = run("cluster", folder, *ASPECT)
    assert own == run("cluster", "--url", served, folder, *ASPECT)
    status, out, err = own
    assert (status, err) == (0, "")
    assert sorted(line.strip() for line in out.splitlines() if line.startswith("  ")) == [
        str(path) for path in sorted(folder.glob("*.png"))
    ]


def test_pictures_that_cannot_be_used_are_left_out_and_listed_at_the_end(served, folder, broken, run):
    whole = run("cluster", "--url", served, folder, *ASPECT)[1]
    status, out, err = run("cluster", "--url", served, broken, *ASPECT)
    assert status == 1
    assert out.replace(str(broken), str(folder)) == whole
    assert f"{broken}/03b.png: " in err
    assert f"{broken}/zz.jpg: The data is not an image" in err
    assert err.endswith("2 of the pictures could not be used\n")


def test_what_the_server_remarks_is_passed_on(served, folder, run, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes((folder / "00.png").read_bytes())
    status, out, err = run("cluster", "--url", served, tmp_path, "--aspect", "color", "--words", "red,blue")
    assert (status, out.count("\n  ")) == (0, 3)
    assert err == "All images are equal, so there is one cluster, and no silhouette.\n"


def test_an_interrupt_cancels_the_job_on_the_server(served, folder, run, monkeypatch):
    def interrupted(self, job, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Jobs, "wait", interrupted)
    assert run("cluster", "--url", served, folder, *ASPECT)[0] == 130
    monkeypatch.undo()
    with Client(served) as client:
        newest = client.jobs.list()[-1]
        assert list(client.jobs.watch(newest))[-1].state in ("cancelled", "succeeded")
        assert newest.kind == "clustering"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["{folder}/00.png"], 2, "there is only one picture"),
        (["{folder}/00.png", "{folder}/notes.txt"], 1, "notes.txt: The data is not an image"),
        (["{folder}/00.png", "{folder}/notes.txt"], 1, "1 of the pictures could not be used"),
        (["{folder}", "--clusters", "13"], 1, "13 clusters cannot be made of 12 images"),
    ],
)
def test_what_is_wrong_is_told(served, folder, run, arguments, status, words):
    done = run(
        "cluster", "--url", served, *(a.format(folder=folder) for a in arguments), "--aspect", "color", "--words", "a,b"
    )
    assert (done[0], done[1]) == (status, "")
    assert words in done[2]
