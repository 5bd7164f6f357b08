"""Every image-text architecture of transformers is served, or said not to be, with the reason."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from covervlm.server.engines.table import architectures_table
from covervlm.server.models.registry import ARCHITECTURES, UNSERVED, adapter_class

DOCS = Path(__file__).parents[3] / "docs" / "architectures.md"


def names():
    """transformers names one class, or several, for a type of model."""
    for value in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        yield from [value] if isinstance(value, str) else value


def test_every_architecture_of_the_installed_transformers_is_in_the_table():
    missing = set(names()) - set(ARCHITECTURES) - set(UNSERVED)
    assert not missing, "serve them, or say in server/models/unserved.py why not"
    assert set(ARCHITECTURES) <= set(names())


def test_no_architecture_is_served_and_said_not_to_be():
    assert not set(ARCHITECTURES) & set(UNSERVED)


def test_the_documentation_has_the_table_as_it_is():
    assert architectures_table() in DOCS.read_text()


@pytest.mark.parametrize("name", ["MllamaForConditionalGeneration", "Qwen3_5ForConditionalGeneration"])
def test_a_checkpoint_that_is_not_served_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=rf"{name} is not supported: {UNSERVED[name]}; supported are Llava"):
        adapter_class(SimpleNamespace(architectures=[name]))
