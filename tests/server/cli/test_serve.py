"""What `covervlm serve` tells people: its help and its banner."""

import re

import pytest

from covervlm.pruners import pruner_names
from covervlm.server.serving import banner
from covervlm.server.settings import SECTIONS, Settings


@pytest.fixture
def explained(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    status, out, _ = run("serve", "--help")
    assert status == 0
    return out


def test_help_has_every_option_under_its_title_with_a_text(explained):
    titles = [line.rstrip(":") for line in explained.splitlines() if re.fullmatch(r"[a-zA-Z].*:", line)]
    assert [title for title in titles if title in SECTIONS] == list(SECTIONS)
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"  --{name.replace('_', '-')}" in explained


def test_help_names_values_as_a_person_would(explained):
    values = set(re.findall(r"^  --[a-z-]+ ([^ \n]+)", explained, re.MULTILINE))
    words = {value for value in values if not value.startswith(("{", "--no-"))}
    assert words >= {"N", "SIZE", "SECONDS", "MODEL", "KEY,..."}
    assert all(re.fullmatch(r"[A-Z]+(,\.\.\.)?", word) for word in words), words
    assert "default: None" not in explained
    assert "(default: 512MiB)" in explained


def test_help_names_the_pruning_methods(explained):
    text = " ".join(explained.split())
    assert f"names none: {', '.join(pruner_names()[:-1])} or {pruner_names()[-1]} (default: mmtok)" in text


def test_the_banner_names_the_page_and_a_request():
    text = banner(Settings(), "http://127.0.0.1:8000")
    assert "covervlm serves demo on http://127.0.0.1:8000\n" in text
    assert "http://127.0.0.1:8000/\n" in text
    assert "Authorization" not in text
    assert '"model": "my-llava"' in banner(Settings(model="x", served_model_name="my-llava"), "http://127.0.0.1:8000")


def test_the_banner_says_where_a_server_listens_on_every_address():
    url = "http://127.0.0.1:8000"
    assert "every address of this machine" in banner(Settings(), url, everywhere=True)
    assert "every address" not in banner(Settings(), url)


def test_the_banner_of_a_server_with_keys_has_a_request_that_carries_one_without_showing_it():
    text = banner(Settings(api_key="sesame"), "http://127.0.0.1:8000")
    assert '-H "Authorization: Bearer $COVERVLM_API_KEY"' in text
    assert "sesame" not in text
