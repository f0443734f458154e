"""experiments/score.py: which texts meet which references, and what a wrong file is told."""

import json
from pathlib import Path

import pytest

from experiments import meteor
from experiments import score as command
from minprefix.checks import InputError
from tasks import Record, find_files, read_split
from tasks.metrics import bleu


@pytest.fixture(autouse=True)
def _no_java(monkeypatch):
    monkeypatch.setattr(meteor.shutil, "which", lambda name: None)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_lines_with_a_file_of_references(tmp_path, capsys):
    outputs = write(tmp_path / "out.txt", "The inn is by water.\n\na red pub\n")
    references = write(tmp_path / "ref.txt", "the inn is by water.\nthe inn\n\nx\n\n\na pub that is red\n\n")
    arguments = [outputs, "--references", references, "--json", str(tmp_path / "figures.json")]
    command.main(arguments)
    texts = [["the inn is by water.", "the inn"], ["x"], ["a pub that is red"]]
    expected = bleu(["The inn is by water.", "", "a red pub"], texts)["BLEU"]
    found = json.loads((tmp_path / "figures.json").read_text())[outputs]
    assert found["BLEU"] == pytest.approx(expected) and found["METEOR"] is None
    printed = capsys.readouterr().out
    assert f"BLEU {expected:21.2f}\n" in printed and "METEOR                 n/a" in printed
    assert "METEOR n/a: " in printed and all(len(line) <= 80 for line in printed.splitlines())
    with pytest.raises(InputError, match="exists and is not overwritten"):
        command.main(arguments)


def test_what_sample_wrote_is_scored_by_prefix(tmp_path, capsys):
    texts = (("good.pt", "a b c d e"), ("bad.pt", "x"), ("good.pt", "a b c d e"), ("bad.pt", "y"))
    row = {"source": "s", "references": ["a b c d e", "f"]}
    rows = [json.dumps(row | {"prefix": prefix, "text": text}) for prefix, text in texts]
    command.main([write(tmp_path / "out.jsonl", "\n".join(rows)), "--dataset", "xsum"])
    good, bad = capsys.readouterr().out.split("bad.pt")
    assert "good.pt, 2 texts" in good and "ROUGE-1             100.00   95%: 100.00 to 100.00" in good
    assert "ROUGE-1               0.00" in bad


def test_references_of_the_data_set_in_its_order(tmp_path, capsys):
    texts = [record.references[0] for record in read_split(find_files("e2e", "sample"), "dev")]
    arguments = [write(tmp_path / "out.txt", "\n".join(texts)), "--split", "dev", "--data", "sample"]
    command.main(arguments)
    assert "BLEU                100.00" in capsys.readouterr().out
    write(tmp_path / "out.txt", "\n".join(texts[:-1]))
    counts = f"has {len(texts) - 1} texts, the dev split of e2e has {len(texts)} rec"
    with pytest.raises(InputError, match=counts):
        command.main(arguments)


def test_webnlg_is_scored_on_seen_and_unseen_categories(capsys):
    records = [Record("s", ("a b c d e",), group) for group in ("Airport", "Artist", "Food")]
    figures = command.score_records("webnlg", ["a b c d e", "x", "a b c d e"], records)
    assert figures["groups"]["seen"]["BLEU"] == pytest.approx(100)
    assert figures["groups"]["unseen"]["TER"] == pytest.approx(100)
    command.show("w", 3, figures)
    assert capsys.readouterr().out.splitlines()[1].split() == ["all", "seen", "unseen"]


def test_bad_files_and_names_are_told_in_a_sentence(tmp_path):
    bad = {
        '{"text": "a"}': r"out, line 1: KeyError\('references'\); give text and references",
        '{"text": "a", "references": ["b"]}\n{"text"': "out, line 2: ",
        '{"text": "a", "references": []}': "output 0 has no reference",
        '{"text": "a", "references": "b"}': "out, line 1: TypeError",
        '{"text": 3, "references": ["b"]}': "out, line 1: AttributeError",
    }
    for text, message in bad.items():
        with pytest.raises(InputError, match=message):
            command.main([write(tmp_path / "out", text)])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name in ("latin.txt", "none.txt"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            command.main([str(tmp_path / name)])
    with pytest.raises(InputError, match="unknown data set 'e3e'; did you mean 'e2e'"):
        command.main([str(tmp_path / "none.txt"), "--dataset", "e3e"])
