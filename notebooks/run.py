"""Runs notebooks and keeps them as they are committed: python notebooks/run.py [NAME ...] (default: all)

Outputs of one run, no times, pictures with 256 colours. Needs the extra `notebooks`.
"""

import base64
import io
import os
import sys
from pathlib import Path

import nbformat
from links import NOTEBOOKS, ROOT, digest_code, mend_file
from nbclient import NotebookClient
from PIL import Image

FOLDER = ROOT / "notebooks"


def run(path: Path) -> None:
    """Executes a notebook and writes it back; an error leaves the file as it was."""
    notebook, code = nbformat.read(path, as_version=4), digest_code(path)
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(
        notebook, kernel_name="python3", record_timing=False, coalesce_streams=True, resources=where
    ).execute()
    notebook.metadata.language_info = {"name": "python"}  # without the version that happened to run it
    notebook.metadata.code = code
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = squeeze(output.data["image/png"])
    nbformat.write(notebook, path)
    mend_file(path)


def squeeze(png: str) -> str:
    """A base64 PNG with at most 256 colours, a third of the size."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256, dither=0)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)  # so that the kernel has this minprefix, and tasks
    for name in sys.argv[1:] or [path.stem for path in NOTEBOOKS]:
        run(FOLDER / f"{Path(name).stem}.ipynb")
        print(f"ran {name}")
