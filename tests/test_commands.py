"""train.py and sample.py as a user meets them, on the bundled sample and a tiny random model."""

import json
import signal
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import sample
import train
from minprefix import InputError, load_lm, load_prefix
from minprefix.texts import encode_source, encode_target
from tests.runs import TRAIN, assert_same_run, read_log, state_of, stop_at_third_step, stop_in_evaluation

SHORT = ["dataset=e2e", "data=sample", "batch_size=4", "lr=0.01", "n_train=40", "dev_limit=8", "prefix_len=3"]
SHORT += ["epochs=9", "eval_limit=3", "max_new_tokens=8", "beams=2", "eval_every=4", "mlp_hidden=16"]


def train_quickly(tiny_folder: Path, out: Path, *more: str) -> Path:
    train.main([*SHORT, f"model={tiny_folder}", f"out={out}", *more])
    return out


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory) -> Path:
    return train_quickly(tiny_folder, tmp_path_factory.mktemp("run") / "e2e.pt", "max_steps=8")


def read_texts(capsys, *labels: str) -> list[str]:
    """What stands behind these words at the start of the lines on stdout."""
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return [" ".join(line) for line in lines if line and line[0] in labels]


# --- train.py ---


def test_a_run_leaves_a_small_prefix_and_a_log(trained):
    saved = load_prefix(trained)
    assert trained.stat().st_size < 1_000_000
    assert {name: tuple(P.shape) for name, P in saved.sites.items()} == {"decoder": (3, 2 * 16)}
    assert saved.data.startswith("bundled sample") and saved.metrics["records"] == 3
    lines = read_log(trained)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "dev_loss" in line] == [4, 8]
    assert not state_of(trained).exists()


def test_the_same_seed_gives_the_same_prefix(trained, tiny_folder, tmp_path):
    again = load_prefix(train_quickly(tiny_folder, tmp_path / "e2e.pt", "max_steps=8"))
    other = load_prefix(train_quickly(tiny_folder, tmp_path / "other.pt", "max_steps=8", "seed=1"))
    expected = load_prefix(trained).sites["decoder"]
    assert torch.equal(again.sites["decoder"], expected)
    assert not torch.equal(other.sites["decoder"], expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_ends_with_the_same_bits(number, tiny_folder, tmp_path):
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole, part = tmp_path / "whole" / "e2e.pt", tmp_path / "part" / "e2e.pt"
    settings = [f"model={tiny_folder}", "max_steps=60", "n_train=200"]
    code, errors = stop_at_third_step([*TRAIN, *SHORT, *settings, f"out={part}"], part, number)
    assert code == 130 and f"go on with: python train.py resume={state_of(part)}" in errors
    assert not part.exists()
    train.main([f"resume={state_of(part)}"])
    train.main([*SHORT, *settings, f"out={whole}"])
    assert_same_run(part, whole)


def test_resume_goes_on_beside_its_state(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    out = tmp_path / "a" / "e2e.pt"
    stop_in_evaluation([*SHORT, f"model={tiny_folder}", f"out={out}", "max_steps=2"])
    monkeypatch.chdir(tmp_path)
    Path("e2e.pt").write_text("another run's")
    train.main([f"resume={state_of(out)}"])
    assert load_prefix(out).metrics["records"] == 3
    assert not state_of(out).exists() and Path("e2e.pt").read_text() == "another run's"


# --- both ---


@pytest.mark.parametrize("method", ["infix", "embedding", "full", "top2", "adapter", "lora", "prefix"])
def test_every_method_trains_is_saved_and_sampled(method, tiny_folder, tmp_path, capsys):
    out = train_quickly(tiny_folder, tmp_path / "text.pt", "max_steps=3", f"method={method}", "mlp_hidden=0")
    texts = read_texts(capsys, "text")
    sample.main(["--prefix", str(out), "--records", "3"])
    assert read_texts(capsys, "text") == texts and len(texts) == 3


def test_texts_are_cut_and_stretched_as_in_the_training(tiny_folder, tmp_path, capsys):
    cut = ["max_source=12", "max_target=6", "min_new_tokens=5", "max_steps=3"]
    out = train_quickly(tiny_folder, tmp_path / "text.pt", *cut)
    trained = read_texts(capsys, "text")

    def describe(*more: str) -> list[str]:
        sample.main(["--prefix", str(out), "--records", "3", *more])
        return read_texts(capsys, "text")

    assert describe() == trained and describe("--max-source", "0") != trained
    (tmp_path / "a.txt").write_text("name : Blue Fig\nname : Blue Spice\n")  # one, if cut: they differ later
    assert len(set(describe("--input", str(tmp_path / "a.txt")))) == 1
    lm, tokenizer = load_lm(tiny_folder)
    source = encode_source(lm, tokenizer, "name : Blue Fig", 12)
    target = encode_target(lm, tokenizer, "Blue Fig.", 6)
    assert tokenizer.decode(source[:-1]) == "name : Blue" and source[-1] == lm.config.bos_token_id
    assert tokenizer.decode(target[:-1]) == " Blue" and target[-1] == lm.config.eos_token_id


# --- sample.py ---


def test_input_may_be_text_json_or_mr_and_output_is_json_lines(trained, tmp_path):
    text = '\ufeffname : Blue Fig | food : Thai\n\n{"name": "Blue Fig", "food": "Thai"}\n'
    (tmp_path / "in.txt").write_text(text + "  name[Blue Fig], food[Thai]\r\n")
    out = tmp_path / "out.jsonl"
    sample.main(["--prefix", str(trained), "--input", str(tmp_path / "in.txt"), "--output", str(out)])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["source"] for line in lines] == ["name : Blue Fig | food : Thai"] * 3
    assert len({line["text"] for line in lines}) == 1 and {line["prefix"] for line in lines} == {str(trained)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.jsonl"]


def test_several_prefixes_answer_each_input(trained, tiny_folder, tmp_path, capsys):
    other = train_quickly(tiny_folder, tmp_path / "longer.pt", "max_steps=3", "prefix_len=6", "method=infix")
    alone = []
    for prefix in (trained, other):
        capsys.readouterr()
        sample.main(["--prefix", str(prefix), "--records", "2"])
        alone += read_texts(capsys, prefix.stem)
    sample.main(["--prefix", str(trained), "--prefix", str(other), "--records", "2"])
    together = read_texts(capsys, "e2e", "longer")
    assert sorted(together) == sorted(alone) and len(together) == 4


def test_what_changes_the_model_answers_alone(trained, tiny_folder, tmp_path):
    other = train_quickly(tiny_folder, tmp_path / "lora.pt", "max_steps=2", "method=lora")
    with pytest.raises(InputError, match="method lora changes the model itself"):
        sample.main(["--prefix", str(trained), "--prefix", str(other), "--records", "1"])


def test_records_of_other_data_are_announced(trained, tmp_path, capsys):
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.csv").write_text("mr,ref\nname[A],A is good.\n")
    sample.main(["--prefix", str(trained), "--data", str(tmp_path)])
    captured = capsys.readouterr()
    assert "other e2e files" in captured.err and "training: bundled sample" in captured.err
    assert captured.out.startswith("record     name : A\n") and "\nreference  A is good.\n" in captured.out


def test_on_a_terminal_it_asks_for_more(trained, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", mock.Mock(side_effect=["nome[A]", "name[B]", "", EOFError]))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    for _ in range(2):  # an empty line ends it, and so does the end of the input
        sample.main(["--prefix", str(trained), "--records", "1"])
    text = capsys.readouterr().out
    assert "'nome'" in text and "record     name : B\n" in text, "a mistake ends nothing"
    assert text.count("record  ") == 3
