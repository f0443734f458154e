"""Prefixes from and for PEFT, against PEFT itself."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sample
from minprefix import peft as ours
from minprefix.errors import InputError
from minprefix.generate import check_base, generate
from minprefix.hub import load_lm
from minprefix.methods import collapse
from minprefix.peft import from_peft, to_peft
from minprefix.prefix import SavedPrefix
from minprefix.store import load_prefix, save_prefix
from tests.conftest import as_transformers, make_gpt2, random_sources, train_steps

peft = pytest.importorskip("peft", reason="peft is a test dependency: pip install .[test]")
transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")

BATCH = [([5, 6, 7, 0], [8, 9, 0]), ([3, 0], [4, 0]), ([0], [9, 9, 9, 9, 0])]


def train(lm, path: Path, method: str = "prefix", batch: list = BATCH) -> SavedPrefix:
    """A prefix after three steps, as the file that train.py leaves."""
    theta, _ = train_steps(lm, batch, method, 3)
    saved = collapse(lm, method, theta, {}, "made up")
    save_prefix(saved, path)
    return saved


def our_logits(lm, prefix: SavedPrefix, ids: list[int]) -> torch.Tensor:
    cache = lm.empty_cache(1)
    cache.splice(prefix.sites["decoder"])
    with torch.no_grad():
        return lm(torch.tensor([ids]), cache)


def their_logits(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def their_greedy_ids(model, source: list[int], count: int) -> list[int]:
    ids = torch.tensor([source])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )[0, len(source) :].tolist()
    return out[: out.index(0)] if 0 in out else out


def assert_same_outputs(lm, prefix: SavedPrefix, model, sources: list[list[int]]) -> None:
    """Logits to 4e-6 of the largest, the same greedy ids, and a prefix that matters to both.

    Either side may be 2e-6 from float64: oneDNN and MKL round differently.
    """
    for source in sources:
        theirs, mine = their_logits(model, source), our_logits(lm, prefix, source)
        assert (mine - theirs).abs().max() <= 4e-6 * max(1.0, float(theirs.abs().max()))
        assert (mine - lm(torch.tensor([source]))).abs().max() > 0.01
        found = generate(lm, [source], prefix, beams=1, max_new_tokens=6)
        assert found == [their_greedy_ids(model, source, 6)]


@pytest.mark.parametrize("method", ["prefix", "embedding"])
def test_peft_computes_with_our_folder_what_we_compute(method, tmp_path):
    for seed in range(2):
        lm, place = make_gpt2(seed), tmp_path / str(seed)
        saved = train(lm, place.with_suffix(".pt"), method)
        to_peft(place.with_suffix(".pt"), place)
        model = peft.PeftModel.from_pretrained(as_transformers(lm), place)
        assert_same_outputs(lm, saved, model, random_sources(seed, count=2))


def test_peft_computes_with_our_folder_what_the_bundled_model_computes(bundled, tmp_path):
    lm, tokenizer = load_lm(bundled)
    texts = [("name : Blue Fig | food : Thai", " Blue Fig serves Thai food."), ("name : Ox", " Ox is a pub.")]
    batch = [([*tokenizer.encode(x), 0], [*tokenizer.encode(y), 0]) for x, y in texts]
    saved = train(lm, tmp_path / "a.pt", batch=batch)
    to_peft(tmp_path / "a.pt", tmp_path / "a")
    base = transformers.AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base.eval(), tmp_path / "a")
    assert_same_outputs(lm, saved, model, [x for x, _ in batch])


def train_theirs(lm, folder: Path, projection: bool):
    """A prefix that PEFT trained on random ids, in its folder, and PEFT's model."""
    torch.manual_seed(0)
    settings = dict(num_virtual_tokens=4, prefix_projection=projection, encoder_hidden_size=16)
    model = peft.get_peft_model(
        as_transformers(lm), peft.PrefixTuningConfig(task_type="CAUSAL_LM", **settings)
    )
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05)
    ids = torch.randint(1, 40, (4, 9))
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("projection", [False, True])
def test_we_compute_what_peft_computes_with_its_prefix(projection, tmp_path):
    for seed in range(2):
        lm = make_gpt2(seed)
        model = train_theirs(lm, tmp_path / str(seed), projection)
        prefix = from_peft(tmp_path / str(seed))
        assert tuple(prefix.sites["decoder"].shape) == (4, 128)
        assert_same_outputs(lm, prefix, model, random_sources(seed, count=2))


def test_the_way_out_and_back_keeps_every_bit_and_the_model_s_fingerprint(tmp_path, tiny_folder):
    lm, _ = load_lm(tiny_folder)
    saved = train(lm, tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "a")
    back = from_peft(tmp_path / "a")
    assert torch.equal(back.sites["decoder"], saved.sites["decoder"])
    for key in ("name", "fingerprint"):
        assert back.base[key] == saved.base[key] != ""
    save_prefix(back, tmp_path / "b.pt")
    to_peft(tmp_path / "b.pt", tmp_path / "b")
    for name in (ours.CONFIG, ours.WEIGHTS):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_the_way_in_and_out_keeps_every_bit_of_peft_s(tmp_path):
    train_theirs(make_gpt2(), tmp_path / "a", projection=False)
    save_prefix(from_peft(tmp_path / "a"), tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "b")
    before, after = (load_file(tmp_path / name / ours.WEIGHTS) for name in "ab")
    assert before.keys() == after.keys() == {ours.TENSOR}
    assert torch.equal(before[ours.TENSOR], after[ours.TENSOR])
    assert {name.name for name in (tmp_path / "b").iterdir()} == {ours.CONFIG, ours.WEIGHTS}
    configs = [json.loads((tmp_path / name / ours.CONFIG).read_text()) for name in "ab"]
    assert configs[1].items() >= {key: configs[0][key] for key in (*ours.KIND, *ours.SHAPE.values())}.items()


def test_a_prefix_of_unknown_weights_is_checked_by_shape(tmp_path, tiny_folder):
    """num_layers x token_dim may agree where neither does: both are compared."""
    train_theirs(make_gpt2(), tmp_path / "a", projection=False)
    prefix = from_peft(tmp_path / "a")
    assert prefix.base["fingerprint"] == ""
    check_base(prefix, make_gpt2(seed=1))
    wrong = [
        make_gpt2(n_head=4),
        make_gpt2(n_layer=4, n_embd=16),
        make_gpt2(n_layer=3),
        load_lm(tiny_folder)[0],
    ]
    for lm in wrong:
        with pytest.raises(InputError, match=r"fingerprint unknown.*does not fit"):
            check_base(prefix, lm)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "unshifted"}, "trained with 'unshifted' ones"),
        ({"sites": {"infix": torch.ones(2, 128)}, "method": "infix"}, "before x in GPT-2.*at: infix"),
        ({"sites": {"encoder": torch.ones(2, 8), "cross": torch.ones(2, 8)}}, "at: encoder, cross"),
        ({"sites": {}, "tensors": {"a": torch.ones(2)}, "method": "full"}, "changes the model itself"),
        ({"base": {"name": "", "fingerprint": "", "config": {"n_layer": 2}}}, "n_head, n_embd"),
    ],
)
def test_what_the_format_cannot_say_is_refused_with_the_reason(changes, words, tmp_path):
    saved = train(make_gpt2(), tmp_path / "a.pt")
    save_prefix(dataclasses.replace(saved, **changes), tmp_path / "a.pt")
    with pytest.raises(InputError, match=words):
        to_peft(tmp_path / "a.pt", tmp_path / "a")
    assert os.listdir(tmp_path) == ["a.pt"]


def test_nothing_is_overwritten_and_no_half_folder_is_left(tmp_path, monkeypatch):
    train(make_gpt2(), tmp_path / "a.pt")
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="not overwritten"):
        to_peft(tmp_path / "a.pt", tmp_path / "taken")
    with pytest.raises(InputError, match="cannot be written"):
        to_peft(tmp_path / "a.pt", tmp_path / "no" / "such" / "place")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with monkeypatch.context() as patch, pytest.raises((InputError, KeyboardInterrupt)):
            patch.setattr(ours.os, "fsync", lambda _, error=error: (_ for _ in ()).throw(error))
            to_peft(tmp_path / "a.pt", tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "taken"] and not os.listdir(tmp_path / "taken")


@pytest.fixture
def folder(tmp_path) -> Path:
    train(make_gpt2(), tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_floats(dtype, folder):
    P_theta = from_peft(folder).sites["decoder"].to(dtype)
    save_file({ours.TENSOR: P_theta}, folder / ours.WEIGHTS)
    found = from_peft(folder).sites["decoder"]
    assert found.dtype == torch.float32 and torch.equal(found, P_theta.float())


def edit_config(folder: Path, **changes) -> None:
    path = folder / ours.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA', but must be 'PREFIX_TUNING'"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM', but must be 'CAUSAL_LM'"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2"),
        ({"num_layers": 3}, r"promises .*\(3, 192\)"),
        ({"num_virtual_tokens": 4}, r"holds .*\(3, 128\).* promises .*\(4, 128\)"),
        ({"token_dim": "32"}, "token_dim is '32', but must be a whole number"),
        ({"num_layers": None}, "num_layers is None"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3"),
    ],
)
def test_a_folder_of_another_kind_is_one_sentence(change, words, folder):
    edit_config(folder, **change)
    with pytest.raises(InputError, match=words):
        from_peft(folder)


def put(**tensors):
    return lambda folder: save_file(tensors, folder / ours.WEIGHTS)


def leave_a_pickle(folder: Path) -> None:
    torch.save({ours.TENSOR: torch.ones(3, 128)}, folder / "adapter_model.bin")
    (folder / ours.WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / ours.CONFIG).unlink(),
            "is no PEFT folder, for it has no adapter_config.json: give one, or a .pt file",
        ),
        (lambda folder: (folder / ours.CONFIG).write_text("{"), "is not JSON"),
        (lambda folder: (folder / ours.WEIGHTS).unlink(), "safetensors is missing or damaged"),
        (lambda folder: (folder / ours.WEIGHTS).write_bytes(b"PK"), "missing or damaged"),
        (leave_a_pickle, "adapter_model.bin is refused, because it can hold code"),
        (put(lora_A=torch.ones(2, 2)), "holds .'lora_A'"),
        (put(prompt_embeddings=torch.full((3, 128), torch.nan)), "finite"),
        (put(prompt_embeddings=torch.ones(3, 128, dtype=torch.int64)), "promises finite floats"),
        (put(prompt_embeddings=torch.ones(3, 128, dtype=torch.complex64)), "promises finite floats"),
        (put(prompt_embeddings=torch.ones(3, 128), head=torch.ones(2, 2)), "'head'"),
    ],
)
def test_a_damaged_folder_is_one_sentence(change, words, folder):
    change(folder)
    with pytest.raises(InputError, match=words) as error:
        from_peft(folder)
    assert "\n" not in str(error.value)


def test_sample_reads_a_peft_folder_as_the_file_it_came_from(tiny_folder, tmp_path, capsys):
    train(load_lm(tiny_folder)[0], tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "a")
    (tmp_path / "in.txt").write_text("name : Blue Fig | food : Thai\n")
    texts, short = [], ["--input", str(tmp_path / "in.txt"), "--beams", "2", "--max-new-tokens", "5"]
    for name in ("a.pt", "a"):
        sample.main(["--prefix", str(tmp_path / name), *short])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and "Blue Fig" in texts[0]
    edit_config(tmp_path / "a", base_model_name_or_path=None)
    with pytest.raises(InputError, match="does not name its model: pass --model"):
        sample.main(["--prefix", str(tmp_path / "a"), *short])


def test_the_file_and_the_folder_are_the_same_prefix_in_a_batch(folder):
    lm, sources = make_gpt2(), random_sources(3)
    pair = [load_prefix(folder.with_suffix(".pt")), from_peft(folder), None]
    alone = generate(lm, sources, pair[0], max_new_tokens=8)
    assert generate(lm, sources, pair, max_new_tokens=8)[:2] == alone[:2]
