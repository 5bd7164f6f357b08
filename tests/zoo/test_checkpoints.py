"""The zoo has a checkpoint of every architecture that is served."""

import json

from covervlm.server.models.registry import ARCHITECTURES
from tests.zoo.checkpoints import ZOO


def test_every_supported_architecture_has_a_checkpoint_here(specimens):
    configs = [json.loads((specimens(name).path / "config.json").read_text()) for name in ZOO]
    assert {name for config in configs for name in config["architectures"]} == set(ARCHITECTURES)
