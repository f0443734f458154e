"""The settings: declared once, with presets below what is given; and checks.py, which says what is wrong."""

import dataclasses
import subprocess
import sys
from unittest import mock

import pytest

import sample
import train
from minprefix import InputError, generate, load_prefix
from minprefix.checks import explain, run_command
from minprefix.config import Config, parse_config, restore_config
from minprefix.generate import Decoding
from minprefix.prefix import SITES
from tasks import choose_presets
from tests.models import Table
from tests.runs import ROOT

DECODING = [field.name for field in dataclasses.fields(Decoding)]
FILES = sorted((ROOT / "tests/data/fences/pt").glob("*.pt"))


def parse(*arguments: str) -> Config:
    return parse_config(list(arguments), choose_presets)


# --- presets ---


@pytest.mark.parametrize(
    ("dataset", "model", "expected"),
    [
        ("e2e", "gpt2-medium", (8e-5, 5, 10, 5, 512)),
        ("webnlg", "gpt2-medium", (5e-5, 5, 5, 5, 512)),
        ("dart", "gpt2-large", (5e-5, 10, 5, 10, 512)),
        ("xsum", "facebook/bart-large", (5e-5, 30, 14, 100, 800)),
    ],
)
def test_the_presets_are_the_paper_s(dataset, model, expected):
    """Appendix A, its table of hyper-parameters."""
    c = parse(f"dataset={dataset}", f"model={model}")
    assert (c.lr, c.epochs, c.batch_size, c.prefix_len, c.mlp_hidden) == expected
    decoding = (c.beams, c.length_penalty, c.min_new_tokens, c.max_new_tokens, c.max_source, c.max_target)
    assert decoding == ((6, 0.8, 11, 62, 512, 60) if dataset == "xsum" else (5, 1.0, 0, 100, 0, 0))


def test_the_default_model_and_place_follow_the_data_set():
    assert (parse().dataset, parse().model, parse().out) == ("e2e", "weights/gpt2-mini", "e2e.pt")
    config = parse("dataset=xsum")
    assert (config.model, config.out) == ("weights/bart-mini", "xsum.pt")
    for dataset in ("xsum-within-news", "bbc"):
        other = parse(f"dataset={dataset}")
        assert other == dataclasses.replace(config, dataset=dataset, out=f"{dataset}.pt")
    assert parse("dataset=xsum", "model=weights/gpt2-mini").model == "weights/gpt2-mini"


@pytest.mark.parametrize("method", SITES)
@pytest.mark.parametrize("dataset", ["e2e", "webnlg", "dart", "xsum"])
def test_every_method_has_a_preset_on_the_bundled_models(dataset, method):
    config = parse(f"dataset={dataset}", f"method={method}")
    assert config.lr >= 1e-3 and 0 < config.max_steps <= 800
    assert (config.beams, config.max_target) == ((6, 60) if dataset == "xsum" else (5, 0))
    full_scale = parse(f"dataset={dataset}", f"method={method}", "model=gpt2-medium")
    assert full_scale.lr <= 8e-5 and full_scale.max_steps == 0


def test_what_is_given_goes_before_every_preset():
    given = {"lr": 0.5, "epochs": 7, "max_source": 30, "beams": 2, "sites": "decoder+cross"}
    config = parse("dataset=xsum", *(f"{name}={value}" for name, value in given.items()))
    assert {name: getattr(config, name) for name in given} == given
    assert parse("--beams=2").beams == 2
    assert parse("mlp_hidden=0").lr > parse().lr and Config().lr == 5e-5  # the paper's default


# --- one declaration ---


def test_the_help_lists_every_key_with_its_default(capsys):
    train.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, default in vars(Config()).items():  # None, which means the model's own, cannot be typed
        assert [line for line in lines if line.startswith(f"  {name}={'' if default is None else default} ")]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("typed", ["3", "+3", " 3", "3.0", "0_3"])
def test_a_short_longest_text_gives_way_to_no_minimum_however_it_is_typed(typed):
    config = parse("dataset=xsum", f"max_new_tokens={typed}")
    assert (config.min_new_tokens, config.max_new_tokens) == (3, 3)


def test_the_flags_of_sample_follow_from_decoding(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        sample.main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and max(map(len, text.splitlines())) <= 80
    for name in (*DECODING, "model", "data", "device", "max_source"):
        assert f"\n  --{name.replace('_', '-')}" in text


def test_a_training_s_settings_hold_those_of_decoding():
    assert issubclass(Config, Decoding)
    options = {"beams": 3, "length_penalty": 0.5, "max_new_tokens": 7, "seed": 2}
    config = restore_config(dataclasses.asdict(Config()) | options)
    assert {name: getattr(config, name) for name in DECODING} == vars(Decoding(**options))


def test_generate_takes_the_fields_of_decoding_alone():
    with pytest.raises(InputError, match="unknown key 'beam'; did you mean 'beams'"):
        generate(Table([[1.0]]), [[0]], beam=3)


@pytest.mark.parametrize("name", ["gpt2-bf16", "gpt2-prefix"])
def test_settings_of_an_older_version_say_the_same_in_new_words(name):
    old = load_prefix(next(path for path in FILES if path.stem == name)).config
    config = restore_config(old)
    assert (config.dtype, config.keep) == ("bfloat16" if old["bf16"] else "float32", "last")
    assert restore_config(dataclasses.asdict(config)) == config
    assert restore_config(dataclasses.asdict(parse("keep=best", "dtype=auto"))).keep == "best"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_the_first_layout_gives_sample_its_settings(path, monkeypatch):
    """Also where it lacks keys that came later; a flag goes before them."""
    monkeypatch.chdir(ROOT / "tests/data/fences")
    asked, limits = [], set()
    monkeypatch.setattr(sample, "encode_source", lambda *given: limits.add(given[3]) or [5])
    monkeypatch.setattr(
        sample, "generate_texts", lambda *given, **_: asked.append(given) or [""] * len(given[2])
    )
    kept = load_prefix(path).config
    expected = vars(Decoding()) | {name: kept[name] for name in DECODING if name in kept}
    for flags, changes in (([], {}), (["--beams", "7"], {"beams": 7})):
        asked.clear()
        sample.main(["--prefix", str(path), "--input", "lines.txt", *flags])
        assert asked[0][4] == expected | changes and limits == {kept["max_source"]}


# --- checks.py ---


def test_an_error_is_one_line_whatever_it_quotes():
    assert str(InputError("a\nb\r\nc")) == "a b c"
    with pytest.raises(InputError) as refused, explain(ValueError, "x is wrong", "mend it"):
        raise ValueError("because\n  of " + "this " * 300)
    text = str(refused.value)
    assert text.startswith("x is wrong (because of this") and text.endswith("...): mend it")


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("no"), 2), (OSError("no"), 2), (KeyboardInterrupt(), 130)]
)
def test_a_command_ends_with_a_line_and_a_code(error, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["somewhere/train.py"])
    with pytest.raises(SystemExit) as end:
        run_command(mock.Mock(side_effect=error))
    assert end.value.code == code
    assert capsys.readouterr().err == ("train.py: no\n" if code == 2 else "")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    command = "import train; train.run_command(lambda _: [print('x' * 99) for _ in range(9999)])"
    run = subprocess.run(
        f'{sys.executable} -c "{command}" | head -1', shell=True, cwd=ROOT, capture_output=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"x" * 99 + b"\n", b"")


def test_another_error_is_not_called_memory():
    with pytest.raises(RuntimeError, match="illegal"):
        run_command(mock.Mock(side_effect=RuntimeError("an illegal memory access was encountered")))
