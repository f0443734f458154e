"""experiments/score.py: which texts meet which references, and what a wrong file is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import meteor
from experiments import score as command
from minprefix import metrics
from minprefix.data import Record
from minprefix.errors import InputError
from minprefix.metrics import bleu, split_signs, ter


@pytest.fixture(autouse=True)
def _no_java(monkeypatch):
    monkeypatch.setattr(meteor.shutil, "which", lambda name: None)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_lines_with_a_file_of_references(tmp_path, capsys):
    outputs = write(tmp_path / "out.txt", "The inn is by water.\n\na red pub\n")
    references = write(tmp_path / "ref.txt", "the inn is by water.\nthe inn\n\nx\n\n\na pub that is red\n\n")
    figures = tmp_path / "figures.json"
    command.main([outputs, "--references", references, "--json", str(figures)])
    expected = bleu(
        ["The inn is by water.", "", "a red pub"],
        [["the inn is by water.", "the inn"], ["x"], ["a pub that is red"]],
    )
    found = json.loads(figures.read_text())[outputs]
    assert found["BLEU"] == pytest.approx(expected["BLEU"])
    assert found["METEOR"] is None
    printed = capsys.readouterr().out
    assert f"BLEU {expected['BLEU']:21.2f}\n" in printed and "METEOR                 n/a" in printed
    assert "METEOR n/a: " in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    with pytest.raises(InputError, match="exists and is not overwritten"):
        command.main([outputs, "--references", references, "--json", str(figures)])


def test_what_sample_wrote_is_scored_by_prefix(tmp_path, capsys):
    rows = [
        {"source": "s", "prefix": prefix, "text": text, "references": ["a b c d e", "f"]}
        for prefix, text in (
            ("good.pt", "a b c d e"),
            ("bad.pt", "x"),
            ("good.pt", "a b c d e"),
            ("bad.pt", "y"),
        )
    ]
    outputs = write(tmp_path / "out.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    command.main([outputs, "--dataset", "xsum"])
    good, bad = capsys.readouterr().out.split("bad.pt")
    assert "good.pt, 2 texts" in good and "ROUGE-1             100.00   95%: 100.00 to 100.00" in good
    assert "ROUGE-1               0.00" in bad


def test_references_of_the_data_set_in_its_order(tmp_path, capsys):
    files = command.find_files("e2e", "sample")
    texts = [record.references[0] for record in command.read_split(files, "dev")]
    outputs = write(tmp_path / "out.txt", "\n".join(texts) + "\n")
    command.main([outputs, "--split", "dev", "--data", "sample"])
    assert "BLEU                100.00" in capsys.readouterr().out
    write(tmp_path / "out.txt", "\n".join(texts[:-1]))
    with pytest.raises(
        InputError, match=rf"has {len(texts) - 1} texts, the dev split of e2e has {len(texts)} rec"
    ):
        command.main([outputs, "--split", "dev", "--data", "sample"])


def test_webnlg_is_scored_on_seen_and_unseen_categories(monkeypatch, capsys):
    monkeypatch.setitem(metrics.OFFICIAL, "webnlg", (split_signs, 3, (bleu, ter)))
    records = [Record("s", ("a b c d e",), group) for group in ("Airport", "Artist", "Food")]
    figures = command.score_records("webnlg", ["a b c d e", "x", "a b c d e"], records)
    assert figures["groups"]["seen"]["BLEU"] == pytest.approx(100)
    assert figures["groups"]["unseen"]["TER"] == pytest.approx(100)
    command.show("w", 3, figures)
    assert capsys.readouterr().out.splitlines()[1].split() == ["all", "seen", "unseen"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n', "out.jsonl, line 1: KeyError\\('references'\\); give text and references"),
        ('{"text": "a", "references": ["b"]}\n{"text"\n', "out.jsonl, line 2: "),
        ('{"text": "a", "references": []}\n', "output 0 has no reference"),
        ('{"text": "a", "references": "b"}\n', "out.jsonl, line 1: TypeError"),
        ('{"text": 3, "references": ["b"]}\n', "out.jsonl, line 1: AttributeError"),
    ],
)
def test_bad_samples(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        command.main([write(tmp_path / "out.jsonl", text)])


def test_a_bad_command_is_one_sentence_and_code_2(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    line = [sys.executable, "-m", "experiments.score", str(tmp_path / "latin.txt")]
    result = subprocess.run(line, capture_output=True, text=True, cwd=Path(command.__file__).parents[1])
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("score: ") and result.stderr.count("\n") == 1
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        command.main([str(tmp_path / "none.txt")])
    with pytest.raises(InputError, match="--dataset e3e is unknown; known are e2e"):
        command.main([str(tmp_path / "none.txt"), "--dataset", "e3e"])
