"""The grid runner and the report, on the bundled sample, a tiny random model and made-up results."""

import dataclasses
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train
from experiments import meteor, run, score
from experiments.artefacts import MINI, PAPER, SCALES, Cell, Scale, choose_rate, make_artefacts, read_runs
from experiments.keep import claim, read_table, write_result
from experiments.paper_scale import run_smoke
from minprefix.checks import InputError
from minprefix.config import parse_config, translate
from minprefix.texts import encode_source, encode_target, generate_texts
from tasks import choose_presets, find_files, list_pairs, pick, read_split

claims = pytest.importorskip("experiments.claims", reason="needs the extra experiments")
draw_answer = pytest.importorskip("experiments.draw_answer", reason="needs the extra experiments")
report = pytest.importorskip("experiments.report", reason="needs the extra experiments")
REPOSITORY = Path(__file__).resolve().parent.parent
TINY = ["dataset=e2e", "data=sample", "method=prefix", "prefix_len=2", "mlp_hidden=4", "max_steps=2"]
TINY += ["batch_size=2", "n_train=6", "dev_limit=2", "eval_limit=2", "max_new_tokens=4", "beams=2"]


def test_a_rate_is_chosen_by_the_seeds_that_all_rates_have():
    losses = {(0.1, 0): 2.0, (0.2, 0): 1.9, (0.2, 1): 9.0, (0.3, 1): 0.0}
    runs = {run: {"dev_loss": [[1, 3.0], [2, loss]], "kept_step": 2} for run, loss in losses.items()}
    assert choose_rate(runs) == 0.2, "a rate without seed 0 is not finished"
    runs[0.1, 1] = {"dev_loss": [[1, 2.5], [2, 99.0]], "kept_step": 1}
    assert choose_rate(runs) == 0.1
    assert choose_rate({}) is None


@pytest.fixture
def cell(tiny_folder, tmp_path) -> Cell:
    settings = (*TINY, f"model={tiny_folder}")
    return Cell("tiny", settings, (0.01, 0.02), tmp_path / "grid", runs=2, alphas=(1.0, 2.0), dev=2)


def test_a_grid_runs_all_rates_and_then_the_chosen_one_with_more_seeds(cell, capsys):
    run.run_grid("grid", {"tiny": cell}, 1000)
    runs = read_runs(cell)
    best = min((0.01, 0.02), key=lambda lr: runs[lr, 0]["dev_loss"][-1][1])
    assert set(runs) == {(0.01, 0), (0.02, 0), (best, 1)} and choose_rate(runs) == best
    found = runs[best, 1]
    assert [found["config"][key] for key in ("lr", "seed", "max_steps", "out")] == [best, 1, 2, ""]
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
    assert len(lines) == 3 and lines[0].split()[:5] == ["tiny", "lr", f"{best:g}", "seed", "0"]
    assert "BLEU" in lines[0] and "dev loss" in lines[0]


def test_a_claimed_cell_is_left_to_the_process_that_has_it(cell, capsys):
    with claim(cell.path(0.01, 0)) as mine, claim(cell.path(0.02, 0)):
        assert mine
        with claim(cell.path(0.01, 0)) as other:
            assert not other
        run.run_grid("grid", {"tiny": cell}, 1)
    assert not read_runs(cell) and "2 cells are left" in capsys.readouterr().out
    with claim(cell.path(0.01, 0)) as mine:
        assert mine, "the claim ends with its holder"


def test_a_stopped_cell_goes_on_where_it_was_with_the_same_settings(cell, monkeypatch):
    cell = dataclasses.replace(cell, rates=(0.01,), runs=1)
    run.run_grid("grid", {"tiny": cell}, 1)
    whole = read_runs(cell)[0.01, 0]
    other = dataclasses.replace(cell, folder=cell.folder.parent / "other")
    take_step, taken = train.take_step, []

    def stop_at_the_second(*arguments):
        taken.append(arguments)
        if len(taken) == 2:  # as if killed between a line of the log and the next state
            train.append_line(train.log_path(other.path(0.01, 0)), {"step": 2, "loss": 9.0})
            raise KeyboardInterrupt
        return take_step(*arguments)

    monkeypatch.setattr(train, "take_step", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run.run_grid("other", {"tiny": other}, 1)
    changed = dataclasses.replace(other, settings=(*other.settings, "batch_size=3"))
    with pytest.raises(InputError, match="begun with other settings"):
        run.run_grid("other", {"tiny": changed}, 1)
    assert not read_runs(other)
    run.run_grid("other", {"tiny": other}, 1)
    part = read_runs(other)[0.01, 0]
    assert len(taken) == 3 and part["resumed_at_step"] == 1
    assert all(part[key] == whole[key] for key in ("loss", "dev_loss", "test", "texts"))
    assert {path.suffix for path in other.folder.iterdir()} <= {".json", ".pt", ".lock"}


@pytest.mark.parametrize("frame", ("", "Data: {}\nText:"))
def test_worked_examples_are_read_in_front_of_the_record(cell, frame):
    """As if they stood in the same text, which may end with its line; other seeds show other ones."""
    shown = dataclasses.replace(cell, rates=(), examples=1, frame=frame)
    run.run_grid("grid", {"shown": shown}, 2)
    first, second = (read_runs(shown)[0.0, seed] for seed in (0, 1))
    assert first["text_tokens"] != second["text_tokens"]
    config, lm, tokenizer = run.load_frozen(parse_config(shown.arguments(0.0, 1), choose_presets))
    pairs = random.Random(1).sample(list_pairs(read_split(find_files("e2e", "sample"), "train")), 1)
    if frame:
        front = tokenizer.encode("".join(f"Data: {x}\nText: {y}\n" for x, y in pairs))
        lm.config = dataclasses.replace(lm.config, eos_token_id=tokenizer.encode("\n")[0])
    else:
        front = [
            id for x, y in pairs for id in encode_source(lm, tokenizer, x) + encode_target(lm, tokenizer, y)
        ]
    assert len(front) == second["text_tokens"]
    sources = [front + encode_source(lm, tokenizer, text["source"], 0, frame) for text in second["texts"]]
    texts = generate_texts(lm, tokenizer, sources, None, config.decoding(), frame=frame)
    assert [text["text"] for text in second["texts"]] == texts and "".join(texts)


def test_meteor_is_measured_later_where_the_machine_had_none(cell, monkeypatch):
    cell = dataclasses.replace(
        cell, rates=(0.01,), runs=1, meteor=True, settings=(*cell.settings, "eval_limit=25")
    )
    monkeypatch.setattr(meteor.shutil, "which", lambda _: None)
    monkeypatch.setattr(run, "TEXTS", 20)
    run.run_grid("grid", {"tiny": cell}, 1)
    before = read_runs(cell)[0.01, 0]
    assert before["test"]["METEOR"] is None and len(before["texts"]) == 25, "all texts are kept for it"
    later = {"e2e": (lambda outputs, references: {"METEOR": float(len(outputs[24]) + len(references[24]))},)}
    monkeypatch.setattr(score, "METEOR", later)
    run.add_meteor(cell.path(0.01, 0))
    after = read_runs(cell)[0.01, 0]
    records = read_split(find_files("e2e", "sample"), "test")
    last = len(before["texts"][24]["text"]) + len(pick(records, 25)[24].references)
    assert before["test"].pop("METEOR missing")
    assert after["test"] == before["test"] | {"METEOR": last} and len(after["texts"]) == 20


def test_the_lead_baseline_is_the_first_sentence(cell):
    lead = dataclasses.replace(cell, rates=())
    run.run_grid("grid", {"lead": lead}, 1)
    text = read_runs(lead)[0.0, 0]["texts"][0]
    assert text["text"] == run.first_sentence(text["source"])
    articles = ('Mr. "No." She left.', "It cost £3.50 in all. He paid.", "no full stop")
    assert [*map(run.first_sentence, articles)] == ["Mr.", "It cost £3.50 in all.", "no full stop"]


def test_real_data_is_asked_for(cell, monkeypatch, tmp_path):
    monkeypatch.setenv("MINPREFIX_DATA", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    cell = dataclasses.replace(cell, settings=tuple(s for s in cell.settings if s != "data=sample"))
    with pytest.raises(InputError, match="set MINPREFIX_DATA"):
        run.run_grid("grid", {"tiny": cell}, 1)


def test_cells_and_rates_are_named_or_refused():
    name, cells, seeds = run.parse(["table5", "seeds=2", "prefix-10=0.003", "prefix-10=0.001", "infix-1"])
    assert (name, seeds, list(cells)) == ("table5", 2, ["prefix-10", "infix-1"])
    assert cells["prefix-10"].rates == (0.003, 0.001)
    assert list(cells["infix-1"].rates) == MINI.rates["infix"][:1]
    with pytest.raises(InputError, match="table5 has no cell 'prefix-11': choose from"):
        run.main(["table5", "prefix-11"])
    with pytest.raises(InputError, match="prefix-10=fast must be a number above 0"):
        run.main(["table5", "prefix-10=fast"])
    command = [sys.executable, "-m", "experiments.run", "table9"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "unknown artefact 'table9': choose one of e2e, table" in result.stderr


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_cell_is_a_setting_that_train_understands(scale):
    for artefact, cells in make_artefacts(scale).items():
        for cell in cells.values():
            for lr in cell.rates or (0.0,):
                config = parse_config(cell.arguments(lr, 3), choose_presets)
                assert config.lr == lr or not cell.rates
            paper = config.model in ("gpt2-medium", "facebook/bart-large")
            assert paper == (scale is PAPER), (artefact, cell)
            assert paper != bool(config.max_steps) or artefact in ("costs", "whole") or config.lr < 1e-6
            assert config.subset == (3 // cell.subsets if cell.subsets else 0)


def test_cells_of_equal_settings_share_their_results():
    artefacts = make_artefacts(MINI)
    shared = artefacts["fig4"]["prefix-10"]
    assert shared.path(0.002, 0) == artefacts["table5"]["prefix-10"].path(0.002, 0)
    assert shared.path(0.002, 0) == MINI.folder / "table2" / "e2e-prefix-0.002-0.json"
    lead = artefacts["table3"]["lead"].path(0.0, 0)
    assert lead.name == "lead-0-0.json", "the baseline is not the method whose settings it has"


def test_only_a_cells_own_rates_and_seeds_are_read(tmp_path):
    for name in ("1-0.002-0", "10-0.002-0", "1-5e-05-1", "1-0.1-0", "1-0.002-2"):
        (tmp_path / f"prefix-{name}.json").write_text("{}")
    cell = Cell("prefix-1", (), (0.002, 5e-5), tmp_path, runs=2)
    assert set(read_runs(cell)) == {(0.002, 0), (5e-05, 1)}


def test_committed_results_are_of_the_settings_that_the_cells_have():
    """Or a change of the settings would go unseen, for a cell that has its file is not run again."""
    for cell in itertools.chain(*(cells.values() for cells in make_artefacts(MINI).values())):
        for (lr, seed), result in read_runs(cell).items():
            config = dataclasses.asdict(parse_config(cell.arguments(lr, seed), choose_presets)) | {"out": ""}
            assert translate(result["config"]).items() <= config.items(), cell.path(
                lr, seed
            )  # old files have fewer keys


def make_result(cell: Cell, seed: int, test: dict[str, float], lr: float) -> None:
    """A JSON file as run.py writes it."""
    numbers, speed = (10, 300) if "prefix" in cell.name else (9000, 100)
    config = dataclasses.asdict(parse_config(cell.arguments(lr, seed), choose_presets))
    losses = {"loss": [[10, 3.0], [20, 2.0]], "dev_loss": [[10, 3.0], [20, 2.5 - 100 * lr]]}
    costs = {"trained_numbers": numbers, "stored_numbers": numbers, "stored_bytes": 40, "seconds": 60}
    costs |= {"tokens_per_second": speed, "peak_memory_bytes": 10**8, "machine": "a machine"}
    figures = {"dev": {"BLEU": 20.0}, "test": {"records": 120} | test}
    write_result(cell.path(lr, seed), {"config": config, **losses, **costs, **figures})


def make_results(scale: Scale, figures: dict[str, list[dict]]) -> None:
    """One file for each ARTEFACT/CELL and seed, at the cell's first rate."""
    artefacts = make_artefacts(scale)
    for (home, name), tests in ((place.split("/"), tests) for place, tests in figures.items()):
        for seed, test in enumerate(tests):
            cell = artefacts[home][name]
            make_result(cell, seed, test, (cell.rates or (0.0,))[0])


def test_the_report_draws_what_there_is_and_judges_it(tmp_path):
    scale = dataclasses.replace(MINI, folder=tmp_path)
    bleu = {"table2/e2e-prefix": [50, 51, 52], "table2/e2e-full": [51, 52, 53], "table5/infix-10": [60]}
    bleu |= {"costs/prefix": [1] * 3, "costs/full": [1] * 3, "fig3/full-50": [20] * 6}
    bleu |= {"fig3/prefix-50": [30, 31] * 3, "fig3/prefix-100": [30, 31] * 3, "fig3/full-100": [31] * 6}
    make_results(scale, {place: [{"BLEU": float(x)} for x in values] for place, values in bleu.items()})
    interval = {"ROUGE-L": 10.0, "ROUGE-L low": 9.0, "ROUGE-L high": 11.0}
    make_results(scale, {"table3/prefix-large": [interval], "table3/full": [{"ROUGE-L": 14.0}]})
    make_result(make_artefacts(scale)["table2"]["e2e-prefix"], 0, {"BLEU": 20.0}, 0.001)
    text = report.write_report("mini", scale).read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    verdicts = dict(re.findall(r"\| (\d+) \|.*\*\*(.*)\*\*", text))
    verdicts = dict(re.findall(r"(?m)^\| (\d+) \|.*\*\*(.*)\*\*", text))
    assert "| gpt2-mini, 7M | not run | not run | not run | 51.0 ± 1.0 | 52.0 ± 1.0 |" in text
    assert verdicts["1"] == "holds (not all of it was run)"
    assert verdicts["12"] == "mixed (not all of it was run)"
    assert verdicts["7"] == "undecided (not all of it was run)", "one seed is too few"
    assert verdicts["14"] == "holds partly", "numbers and speed, not memory"
    assert "| E2E (as good) | -1.0 ± 0.0 | +1.5 | yes | +0.10 ± 0.00 | yes |" in text  # -1 is above -1.5
    assert "| n = 50 | +10.5 ± 0.0 |  | yes |" in text, "means of three subsets"
    assert "| n = 100 | -0.5 ± 0.0 |  | no |" in text
    assert "| prefix - infix, length 10 | -10.0 | +3.1 | unclear | +0.00 | unclear |" in text
    assert "| XSum (as good) | -4.0 | -1.2 | unclear |" in text
    assert rows["e2e-prefix"].split(" | ")[1:4] == ["0.002", "3", "51.00 ± 1.00 (70.3)"]
    assert "10.00 [9.00, 11.00] (36.05)" in rows["prefix-large"]
    assert rows["table2/e2e-prefix"].endswith("| 1 | 0.001: 2.400, **0.002: 2.300** |")
    assert "- fig6, prefix-10: 0 of 3 seeds, 0 of 3 learning rates are there" in text.split("## Not run")[1]
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    # e2e-prefix is a point of Figs. 4 and 5, too
    assert set(pictures) == {"answer.svg", "claims.svg", "fig3.svg", "fig4.svg", "fig5.svg"}
    report.write_report("mini", scale)
    assert all((tmp_path / name).read_bytes() == picture for name, picture in pictures.items())


def test_the_papers_scale_has_a_report_of_its_own(tmp_path):
    scale = dataclasses.replace(PAPER, folder=tmp_path)
    make_results(scale, {"table2/e2e-prefix": [{"BLEU": 60.0}]})
    text = report.write_report("paper", scale).read_text()
    assert "experiments.run table2 paper`" in text and "[NOTES.md](../NOTES.md)" in text
    assert "XSum, within-news" in text and "800 steps against 400" not in text


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_can_be_drawn_when_one_cell_of_each_table_was_run(name, tmp_path):
    """Results come in one by one, and each scale has cells of its own."""
    scale = dataclasses.replace(SCALES[name], folder=tmp_path)
    artefacts = make_artefacts(scale)
    firsts = {
        f"{home}/{next(iter(cells))}": [{"BLEU": 20.0}] for home, cells in artefacts.items() if home != "e2e"
    }
    make_results(scale, {place: tests for place, tests in firsts.items() if "xsum" not in place})
    text = report.write_report(name, scale).read_text()
    for home in (place.split("/")[0] for place in firsts):
        assert f"### {report.TITLES[home]}" in text, home


def test_the_notes_are_on_the_claims_of_the_table():
    notes = " ".join((MINI.folder / "NOTES.md").read_text(encoding="utf-8").split())
    named = re.findall(r"(\d+)\. \*(.+?)\.\*", notes)
    assert named == [(str(i), c["text"]) for i, c in enumerate(read_table("claims")["claim"])]
    assert f"-{claims.TIE_POINTS} points or -{claims.TIE_NATS} nats" in notes


def test_every_comparison_is_of_cells_that_some_scale_has():
    known = set()
    for scale in SCALES.values():
        known |= {f"{home}/{name}" for home, cells in make_artefacts(scale).items() for name in cells}
    for row in itertools.chain(*(entry["pairs"] for entry in read_table("claims")["claim"])):
        for side, scale in itertools.product(("ours", "other"), SCALES.values()):
            assert set(claims.list_places(row.get(side, []), scale)) <= known, row


def test_the_committed_report_is_of_the_committed_cells(tmp_path):
    """As a script, from the repository: with the editable install, Python finds the packages there only."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".*", "*.pt", "notebooks", "tests", "weights")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    names = ["REPORT.md", "answer.svg", "card.svg", "smollm2/REPORT.md"]
    written = {name: copy / "experiments" / "results" / name for name in names}
    for path in written.values():
        path.unlink()
    for script in ("report", "draw_card"):
        command = [sys.executable, f"experiments/{script}.py"]
        subprocess.run(
            command, cwd=copy, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": ""}
        )
    for name, path in written.items():
        assert path.read_text() == (MINI.folder / name).read_text(), (
            f"{name} is old: run {command} or report.py"
        )


def test_a_comparison_is_judged_by_its_whole_interval():
    found = {
        "better": {(1.0, 0.9): "yes", (1.0, 1.1): "unclear", (-1.0, 0.9): "no", (100.0, None): "unclear"}
    }
    found |= {"as good": {(-1.0, 0.4): "yes", (-1.0, 0.6): "unclear", (-3.0, 1.0): "no", (None, None): ""}}
    found |= {"equal": {(0.5, 0.9): "yes", (-0.5, 1.1): "unclear", (-3.0, 1.0): "no", (3.0, 1.0): "no"}}
    found |= {"times": {(1.5, 0.4): "yes", (0.5, 0.4): "no"}}
    for kind, cases in found.items():
        judged = {numbers: claims.Comparison("", "BLEU", *numbers, None, kind).judge() for numbers in cases}
        assert judged == cases
    assert claims.Comparison("", claims.LOSS, -0.1, 0.01, None, "as good").judge() == "no", "a finer margin"


def test_a_verdict_is_of_all_comparisons():
    found = {"holds": (2.0, 3.0), "holds partly": (2.0, 0.4), "mixed": (2.0, -2.0), "undecided": (0.4, 0.1)}
    found |= {"does not hold here": (0.4, -2.0), "not tested here": (None, None)}
    found |= {"holds (not all of it was run)": (None, 2.0)}
    for verdict, differences in found.items():
        comparisons = [claims.Comparison("", "BLEU", ours, 0.5) for ours in differences]
        assert claims.Claim("", "", comparisons).judge() == verdict


def test_an_answer_is_a_word_and_says_where_it_is_of_too_few_runs():
    def answer(*found: tuple) -> tuple[str, str]:
        made = [claims.Comparison("", "BLEU", ours, half, runs=runs) for ours, half, runs in found]
        return claims.Claim("", "", made).answer()

    assert answer((None, None, 0)) == ("not run", "")
    assert answer((2.0, None, 1)) == ("holds", "one run") and answer((-2.0, None, 2)) == (
        "not here",
        "2 runs",
    )
    assert answer((2.0, None, 1), (-2.0, None, 1), (None, None, 0)) == ("partly", "one run")
    assert answer((2.0, 3.0, 3)) == ("undecided", ""), "an interval that holds 0 is no verdict"
    assert answer((2.0, 1.0, 3), (-2.0, None, 1)) == ("partly", ""), "the one with an interval counts"


def test_an_answer_says_where_nothing_but_the_loss_speaks_against_the_claim():
    def answer(texts: float) -> tuple[str, str]:
        measures = {"BLEU": texts, claims.LOSS: -2.0}
        return claims.Claim(
            "", "", [claims.Comparison("", m, d, 1.0, runs=3) for m, d in measures.items()]
        ).answer()

    assert answer(0.5) == ("not here", "by loss")
    assert answer(-2.0) == ("not here", "") and answer(2.0) == ("partly", "")


def test_the_picture_of_the_answer_says_every_word():
    kinds = [(2.0, 1.0, 3), (-2.0, 1.0, 3), (0.1, 1.0, 3), (2.0, None, 1), (None, None, 0)]
    made = [claims.Comparison("", "BLEU", ours, half, 1.5, runs=runs) for ours, half, runs in kinds]
    all_claims = [claims.Claim(f"this & that {i}", "", [c]) for i, c in enumerate(made)]
    picture = draw_answer.draw_answer({"a model": all_claims}, "the paper")
    words = [re.sub("<.*?>", "", word) for word in re.findall("<text.*?</text>", picture)]
    assert words[:4] == ["a model", "the paper", "0. this &amp; that 0", "holds"]
    assert words[3::3] == ["holds", "not here", "undecided", "holds, one run", "not run"]
    assert words.count("yes, +1.5") == 5


def test_the_interval_is_students():
    assert claims.summarise([]) == (None, None) and claims.summarise([1.0, 2.0]) == (1.5, None)
    # 4.303 is a printed table's, for 2 degrees of freedom
    assert claims.summarise([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / 3**0.5, rel=1e-3))
    assert claims.summarise([1.0] * 10) == (1.0, 0.0)


def test_the_smoke_test_at_the_papers_scale_is_a_cell_of_table_2(monkeypatch):
    monkeypatch.setattr(meteor.shutil, "which", lambda name: None)  # or Java takes 20 seconds
    medium = read_table("published")["gpt2-medium"]
    found = run_smoke(medium | {"n_positions": 512, "n_embd": 16, "n_layer": 2, "n_head": 2})
    assert found["stored_numbers"] == 5 * 2 * 2 * 16
    assert [found["config"][key] for key in ("lr", "prefix_len", "epochs", "beams")] == [5e-5, 5, 5, 5]
    assert found["test"]["records"] == 2 and len(found["loss"]) == 1 and found["config"]["max_steps"] == 2
