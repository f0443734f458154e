"""The rules of the house: who imports whom, and what stands where."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = {path.stem: path for path in (ROOT / "minprefix").glob("*.py")}
PROGRAMS = [*PACKAGE.values(), *(ROOT / "tasks").glob("*.py"), ROOT / "train.py", ROOT / "sample.py"]

# Each room of the package, and those below it that it may use. Who is not named here has no place yet.
BELOW = {
    "checks": "",
    "cache": "checks",
    "layers": "checks cache",
    "decoder": "cache layers",
    "gpt2": "checks cache layers decoder",
    "llama": "checks cache layers decoder",
    "bart": "checks cache layers decoder",
    "tokenizer": "checks",
    "prefix": "checks cache",
    "store": "checks prefix",
    "hub": "checks layers gpt2 bart llama tokenizer prefix store",
    "generate": "checks cache",
    "texts": "checks generate",
    "methods": "checks cache generate prefix",
    "peft": "checks layers prefix store hub",
    "config": "checks generate prefix",
    "ranks": "checks",
    "__init__": "checks generate hub peft store",
}


def name_imports(path: Path) -> set[str]:
    """In full: "minprefix.cache.Cache", "torch"."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", PACKAGE)
def test_imports_go_one_way(room):
    above = {"tasks", "train", "sample", "experiments", "weights", "notebooks", "tests"}
    imports = [name.split(".") for name in name_imports(PACKAGE[room])]
    assert not above & {name[0] for name in imports}
    assert {name[1] for name in imports if name[0] == "minprefix"} <= set(BELOW[room].split())


def test_no_room_is_above_itself():
    rooms = list(BELOW)
    assert all(rooms.index(other) < rooms.index(room) for room in rooms for other in BELOW[room].split())


def test_tasks_use_the_checks_and_the_writing_of_files_alone():
    imports = {name for path in (ROOT / "tasks").glob("*.py") for name in name_imports(path)}
    ours = {name for name in imports if name.startswith("minprefix")}
    assert ours and all(
        name.startswith("minprefix.checks.") for name in ours - {"minprefix.store.write_atomically"}
    )
    assert not {"train", "sample", "experiments", "tests"} & {name.split(".")[0] for name in imports}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_it_runs_on_windows_and_asks_no_model_for_its_kind(path):
    """Locks are filelock's; what differs between models is a method, once hub.py has made them."""
    assert not {"fcntl", "msvcrt"} & name_imports(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "isinstance",
            "issubclass",
            "type",
        ):
            names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node)}
            assert path.name == "hub.py" or not names & {"GPT2", "BART", "Llama", "lm"}, f"line {node.lineno}"


EQUATIONS = {  # a citation, and what stands on its line
    "Eq. 1": "h_i = LM_phi(z_i, h_<i)",
    "Eq. 1: p": "softmax(W_phi h_i^(n))",
    "Eq. 2": "sum_{i in Y_idx} log p",
    "Eq. 3": "P_theta[i, :]",
    "Sec. 4.3": "MLP_theta(P'_theta[i, :])",
    "Sec. 5.2": "W_up relu(W_down",
    "Sec. 5.3": "sum log p / |y|^alpha",
    "Sec. 7.2": "embeddings",
    "Sec. 7.3": "[x; INFIX; y]",
    "Sec. 7.4": "real words",
    "Sec. 8": "sum_m p_m",
    "Distillation": "KL(p(y | text, x) || p(y | P_theta, x))",
}


@pytest.mark.parametrize("citation", EQUATIONS)
def test_every_equation_is_a_line_that_can_be_found(citation):
    lines = [line for path in PACKAGE.values() for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if citation in line and EQUATIONS[citation] in line]


def test_the_package_knows_no_data_set_but_the_default():
    known = re.compile(r"\b(e2e|webnlg|dart|xsum|bbc|restaurants?)\b", re.IGNORECASE)
    lines = [
        (room, line)
        for room, path in PACKAGE.items()
        for line in path.read_text(encoding="utf-8").split("\n")
    ]
    found = [(room, line.split(":")[0].strip()) for room, line in lines if known.search(line)]
    assert found == [("config", "dataset")]
