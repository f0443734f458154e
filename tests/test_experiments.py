"""The grid runner and the report, on the bundled sample, a tiny random model and made-up results."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train
from experiments import claims, run
from experiments.artefacts import MINI, PAPER, Cell, choose_runs, make_artefacts, read_runs
from minprefix.config import parse_config
from minprefix.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = ["dataset=e2e", "data=sample", "method=prefix", "prefix_len=2", "mlp_hidden=4", "max_steps=2"]
TINY += ["batch_size=2", "n_train=6", "dev_limit=2", "eval_limit=2", "max_new_tokens=4", "beams=2"]


@pytest.fixture
def cell(tiny_folder, tmp_path) -> Cell:
    settings = (*TINY, f"model={tiny_folder}")
    return Cell("tiny", settings, (0.01, 0.02), tmp_path / "grid", runs=2, alphas=(1.0, 2.0), dev=2)


def start(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.run", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_a_grid_runs_all_rates_and_then_the_chosen_one_with_more_seeds(cell, capsys):
    run.run_grid("grid", {"tiny": cell}, 1000)
    runs = read_runs(cell)
    best = min((0.01, 0.02), key=lambda lr: runs[lr, 0]["dev_loss"][-1][1])
    assert set(runs) == {(0.01, 0), (0.02, 0), (best, 1)}
    assert [found["config"]["seed"] for found in choose_runs(runs)] == [0, 1]
    found = runs[best, 1]
    assert found["config"]["lr"] == best and found["config"]["max_steps"] == 2
    assert found["stored_numbers"] == 2 * 2 * 16 and found["trained_numbers"] > 64
    assert found["stored_bytes"] == cell.path(best, 1).with_suffix(".pt").stat().st_size
    assert found["peak_memory_bytes"] > 1e6 and found["tokens_per_second"] > 0
    assert found["dev_loss"][-1][0] == 2 and set(found["dev_by_length_penalty"]) == {"1", "2"}
    assert found["test"]["records"] == 2 and "CIDEr" in found["test"] and len(found["texts"]) == 2
    assert found["commit"] and found["command"] == f"python -m experiments.run grid tiny={best:g} seeds=2"
    capsys.readouterr()
    run.run_grid("grid", {"tiny": cell}, 1000)
    assert capsys.readouterr().out == "", "a finished cell is not run again"
    run.print_table({"tiny": cell})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[1].split()[:3] == ["tiny", f"{best:g}", "0"] and "BLEU" in lines[1]


def test_a_claimed_cell_is_left_to_the_process_that_has_it(cell, capsys):
    with run.claim(cell.path(0.01, 0)) as mine, run.claim(cell.path(0.02, 0)):
        assert mine
        with run.claim(cell.path(0.01, 0)) as other:
            assert not other
        run.run_grid("grid", {"tiny": cell}, 1)
    assert not read_runs(cell) and "2 cells are left" in capsys.readouterr().out
    with run.claim(cell.path(0.01, 0)) as mine:
        assert mine, "the claim ends with its holder"


def test_a_stopped_cell_goes_on_where_it_was(cell, monkeypatch):
    cell = dataclasses.replace(cell, rates=(0.01,), runs=1)
    run.run_grid("grid", {"tiny": cell}, 1)
    whole = read_runs(cell)[0.01, 0]
    other = dataclasses.replace(cell, folder=cell.folder.parent / "other")
    take_step, taken = train.take_step, []

    def stop_at_the_second(*arguments):
        taken.append(arguments)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return take_step(*arguments)

    monkeypatch.setattr(train, "take_step", stop_at_the_second)
    monkeypatch.setattr(train.Keeper, "is_due", lambda keeper: True)
    with pytest.raises(KeyboardInterrupt):
        run.run_grid("other", {"tiny": other}, 1)
    assert not read_runs(other)
    run.run_grid("other", {"tiny": other}, 1)
    part = read_runs(other)[0.01, 0]
    assert len(taken) == 3 and part["resumed_at_step"] == 1
    assert [part[key] for key in ("loss", "dev_loss", "test", "texts")] == [
        whole[key] for key in ("loss", "dev_loss", "test", "texts")
    ]
    assert {path.suffix for path in other.folder.iterdir()} == {".json", ".pt", ".lock"}


def test_a_state_of_other_settings_is_refused(cell):
    path = cell.path(0.01, 0)
    path.parent.mkdir()
    config = parse_config([*cell.arguments(0.01, 0), f"out={path.with_suffix('.pt')}", "batch_size=3"])
    lm, tokenizer = run.load_lm(config.model)
    train.train(config, lm, tokenizer, run.find_files("e2e", "sample"))
    with pytest.raises(InputError, match="begun with other settings"):
        run.run_grid("grid", {"tiny": cell}, 1)


def test_the_lead_baseline_is_the_first_sentence(cell):
    lead = dataclasses.replace(cell, rates=())
    run.run_grid("grid", {"lead": lead}, 1)
    found = read_runs(lead)[0.0, 0]
    assert found["texts"][0]["text"] == run.first_sentence(found["texts"][0]["source"])
    assert run.first_sentence('Mr. "No." She left. He stayed.') == "Mr."
    assert run.first_sentence("It cost £3.50 in all. He paid.") == "It cost £3.50 in all."
    assert run.first_sentence("no full stop") == "no full stop"


def test_real_data_is_asked_for(cell, monkeypatch, tmp_path):
    monkeypatch.setenv("MINPREFIX_DATA", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    cell = dataclasses.replace(cell, settings=tuple(s for s in cell.settings if s != "data=sample"))
    with pytest.raises(InputError, match="set MINPREFIX_DATA"):
        run.run_grid("grid", {"tiny": cell}, 1)


def test_an_unknown_name_is_one_sentence_and_exit_code_2():
    result = start("table9")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "unknown artefact 'table9': choose one of e2e, table2" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table5", "prefix-11"], "table5 has no cell 'prefix-11': choose from"),
        (["table5", "prefix-10=fast"], "prefix-10=fast must be a number above 0"),
    ],
)
def test_unknown_cells_and_rates_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        run.main(arguments)


def test_cells_and_rates_can_be_named():
    name, cells, seeds = run.parse(["table5", "seeds=2", "prefix-10=0.003", "prefix-10=0.001", "infix-1"])
    assert (name, seeds, list(cells)) == ("table5", 2, ["prefix-10", "infix-1"])
    assert cells["prefix-10"].rates == (0.003, 0.001) and cells["infix-1"].rates == MINI.rates["infix"][:1]


@pytest.mark.parametrize("scale", [MINI, PAPER])
def test_every_cell_is_a_setting_that_train_understands(scale):
    for artefact, cells in make_artefacts(scale).items():
        for cell in cells.values():
            for lr in cell.rates or (0.0,):
                config = parse_config(cell.arguments(lr, 3))
                assert config.lr == lr or not cell.rates
            paper = config.model in ("gpt2-medium", "facebook/bart-large")
            assert paper == (scale is PAPER), (artefact, cell)
            assert paper != bool(config.max_steps) or artefact == "costs" or config.lr < 1e-6
            assert config.subset == (1 if cell.subsets else 0)


def test_cells_of_equal_settings_share_their_results():
    artefacts = make_artefacts(MINI)
    shared = artefacts["fig4"]["prefix-10"]
    assert shared.path(0.002, 0) == artefacts["table5"]["prefix-10"].path(0.002, 0)
    assert shared.path(0.002, 0) == MINI.folder / "table2" / "e2e-prefix-0.002-0.json"
    lead = artefacts["table3"]["lead"].path(0.0, 0)
    assert lead.name == "lead-0-0.json", "the baseline is not the method whose settings it has"


def test_names_that_begin_alike_are_kept_apart(tmp_path):
    for name in ("prefix-1-0.002-0", "prefix-10-0.002-0", "prefix-1-5e-05-1", "prefix-0.1-0"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name}))
    cell = Cell("prefix-1", (), (0.002, 5e-5), tmp_path)
    assert set(read_runs(cell)) == {(0.002, 0), (5e-05, 1)}
    assert set(read_runs(dataclasses.replace(cell, name="prefix", rates=(0.1,)))) == {(0.1, 0)}


def test_a_rate_that_the_grid_has_no_more_does_not_count(tmp_path):
    (tmp_path / "prefix-0.004-0.json").write_text("{}")
    assert not read_runs(Cell("prefix", (), (0.002,), tmp_path))


def test_committed_results_are_of_the_settings_that_the_cells_have():
    """Or a change of the settings would go unseen, for a cell that has its file is not run again."""
    for artefact, cells in make_artefacts(MINI).items():
        for cell in cells.values():
            for (lr, seed), result in read_runs(cell).items():
                config = dataclasses.asdict(parse_config(cell.arguments(lr, seed))) | {"out": ""}
                path = cell.path(lr, seed)
                assert result["config"].items() <= config.items(), (
                    artefact,
                    path,
                )  # old files have fewer keys


def make_result(cell: Cell, lr: float, seed: int, **test: float) -> None:
    """A JSON file as run.py writes it."""
    path = cell.path(lr, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = test.get("BLEU", test.get("ROUGE-L"))
    result = {
        "config": dataclasses.asdict(parse_config([*cell.arguments(lr, seed)])),
        "dev": {"BLEU": figure - lr, "records": 60},
        "test": {"records": 120} | test,
        "loss": [[10, 3.0], [20, 2.0]],
        "dev_loss": [[10, 3.0], [20, 2.5 - 100 * lr]],
        "seconds": 60,
        "trained_numbers": 1000 if "prefix" in cell.name else 9000,
        "stored_numbers": 10 if "prefix" in cell.name else 9000,
        "stored_bytes": 40,
        "tokens_per_second": 300 if "prefix" in cell.name else 100,
        "peak_memory_bytes": 10**8,
        "machine": "a machine",
    }
    path.write_text(json.dumps(result))


def test_the_report_draws_what_there_is_and_judges_it(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra experiments")
    from experiments import report

    scale = dataclasses.replace(MINI, folder=tmp_path)
    artefacts = make_artefacts(scale)
    for seed, score in enumerate((50.0, 51.0, 52.0)):
        make_result(artefacts["table2"]["e2e-prefix"], 0.002, seed, BLEU=score)
        make_result(artefacts["table2"]["e2e-full"], 0.001, seed, BLEU=score + 1)
    make_result(artefacts["table2"]["e2e-prefix"], 0.001, 0, BLEU=20.0)
    for seed in range(6):  # three subsets
        for n, prefix, full in ((50, 30, 20), (100, 30, 31)):
            make_result(artefacts["fig3"][f"prefix-{n}"], 0.002, seed, BLEU=prefix + float(seed % 2))
            rate = artefacts["fig3"][f"full-{n}"].rates[0]
            make_result(artefacts["fig3"][f"full-{n}"], rate, seed, BLEU=float(full))
    make_result(artefacts["table5"]["infix-10"], 0.002, 0, BLEU=60.0)
    interval = {"ROUGE-L low": 9.0, "ROUGE-L high": 11.0}
    make_result(artefacts["table3"]["prefix-large"], 0.002, 0, **{"ROUGE-L": 10.0} | interval)
    make_result(artefacts["table3"]["full"], 0.0005, 0, **{"ROUGE-L": 14.0})
    for name, seed in itertools.product(("prefix", "full"), range(3)):
        make_result(artefacts["costs"][name], artefacts["costs"][name].rates[0], seed, BLEU=1.0)
    text = report.write_report(scale).read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}

    def verdict(start: str) -> str:
        return next(line for line in text.splitlines() if f" | {start}" in line).split("**")[-2]

    part = " (not all of it was run)"
    assert verdict("With all of the data, prefix-tuning") == f"holds{part}"
    assert "| E2E (as good) | -1.0 ± 0.0 | +1.5 | yes | +0.10 ± 0.00 | yes |" in text  # -1 is above -1.5
    assert verdict("With few examples it is") == f"mixed{part}"
    assert "| n = 50 | +10.5 ± 0.0 |  | yes |" in text and "| n = 100 | -0.5 ± 0.0 |  | no |" in text, (
        "means of three subsets"
    )
    assert verdict("A prefix is better than an infix") == f"undecided{part}", "one seed is too few"
    assert "| prefix - infix, length 10 | -10.0 | +3.1 | unclear | +0.00 | unclear |" in text
    assert "| XSum (as good) | -4.0 | -1.2 | unclear |" in text
    assert verdict("It costs less") == "holds partly", "numbers and speed, not memory"
    assert rows["e2e-prefix"].split(" | ")[1:4] == ["0.002", "3", "51.00 ± 1.00 (70.3)"]
    assert "10.00 [9.00, 11.00] (36.05)" in rows["prefix-large"]
    assert rows["table2/e2e-prefix"].endswith("0.001: 2.400, **0.002: 2.300** |")
    assert "- fig6, prefix-10: 0 of 3 seeds, 0 of 3 learning rates are there" in text.split("## Not run")[1]
    pictures = {path.name for path in tmp_path.glob("*.svg")}
    # e2e-prefix is a point of Figs. 4 and 5, too
    assert pictures == {"claims.svg", "fig3.svg", "fig4.svg", "fig5.svg"}
    before = (tmp_path / "claims.svg").read_bytes()
    report.write_report(scale)
    assert (tmp_path / "claims.svg").read_bytes() == before, "the same results are the same picture"


def test_remarks_on_the_bundled_models_are_not_made_on_the_papers(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra experiments")
    from experiments import report

    for scale, remarked in ((MINI, True), (PAPER, False)):
        scale = dataclasses.replace(scale, folder=tmp_path / str(remarked))
        cells = make_artefacts(scale)["table2"]
        for name in ("e2e-prefix", "e2e-full"):
            make_result(cells[name], cells[name].rates[0], 0, BLEU=60.0)
        text = report.write_report(scale).read_text()
        assert (claims.WEAK in text) == (report.GRID_NOTE in text) == (report.SHORT in text) == remarked
        assert ("experiments.run table2 paper`" in text) != remarked


def test_the_committed_report_is_of_the_committed_cells(tmp_path):
    """As a script, from the repository: with the editable install, Python finds minprefix there only."""
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra experiments")
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".*", "*.pt", "notebooks", "tests", "weights")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    written = copy / "experiments" / "results" / "REPORT.md"
    written.unlink()
    command = [sys.executable, "experiments/report.py"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": ""})
    assert written.read_text() == (MINI.folder / "REPORT.md").read_text(), "run experiments/report.py again"


@pytest.mark.parametrize(
    ("ours", "half", "kind", "verdict"),
    [
        (1.0, 0.9, "better", "yes"),
        (1.0, 1.1, "better", "unclear"),
        (-1.0, 0.9, "better", "no"),
        (100.0, None, "better", "unclear"),  # one run has no interval
        (-1.0, 0.4, "as good", "yes"),
        (-1.0, 0.6, "as good", "unclear"),
        (-3.0, 1.0, "as good", "no"),
        (0.5, 0.9, "equal", "yes"),
        (-0.5, 1.1, "equal", "unclear"),
        (-3.0, 1.0, "equal", "no"),
        (3.0, 1.0, "equal", "no"),
        (1.5, 0.4, "times", "yes"),
        (0.5, 0.4, "times", "no"),
        (None, None, "better", ""),
    ],
)
def test_a_comparison_is_judged_by_its_whole_interval(ours, half, kind, verdict):
    assert claims.Comparison("", "BLEU", ours, half, None, kind).judge() == verdict


def test_losses_are_judged_by_a_finer_margin():
    assert claims.Comparison("", "BLEU", -0.1, 0.01, None, "as good").judge() == "yes"
    assert claims.Comparison("", claims.LOSS, -0.1, 0.01, None, "as good").judge() == "no"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([2.0, 3.0], "holds"),
        ([2.0, 0.4], "holds partly"),
        ([2.0, -2.0], "mixed"),
        ([0.4, -2.0], "does not hold here"),
        ([0.4, 0.1], "undecided"),
        ([None, None], "not tested here"),
        ([None, 2.0], "holds (not all of it was run)"),
    ],
)
def test_verdicts(differences, verdict):
    comparisons = [claims.Comparison("", "BLEU", ours, 0.5) for ours in differences]
    assert claims.Claim("", "", comparisons).judge() == verdict


def test_the_interval_is_students():
    assert claims.summarise([]) == (None, None)
    assert claims.summarise([1.0, 2.0]) == (1.5, None)
    mean, half = claims.summarise([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.30 / 3**0.5))  # scipy: t.ppf(0.975, 2) = 4.303
    assert claims.summarise([1.0] * 10) == (1.0, 0.0)


def test_the_smoke_test_at_the_papers_scale_is_a_cell_of_table_2():
    from experiments.paper_scale import GPT2_MEDIUM, run_smoke

    found = run_smoke(GPT2_MEDIUM | {"n_positions": 512, "n_embd": 16, "n_layer": 2, "n_head": 2})
    assert found["stored_numbers"] == 5 * 2 * 2 * 16
    assert [found["config"][key] for key in ("lr", "prefix_len", "epochs", "beams")] == [5e-5, 5, 5, 5]
    assert found["test"]["records"] == 2 and len(found["loss"]) == 1 and found["config"]["max_steps"] == 2
