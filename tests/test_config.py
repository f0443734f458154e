"""The settings: presets, what lies on top of them, and what is refused."""

import dataclasses

import pytest

from minprefix.config import Config, parse_config
from minprefix.errors import InputError
from minprefix.methods import METHODS


@pytest.mark.parametrize(
    ("dataset", "model", "lr", "epochs", "batch_size", "prefix_len", "mlp_hidden"),
    [
        ("e2e", "gpt2-medium", 8e-5, 5, 10, 5, 512),
        ("webnlg", "gpt2-medium", 5e-5, 5, 5, 5, 512),
        ("dart", "gpt2-large", 5e-5, 10, 5, 10, 512),
        ("xsum", "facebook/bart-large", 5e-5, 30, 14, 100, 800),
    ],
)
def test_the_presets_are_the_paper_s(dataset, model, lr, epochs, batch_size, prefix_len, mlp_hidden):
    """Appendix A, its table of hyper-parameters."""
    c = parse_config([f"dataset={dataset}", f"model={model}"])
    assert (c.lr, c.epochs, c.batch_size, c.prefix_len) == (lr, epochs, batch_size, prefix_len)
    assert c.mlp_hidden == mlp_hidden
    decoding = (c.beams, c.length_penalty, c.min_new_tokens, c.max_new_tokens, c.max_source, c.max_target)
    assert decoding == ((6, 0.8, 11, 62, 512, 60) if dataset == "xsum" else (5, 1.0, 0, 100, 0, 0))


def test_the_default_model_and_place_follow_the_data_set():
    assert parse_config([]).model == "weights/gpt2-mini"
    config = parse_config(["dataset=xsum"])
    assert (config.model, config.out) == ("weights/bart-mini", "xsum.pt")
    for dataset in ("xsum-within-news", "bbc"):
        other = parse_config([f"dataset={dataset}"])
        assert other == dataclasses.replace(config, dataset=dataset, out=f"{dataset}.pt")
    assert parse_config(["dataset=xsum", "model=weights/gpt2-mini"]).model == "weights/gpt2-mini"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", ["e2e", "webnlg", "dart", "xsum"])
def test_every_method_has_a_preset_on_the_bundled_models(dataset, method):
    config = parse_config([f"dataset={dataset}", f"method={method}"])
    assert config.lr >= 1e-3 and 0 < config.max_steps <= 800
    assert (config.beams, config.max_target) == ((6, 60) if dataset == "xsum" else (5, 0))
    full_scale = parse_config([f"dataset={dataset}", f"method={method}", "model=gpt2-medium"])
    assert full_scale.lr <= 8e-5 and full_scale.max_steps == 0


def test_what_is_given_goes_before_every_preset():
    given = {"lr": 0.5, "epochs": 7, "max_source": 30, "beams": 2, "sites": "decoder+cross"}
    config = parse_config(["dataset=xsum", *(f"{name}={value}" for name, value in given.items())])
    assert {name: getattr(config, name) for name in given} == given
    direct = parse_config(["mlp_hidden=0"])
    assert direct.lr > parse_config([]).lr and Config().lr == 5e-5  # the paper's default


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["min_new_tokens=101"], "min_new_tokens=101 is above max_new_tokens"),
        (["bottleneck=0", "method=adapter"], "bottleneck is 0: it must lie between 1 and"),
        (["max_source=-1"], "max_source is -1: it must lie between 0 and"),
        (["method=lora", "init=summarize"], "method=lora has no prefix: leave init= out"),
        (["method=full", "sites=decoder"], "method=full has no prefix: leave sites= out"),
        (["site=decoder"], "did you mean 'sites'"),
    ],
)
def test_settings_that_say_nothing_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        parse_config(arguments)
