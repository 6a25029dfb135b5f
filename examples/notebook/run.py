"""Run the notebook without a browser and keep what its cells show: `pip install nbclient ipykernel`, then

python examples/notebook/run.py [FOLDER]

FOLDER is where `make demo` has been; default: the current folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("analysis.ipynb")


def run(folder: Path) -> None:
    """All cells in `folder`; an exception of one is raised. Figures are kept as data: plotly.js is 5 MB in each."""
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ from run to run
        if cell.cell_type == "code":  # without progress
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    text = nbformat.writes(notebook).replace(f"{folder.resolve()}/", "")
    NOTEBOOK.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    run(Path(sys.argv[1] if sys.argv[1:] else "."))
