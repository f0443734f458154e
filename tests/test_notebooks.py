"""Every page runs from top to bottom, its own checks hold, and its links point at the lines they name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from notebooks.lecture import attention
from notebooks.links import (
    LINK,
    NOTEBOOKS,
    REPOSITORY,
    ROOT,
    SERVED,
    SERVICES,
    digest_code,
    find_place,
    mend,
    mend_head,
    read_markdown,
)
from tests.conftest import make_gpt2

nbformat = pytest.importorskip("nbformat", reason="the notebooks need nbformat: pip install .[test]")
nbclient = pytest.importorskip("nbclient", reason="the notebooks need nbclient: pip install .[test]")

COURSE = ["0_it_works", "1_cache", "2_loss", "3_prefix", "4_inside", "5_what_is_free", "6_training"]
COURSE += ["7_many_users", "8_the_paper", "9_forty_lines", "10_today", "a_bart", "b_beam_search"]
NAMES = [path.stem for path in NOTEBOOKS]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
THERE = [ROOT / "notebooks" / f"{name}.ipynb" for name in COURSE if name in NAMES]
each_page = pytest.mark.parametrize("path", THERE, ids=[path.stem for path in THERE])


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


@each_page
def test_it_teaches(path):
    """A goal, predictions, checks, exercises with folded answers, and cells that fit on a screen."""
    notebook, text = nbformat.read(path, as_version=4), read_markdown(path)
    number = path.stem.split("_")[0].upper()
    assert text.startswith(f"# {number}. ") and "At the end you will know" in text
    assert text.count("**Predict") >= 2
    assert "<details>" in text.split("## Exercises")[1]
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(source.count("assert ") for source in code) >= 2
    assert [source for source in code if len(source.splitlines()) > 15] == []


@each_page
def test_it_can_be_run_without_an_installation(path):
    """The head has the links to Binder and Colab that notebooks/links.py writes."""
    head = nbformat.read(path, as_version=4).cells[0].source
    assert mend_head(head, path.name) == head, "run: python notebooks/links.py"
    for service in SERVICES.values():
        assert re.search(rf"https://{service}/{REPOSITORY}/\S*{path.name}\)", head)


def test_a_head_is_written_once():
    bare = "# 1. A page\n\n$$x$$\n\nText."
    head = mend_head(bare, "1_page.ipynb")
    assert head.startswith("# 1. A page\n\n<details><summary>▶ Run") and head.endswith("\n\n$$x$$\n\nText.")
    moved = head.replace(REPOSITORY, "another/one")
    assert mend_head(head, "1_page.ipynb") == mend_head(moved, "1_page.ipynb") == head


def test_what_binder_builds_is_there():
    """binder/ installs the package with what the pages import; mybinder.org reads these two names."""
    wanted = (ROOT / "binder" / "environment.yml").read_text(encoding="utf-8")
    script = ROOT / "binder" / "postBuild"
    assert re.search(r"^ +- pytorch", wanted, re.MULTILINE) and re.search(r"^ +- pip$", wanted, re.MULTILINE)
    assert '-e ".[notebooks]"' in script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK) or sys.platform == "win32"


@pytest.mark.parametrize("path", [ROOT / "README.md", *THERE], ids=lambda path: path.stem)
def test_its_links_hold(path):
    """Each piece of code stands on the line that it links to; notebooks/links.py mends what has moved."""
    text = read_markdown(path)
    assert mend(text, path.parent) == text, "run: python notebooks/links.py"
    for target in re.findall(r"\]\(([^)#:]+)[#)]", text):
        assert (path.parent / target).exists() or Path(target).stem in COURSE, target
    for link in SERVED.finditer(text):
        assert link[0].endswith(f"/{REPOSITORY}/"), "run: python notebooks/links.py"
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


def test_the_course_has_an_order():
    """Each page links to the next one."""
    for path in THERE:
        following = COURSE[COURSE.index(path.stem) + 1 :][:1]
        assert all(f"]({name}.ipynb)" in read_markdown(path) for name in following), following


def test_the_readme_leads_from_each_equation_to_its_line_and_its_notebook():
    text = read_markdown(ROOT / "README.md")
    rows = [line for line in text.splitlines() if re.match(r"\| (Eq|Sec)\. ", line)]
    assert all(LINK.search(row) for row in rows)
    assert {re.search(r"\(notebooks/(\S+)\.ipynb\)", row)[1] for row in rows} <= {*COURSE, *NAMES}
    assert all(f"Eq. {number}" in text for number in (1, 2, 3))


def test_the_readme_knows_the_package():
    text = read_markdown(ROOT / "README.md")
    command = [sys.executable, ".ci/count_lines.py"]
    counted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    lines = int(re.search(r"(\d+)  code lines in minprefix,", counted)[1])
    assert f"has {lines:,} lines of code" in text
    files = {path.name for path in (ROOT / "minprefix").glob("*.py")} - {"__init__.py"}
    assert files <= set(re.findall(r"`(\w+\.py)`", text))
