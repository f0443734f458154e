"""Every notebook runs from top to bottom, its own checks hold, and its links point at the lines they name."""

import itertools
import re
import subprocess
import sys

import pytest
import torch

from notebooks.lecture import attention
from notebooks.links import LINK, NOTEBOOKS, PAGES, ROOT, digest_code, find_place, mend, read_markdown
from tests.conftest import make_gpt2

nbformat = pytest.importorskip("nbformat", reason="the notebooks need nbformat: pip install .[test]")
nbclient = pytest.importorskip("nbclient", reason="the notebooks need nbclient: pip install .[test]")

NAMES = [path.stem for path in NOTEBOOKS]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)


def execute(notebook) -> None:
    where = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()


@each_notebook
def test_it_runs(path, monkeypatch):
    """A cell that raises, an assertion included, fails here with the cell and its traceback."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    execute(nbformat.read(path, as_version=4))


def test_a_wrong_check_would_fail():
    """The machinery of test_it_runs does notice an assertion."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        execute(notebook)


@each_notebook
def test_it_is_kept_as_it_ran(path):
    """Outputs of one run of these very cells, from top to bottom and without errors, in a small file."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["code"] == digest_code(path), f"run: python notebooks/run.py {path.stem}"
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [out for cell in cells for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error" or "stderr" in out.values()]
    assert not any(cell.metadata for cell in notebook.cells)
    assert path.stat().st_size < 300_000


@each_notebook
def test_it_teaches(path):
    """An equation first, predictions, checks, three exercises with folded answers, links to the code."""
    notebook, text = nbformat.read(path, as_version=4), read_markdown(path)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    first = notebook.cells[0].source
    assert "$$" in first and "At the end you will know" in first
    assert text.count("**Predict") >= 2 and code.count("assert ") >= 4
    for part in text.split("## Exercises")[1].split("<details>"):
        assert re.findall(r"^(\d)\. ", part, re.MULTILINE) == ["1", "2", "3"]
    assert len(LINK.findall(text)) >= 3


@pytest.mark.parametrize("path", PAGES, ids=["README", *NAMES])
def test_its_links_hold(path):
    """Each piece of code stands on the line that it links to; notebooks/links.py mends what has moved."""
    text = read_markdown(path)
    assert mend(text, path.parent) == text, "run: python notebooks/links.py"
    for target in re.findall(r"\]\(([^)#:]+)[#)]", text):
        assert (path.parent / target).exists(), target
    assert not re.search(r"\.py#L\d+\)", LINK.sub("", text)), "a link to a line must name a piece of it"


def test_a_link_follows_its_line(tmp_path):
    (tmp_path / "a.py").write_text("one = 1\n\ndef two():\n    return one\n")
    (tmp_path / "b.py").write_text("def three():\n    def two(): ...")
    assert mend("[`def two`](a.py#L1) and [x](y)", tmp_path) == "[`def two`](a.py#L3) and [x](y)"
    assert mend("[`def three`](a.py#L1)", tmp_path) == "[`def three`](b.py#L1)"  # it has moved there
    for piece in ("one", "four"):  # in two lines, in none
        with pytest.raises(LookupError):
            find_place(tmp_path / "a.py", piece)


def test_attention_weights_are_the_models():
    """What the pictures of attention show, times the values, is what the blocks' attention puts out."""
    lm, caught = make_gpt2(), []
    hook = lm.h[1].attn.c_proj.register_forward_hook(lambda _, given, __: caught.append(given[0]))
    cache = lm.empty_cache(1)
    cache.splice(torch.randn(3, 2 * 2 * 32))
    weights = attention(lm, [5, 6, 7, 8], cache)
    hook.remove()
    ours = (weights[1] @ cache.values[1][0]).transpose(0, 1).flatten(1)  # (T, C)
    assert torch.allclose(ours, caught[0][0], atol=1e-5)
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


def test_the_course_is_whole():
    """Notebooks 1 to 9 in order, each with a link to the next."""
    assert [name.split("_")[0] for name in NAMES] == [str(i) for i in range(1, 10)]
    for path, following in itertools.pairwise(NOTEBOOKS):
        assert f"]({following.name})" in read_markdown(path)


def test_the_readme_leads_from_each_equation_to_its_line_and_its_notebook():
    text = read_markdown(ROOT / "README.md")
    rows = [line for line in text.splitlines() if re.match(r"\| (Eq|Sec)\. ", line)]
    assert all(LINK.search(row) for row in rows)
    assert {re.search(r"\(notebooks/(\S+)\.ipynb\)", row)[1] for row in rows} == set(NAMES)
    assert all(f"Eq. {number}" in text for number in (1, 2, 3))


def test_the_readme_knows_the_package():
    text = read_markdown(ROOT / "README.md")
    command = [sys.executable, ".ci/count_lines.py"]
    counted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    lines = int(re.search(r"(\d+)  code lines in minprefix,", counted)[1])
    assert f"has {lines:,} lines of code" in text
    files = {path.name for path in (ROOT / "minprefix").glob("*.py")} - {"__init__.py"}
    assert files <= set(re.findall(r"`(\w+\.py)`", text))
