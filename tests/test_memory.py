"""experiments/memory.py on a tiny BART: what it counts, and that both sides decode the same."""

import json

import pytest
import torch

from experiments import memory
from tests.test_bart import save_bart


def test_the_peak_is_that_of_decoding_and_not_of_loading(monkeypatch, capsys):
    def load(folder: str):
        torch.ones(100_000_000).sum()  # 400 MB, gone before decoding
        return lambda sources, tokens: [torch.ones(25_000_000 * tokens // 10).numel()]

    monkeypatch.setattr(memory, "load_ours", load)
    memory.measure("ours", "", "10")
    found = json.loads(capsys.readouterr().out)
    assert found["ids"] == [25_000_000] and 0.9e8 < found["beyond_weights"] < 1.5e8


def test_both_sides_decode_the_same(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is a test dependency")
    monkeypatch.setattr(memory, "VOCABULARY", 261)
    monkeypatch.setattr(memory, "LENGTH", 12)
    save_bart(tmp_path)
    ours, theirs = (load(str(tmp_path)) for load in (memory.load_ours, memory.load_theirs))
    sources = memory.make_sources()
    assert ours(sources, 8) == theirs(sources, 8) and len(sources) == 10
