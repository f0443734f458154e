"""train.py and sample.py as a user meets them, on the bundled sample and a tiny random model."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

import sample
import train
from minprefix import InputError, generate, load_lm, load_prefix, texts
from minprefix.checks import run_command
from minprefix.config import parse_config
from minprefix.texts import encode_source, encode_target
from tasks import choose_presets
from tests.conftest import random_sources
from tests.models import make_bart, save_checkpoint
from tests.runs import (
    ROOT,
    TRAIN,
    assert_same_run,
    merge,
    read_log,
    state_of,
    stop_at_third_step,
    stop_in_evaluation,
)

SHORT = ["dataset=e2e", "data=sample", "batch_size=4", "lr=0.01", "n_train=40", "dev_limit=8", "prefix_len=3"]
SHORT += ["epochs=9", "eval_limit=3", "max_new_tokens=8", "beams=2", "eval_every=4", "mlp_hidden=16"]


def train_quickly(tiny_folder: Path, out: Path, *more: str) -> Path:
    train.main(merge(*SHORT, f"model={tiny_folder}", f"out={out}", *more))
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
    settings = merge(*SHORT, f"model={tiny_folder}", "max_steps=60", "n_train=200")
    code, errors = stop_at_third_step([*TRAIN, *settings, f"out={part}"], part, number)
    assert code == 130 and f"go on with: python train.py resume={state_of(part)}" in errors
    assert not part.exists()
    train.main([f"resume={state_of(part)}"])
    train.main([*settings, f"out={whole}"])
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
        sample.main(["--prefix", str(out), *more])
        return read_texts(capsys, "text")

    assert describe("--records", "3") == trained != describe("--records", "3", "--max-source", "0")
    (tmp_path / "a.txt").write_text("name : Blue Fig\nname : Blue Spice\n")  # one, if cut: they differ later
    assert len(set(describe("--input", str(tmp_path / "a.txt")))) == 1
    lm, tokenizer = load_lm(tiny_folder)
    source = encode_source(lm, tokenizer, "name : Blue Fig", 12)
    target = encode_target(lm, tokenizer, "Blue Fig.", 6)
    assert tokenizer.decode(source[:-1]) == "name : Blue" and source[-1] == lm.config.bos_token_id
    assert tokenizer.decode(target[:-1]) == " Blue" and target[-1] == lm.config.eos_token_id


def make_mute(folder: Path, tiny_folder: Path) -> Path:
    """The tiny model with a row more in its embedding than its vocabulary has tokens, and that row wins."""
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    wte, bias = tensors["transformer.wte.weight"], tensors["transformer.ln_f.bias"]
    tensors["transformer.wte.weight"] = torch.cat((wte, 99 * bias[None]))
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 258}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_id_without_a_token_ends_no_run(tiny_folder, tmp_path, capsys):
    """As users report of models whose embedding was enlarged: it is generated, and says nothing."""
    model = make_mute(tmp_path / "mute", tiny_folder)
    out = train_quickly(model, tmp_path / "e2e.pt", "max_steps=2")
    assert load_prefix(out).metrics["BLEU"] == 0
    assert read_texts(capsys, "text") == ["text"] * 3
    sample.main(["--prefix", str(out), "--records", "2", "--output", str(tmp_path / "out.jsonl")])
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["", ""]
    assert generate(load_lm(model)[0], [[5]], beams=1, max_new_tokens=3) == [[257] * 3]


def run_with(encoding: str, main, arguments: list[str], patch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What a command that ends well writes to streams of this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    with patch.context() as inner:
        for name, stream in zip(("stdout", "stderr"), streams):
            inner.setattr(sys, name, stream)
        run_command(lambda _: main(arguments))
    for stream in streams:
        stream.flush()
    return tuple(stream.buffer.getvalue().decode(encoding) for stream in streams)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "latin-1"])
def test_a_terminal_without_a_character_shows_it_as_an_escape(encoding, tiny_folder, tmp_path, monkeypatch):
    for split in ("train", "dev", "test"):
        text = "mr,ref\nname[Café 日本 😀],Ça coûte 20 €.\n"
        (tmp_path / f"{split}.csv").write_text(text, encoding="utf-8")
    out = tmp_path / "é😀.pt"
    settings = merge(*SHORT, f"data={tmp_path}", f"model={tiny_folder}", f"out={out}", "max_steps=2")
    said, _ = run_with(encoding, train.main, settings, monkeypatch)
    assert "record" in said and r"\U0001f600" in said and f"saved {tmp_path}" in said
    (tmp_path / "in.txt").write_text("name : Café 日本 😀", encoding="utf-8")
    given = ["--prefix", str(out), "--input", str(tmp_path / "in.txt")]
    said, _ = run_with(encoding, sample.main, given, monkeypatch)
    assert r"\U0001f600" in said and ("Café" in said) == (encoding in ("cp1252", "latin-1"))


def test_a_pipe_of_ascii_gets_the_texts(trained):
    command = [sys.executable, str(ROOT / "sample.py"), "--prefix", str(trained), "--input", "-"]
    run = subprocess.run(
        command,
        input="name : Café\n".encode(),
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        timeout=300,
    )
    assert run.returncode == 0 and run.stdout.startswith(rb"record     name : Caf\xe9"), run


def test_what_was_typed_in_no_known_encoding_is_a_sentence(trained, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", mock.Mock(side_effect=["name : Caf\udce9", "name[B]", ""]))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    sample.main(["--prefix", str(trained), "--records", "1"])
    text = capsys.readouterr().out
    assert "surrogates not allowed" in text and "record     name : B\n" in text


def test_what_a_checkpoint_wishes_is_one_line_of_the_commands(tiny_folder, trained, tmp_path, monkeypatch):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    (model / "generation_config.json").write_text('{"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}')
    settings = merge(*SHORT, f"model={model}", f"out={tmp_path / 'a.pt'}", "max_steps=2")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    _, errors = run_with("utf-8", train.main, settings, monkeypatch)
    (line,) = [line for line in errors.splitlines() if "repetition" in line]
    assert line.startswith("train.py: ") and "not obeyed" in line and "ngram" not in line
    kept = load_prefix(tmp_path / "a.pt").config
    assert (
        kept["no_repeat_ngram_size"] is kept["early_stopping"] is None
    )  # the checkpoint's, as in a training
    given = ["--prefix", str(tmp_path / "a.pt"), "--records", "3", "--output"]
    texts = []
    for number, more in enumerate(([], ["--no-repeat-ngram-size", "3"], ["--no-repeat-ngram-size", "0"])):
        path = tmp_path / f"{number}.jsonl"
        with pytest.warns(UserWarning, match="repetition_penalty"):
            sample.main([*given, str(path), *more])
        texts.append([json.loads(line)["text"] for line in path.read_text().splitlines()])
    assert texts[0] == texts[1] != texts[2]


def test_xsum_leaves_to_the_checkpoint_what_the_authors_left_to_it(tmp_path):
    decoding = parse_config(["dataset=xsum", "model=facebook/bart-large"], choose_presets).decoding()
    wishes = {"no_repeat_ngram_size": 2, "early_stopping": True}
    assert [decoding.pop(name) for name in wishes] == [None, None] and decoding["beams"] == 6
    save_checkpoint(tmp_path, make_bart(vocab_size=261))
    plain, _ = load_lm(tmp_path)
    (tmp_path / "generation_config.json").unlink()  # as in old folders: config.json says it, and more
    given = (
        json.loads((tmp_path / "config.json").read_text()) | wishes | {"num_beams": 2, "length_penalty": 3.0}
    )
    (tmp_path / "config.json").write_text(json.dumps(given))
    asked = dict(sources=random_sources(0), **decoding | {"max_new_tokens": 40})
    written = generate(load_lm(tmp_path)[0], **asked)
    assert written == generate(plain, **asked, **wishes) != generate(plain, **asked)


METHODS = {"prefix_len": ("full", "lora"), "mlp_hidden": ("embedding", "top2"), "bottleneck": ("prefix",)}


@pytest.mark.parametrize("key", METHODS)
def test_a_key_of_other_methods_is_said_to_mean_nothing(key):
    for method in METHODS[key]:
        with pytest.warns(UserWarning, match=f"^{key} means nothing with method={method}: leave it out$"):
            parse_config([f"{key}=4", f"method={method}"], choose_presets)
    with warnings.catch_warnings(action="error"):
        parse_config([f"method={METHODS[key][0]}"], choose_presets)  # a preset may have it


def test_a_least_length_that_nobody_gave_gives_way(tiny_folder, tmp_path):
    out = train_quickly(tiny_folder, tmp_path / "a.pt", "min_new_tokens=6", "max_new_tokens=9", "max_steps=1")
    for more, lengths in (["3"], {3}), (["7"], {6, 7}), (["5", "--min-new-tokens", "4"], {4, 5}):
        with mock.patch.object(texts, "generate", side_effect=generate) as asked:
            sample.main(["--prefix", str(out), "--records", "3", "--max-new-tokens", *more])
        assert {len(row) for row in generate(*asked.call_args.args, **asked.call_args.kwargs)} <= lengths
    with pytest.raises(InputError, match="min_new_tokens is 4"):
        sample.main(["--prefix", str(out), "--max-new-tokens", "3", "--min-new-tokens", "4"])
    assert parse_config(["dataset=xsum", "max_new_tokens=5"], choose_presets).min_new_tokens == 5
    assert parse_config(["dataset=xsum"], choose_presets).min_new_tokens == 11


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
