"""What a reader meets first: the committed prefix, its card, and what the README says that it prints."""

import csv
import json
import re
import shlex

import pytest

import sample
import train
from minprefix import load_prefix
from tests.runs import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PREFIX = ROOT / "weights" / "prefixes" / "e2e.pt"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No data at hand, and no network that could bring them."""
    monkeypatch.setenv("MINPREFIX_DATA", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a first look downloads"))
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", ["e2e.pt", "e2e-smollm2.pt"])
def test_the_card_has_the_figures_of_the_file(name):
    path = PREFIX.with_name(name)
    saved, card = load_prefix(path), (path.parent / "README.md").read_text(encoding="utf-8")
    names = ("BLEU", "NIST", "ROUGE-L (COCO)", "CIDEr", "length_ratio")
    assert f"| {' | '.join(f'{saved.metrics[name]:.2f}' for name in names)} |" in card
    assert f"{saved.metrics['records']} records of the test set" in card
    size, numbers = path.stat().st_size, sum(P.numel() for P in saved.sites.values())
    assert size < 2.2 * numbers and f"{numbers:,} numbers in float16, {size:,} bytes" in card
    assert saved.data == "official e2e files" and not saved.config["out"]


def test_the_card_has_the_training_of_the_file():
    config, card = load_prefix(PREFIX).config, (PREFIX.parent / "README.md").read_text(encoding="utf-8")
    assert PREFIX.stat().st_size <= 64 * 1024
    steps = f"{config['max_steps']} steps of {config['batch_size']} pairs"
    assert steps in card and f"{config['max_steps'] * config['batch_size']:,} of its" in card


def test_the_first_look_needs_no_data_and_says_calmly_whose_records_these_are(offline, capsys):
    sample.main(["--prefix", str(PREFIX.relative_to(ROOT)), "--records", "2"])
    found = capsys.readouterr()
    origin = "bundled sample (made-up records, not the e2e data)"
    assert found.err == f"records: {origin}; training: official e2e files\n\n"
    assert found.out.count("\nreference  ") == 2 and found.out.count("\ne2e        ") == 2


def read_shown(record: str) -> dict[str, str]:
    """What the README shows of this record: {name of a prefix: text}."""
    block = re.search(rf"^record +{re.escape(record)}\n((?:.+\n)+?)```", README, re.MULTILINE)
    return dict(line.split(maxsplit=1) for line in block[1].splitlines())


def test_the_readme_shows_what_the_prefix_answers(offline, capsys):
    sample.main(["--prefix", str(PREFIX.relative_to(ROOT))])
    found = capsys.readouterr().out
    record = re.search(r"^record +(name : .*)$", README, re.MULTILINE)[1]
    shown = read_shown(record)["e2e"]
    assert f"record     {record}\ne2e        {shown}\n" in found and found.count("record  ") == 5


def test_the_demo_of_the_readme_teaches_a_user(tmp_path, monkeypatch):
    """Its first user, by its own command: the text that is shown, and most of the new ones right."""
    monkeypatch.chdir(ROOT)
    command = re.search(r"do python train\.py (.*?); done", README)[1].replace("$user", "ada")
    arguments = [word for word in shlex.split(command) if not word.startswith("out=")]
    train.main([*arguments, f"out={tmp_path / 'ada.pt'}"])
    asked = ["--prefix", str(tmp_path / "ada.pt"), "--input", "notebooks/users/new.csv"]
    sample.main([*asked, "--output", str(tmp_path / "out.jsonl")])
    texts = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with open("notebooks/users/new.csv", encoding="utf-8") as file:
        wanted = {row["source"]: row["ada"] for row in csv.DictReader(file)}
    first, right = texts[0], sum(line["text"] == wanted[line["source"]] for line in texts)
    assert first["text"] == read_shown(first["source"])["ada"]
    assert len(texts) == 8 and right >= 4  # how many exactly depends on the processor's rounding


def test_the_users_files_hold_no_name_twice():
    """What is kept apart, and what is called new, has names that no training shows."""
    names = []
    for path in sorted((ROOT / "notebooks" / "users").glob("*.csv")):
        with open(path, encoding="utf-8") as file:
            names += [row["source"].split(" | ")[0] for row in csv.DictReader(file)]
    assert len(names) == len(set(names)) == 3 * 60 + 8


def test_the_readme_is_short_and_honest():
    lines = README.splitlines()
    assert len(lines) <= 130 and max(map(len, lines)) <= 210
    opening = (ROOT / "experiments/results/REPORT.md").read_text(encoding="utf-8").split("## Verdicts")[0]
    table = [line for line in opening.splitlines() if line.startswith("|")]
    assert len(table) >= 5 and "\n".join(table) in README, "copy the first table of REPORT.md"
