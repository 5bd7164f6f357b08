"""Which implementation a call gets, and that it is looked for once."""

from importlib.util import find_spec

import pytest
import torch

from covervlm.kernels import affinity_cpu, affinity_torch, backends, greedy_numba, greedy_torch
from covervlm.kernels.backends import load_backend

CPU = torch.device("cpu")


@pytest.fixture
def searched(monkeypatch):
    """The packages that are looked for from now on, in order; the memory of before and after is left out."""
    packages = []
    monkeypatch.setattr(backends, "find_spec", lambda name: packages.append(name) or find_spec(name))
    load_backend.cache_clear()
    yield packages
    load_backend.cache_clear()


def test_each_kernel_name_and_device_gets_its_own_module(searched):
    for _ in range(2):
        assert load_backend("affinity", "auto", CPU) is affinity_cpu
        assert load_backend("greedy", "auto", CPU) is greedy_numba
        assert load_backend("affinity", "torch", CPU) is affinity_torch
        assert load_backend("greedy", "torch", CPU) is greedy_torch
        assert load_backend("greedy", "auto", torch.device("meta")) is greedy_torch


def test_packages_are_looked_for_once_and_not_on_every_call(searched):
    found = [load_backend("greedy", "auto", CPU) for _ in range(3)]
    assert found == [greedy_numba] * 3
    assert searched == ["numba"]


def test_plain_torch_runs_where_numba_is_not_installed(searched, monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert load_backend("greedy", "auto", CPU) is greedy_torch
    assert load_backend("affinity", "auto", CPU) is affinity_cpu


def test_plain_torch_runs_where_numba_is_installed_but_cannot_be_imported(searched, monkeypatch, caplog):
    monkeypatch.setitem(backends._MODULES["greedy"], "numba", "covervlm.kernels.no_such_module")
    assert load_backend("greedy", "auto", CPU) is greedy_torch
    assert "numba cannot be used" in caplog.text


def test_a_refusal_is_not_remembered(searched, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for _ in range(2):
        with pytest.raises(ValueError, match="'triton' works on cuda tensors, got tensors on cpu"):
            load_backend("greedy", "triton", CPU)
    monkeypatch.setitem(backends._MODULES["greedy"], "triton", "covervlm.kernels.greedy_torch")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert load_backend("greedy", "triton", CPU) is greedy_torch
