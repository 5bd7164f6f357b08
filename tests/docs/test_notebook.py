"""The notebook runs from top to bottom in a fresh kernel, and prints what is printed in it."""

from copy import deepcopy
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "docs" / "agreement.ipynb"

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def stored():
    import nbformat

    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.fixture(scope="module")
def executed(stored):
    from nbclient import NotebookClient

    notebook = deepcopy(stored)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": PATH.parent}}
    return NotebookClient(notebook, timeout=1500, kernel_name="python3", resources=resources).execute()


def printed(notebook):
    """What each cell prints, without the progress of loading a model."""
    return [
        "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def pictures(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in cells]


def test_it_prints_what_is_printed_in_it(stored, executed):
    assert printed(executed) == printed(stored)


def test_it_shows_the_kept_patches_and_ends_with_a_plot(stored, executed):
    assert pictures(executed) == pictures(stored)
    assert [number for number, count in enumerate(pictures(executed)) if count] == [2, len(pictures(executed)) - 2]
