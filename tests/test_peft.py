"""Prefixes from and for PEFT, against PEFT itself."""

import dataclasses
import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

import sample
from minprefix import InputError, from_peft, generate, load_lm, save_prefix, to_peft
from minprefix.generate import check_base
from minprefix.methods import collapse
from minprefix.peft import CONFIG, TENSOR, WEIGHTS
from minprefix.prefix import SavedPrefix, read_activations
from tests.conftest import assert_close, continue_from, random_sources, train_steps
from tests.models import BATCHES, as_transformers, make_gpt2, make_prefix

peft = pytest.importorskip("peft", reason="peft is a test dependency: pip install .[test]")
transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")


def train(lm, path: Path, method: str = "prefix", batch: list = BATCHES["GPT-2"]) -> SavedPrefix:
    """A prefix after three steps, as the file that train.py leaves."""
    theta, _ = train_steps(lm, batch, method, 3)
    saved = collapse(lm, method, theta, {}, "made up")
    save_prefix(saved, path)
    return saved


def train_theirs(lm, folder: Path, projection: bool = False):
    """A prefix that PEFT trained on random ids, in its folder, and PEFT's model."""
    torch.manual_seed(0)
    settings = dict(num_virtual_tokens=4, prefix_projection=projection, encoder_hidden_size=16)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(as_transformers(lm), config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05)
    ids = torch.randint(1, 40, (4, 9))
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    return model


def assert_same_outputs(lm, prefix: SavedPrefix, model, sources: list[list[int]]) -> None:
    """Logits to 4e-6 of the largest, the same greedy ids, and a prefix that matters to both.

    Either side may be 2e-6 from float64: oneDNN and MKL round differently.
    """
    for source in sources:
        ids = torch.tensor([source])
        with torch.no_grad():
            theirs, mine = model(input_ids=ids).logits, continue_from(lm, [[]], [prefix], ids)
            assert_close(mine, theirs, 4e-6)
            assert (mine - lm(ids)).abs().max() > 0.01
        options = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
        out = [*out[len(source) :], 0]
        assert generate(lm, [source], prefix, beams=1, max_new_tokens=6) == [out[: out.index(0)]]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", ["prefix", "embedding"])
def test_peft_computes_with_our_folder_what_we_compute(method, seed, tmp_path):
    lm = make_gpt2(seed)
    saved = train(lm, tmp_path / "a.pt", method)
    to_peft(tmp_path / "a.pt", tmp_path / "a")
    model = peft.PeftModel.from_pretrained(as_transformers(lm), tmp_path / "a")
    assert_same_outputs(lm, saved, model, random_sources(seed, count=2))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("projection", [False, True])
def test_we_compute_what_peft_computes_with_its_prefix(projection, seed, tmp_path):
    lm = make_gpt2(seed)
    model = train_theirs(lm, tmp_path / "a", projection)
    prefix = from_peft(tmp_path / "a")
    assert tuple(prefix.sites["decoder"].shape) == (4, 128)
    assert_same_outputs(lm, prefix, model, random_sources(seed, count=2))


def test_the_way_out_and_back_keeps_every_bit_and_the_model_s_fingerprint(tmp_path, tiny_folder):
    saved = train(load_lm(tiny_folder)[0], tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "a")
    back = from_peft(tmp_path / "a")
    assert torch.equal(back.sites["decoder"], saved.sites["decoder"])
    assert all(back.base[key] == saved.base[key] != "" for key in ("name", "fingerprint"))
    save_prefix(back, tmp_path / "b.pt")
    to_peft(tmp_path / "b.pt", tmp_path / "b")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_the_way_in_and_out_keeps_every_bit_of_peft_s(tmp_path):
    train_theirs(make_gpt2(), tmp_path / "a")
    save_prefix(from_peft(tmp_path / "a"), tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "b")
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in "ab")
    assert before.keys() == after.keys() == {TENSOR} and torch.equal(before[TENSOR], after[TENSOR])
    assert set(os.listdir(tmp_path / "b")) == {CONFIG, WEIGHTS}
    theirs, ours = (json.loads((tmp_path / name / CONFIG).read_text()) for name in "ab")
    unknown = {"base_model_name_or_path", "encoder_hidden_size", "inference_mode"}
    assert all(ours[key] == theirs[key] for key in ours.keys() - unknown)


class Ids:
    """A tokenizer for PEFT that reads numbers as ids."""

    def __call__(self, text: str, **options) -> dict:
        return {"input_ids": torch.tensor([[int(word) for word in text.split()]])}


def make_cartridge(lm, folder: Path, frozen: int, text: str = "5 6 7 8 9 10"):
    """PEFT's prefix from the keys and values of a text, in its folder, its tensor, and PEFT's model."""
    config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_frozen_tokens=frozen)
    model = peft.get_peft_model(as_transformers(lm), config)
    tensor = peft.initialize_kv_prefix_from_text(model, Ids(), text=text)
    model.eval().save_pretrained(folder)
    return tensor, model


def test_a_text_s_activations_are_those_that_peft_starts_from(tmp_path):
    lm = make_gpt2()
    theirs, _ = make_cartridge(lm, tmp_path / "a", 1)
    assert_close(read_activations(lm, [5, 6, 7, 8, 9, 10], 4), theirs, 2e-6)


@pytest.mark.parametrize("frozen", [0, 1, 4])
def test_a_cartridge_goes_in_and_out_as_one(frozen, tmp_path):
    lm = make_gpt2()
    tensor, model = make_cartridge(lm, tmp_path / "a", frozen)
    prefix = from_peft(tmp_path / "a")
    assert torch.equal(prefix.sites["decoder"], tensor)
    assert_same_outputs(lm, prefix, model, random_sources(0, count=2))
    save_prefix(prefix, tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "b")
    theirs, ours = (json.loads((tmp_path / name / CONFIG).read_text()) for name in "ab")
    known = ours.keys() - {"base_model_name_or_path"}
    assert known < theirs.keys() and all(ours[key] == theirs[key] for key in known)
    assert ours["peft_type"] == "CARTRIDGE" and ours["num_frozen_tokens"] == frozen
    loaded = peft.PeftModel.from_pretrained(as_transformers(lm), tmp_path / "b")
    encoder = loaded.prompt_encoder["default"]
    assert encoder.trainable_embedding.shape[0] == 4 - frozen and torch.equal(encoder.weight, tensor)
    assert_same_outputs(lm, prefix, loaded.eval(), random_sources(1, count=2))


def test_a_cartridge_cannot_keep_more_slots_than_it_has(tmp_path):
    make_cartridge(make_gpt2(), tmp_path / "a", 1)
    prefix = from_peft(tmp_path / "a")
    edit_config(num_frozen_tokens=5)(tmp_path / "a")
    with pytest.raises(InputError, match=r"num_frozen_tokens 5 must be"):
        from_peft(tmp_path / "a")
    for frozen in (-1, 5, "1"):
        save_prefix(dataclasses.replace(prefix, config={"num_frozen_tokens": frozen}), tmp_path / "a.pt")
        with pytest.raises(InputError, match="num_frozen_tokens"):
            to_peft(tmp_path / "a.pt", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_prefix_of_unknown_weights_is_checked_by_shape(tmp_path, tiny_folder):
    """num_layers x token_dim may agree where neither does: both are compared."""
    train_theirs(make_gpt2(), tmp_path / "a")
    prefix = from_peft(tmp_path / "a")
    assert prefix.base["fingerprint"] == ""
    check_base(prefix, make_gpt2(seed=1))
    others = [make_gpt2(n_head=4), make_gpt2(n_layer=4, n_embd=16), make_gpt2(n_layer=3)]
    for lm in [*others, load_lm(tiny_folder)[0]]:
        with pytest.raises(InputError, match=r"unknown.*does not fit"):
            check_base(prefix, lm)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "unshifted"}, "unshifted"),
        ({"sites": {"infix": torch.ones(2, 128)}, "method": "infix"}, r"infix.*before x in GPT-2"),
        ({"sites": {"encoder": torch.ones(2, 8), "cross": torch.ones(2, 8)}}, "encoder, cross"),
        ({"sites": {}, "tensors": {"a": torch.ones(2)}, "method": "full"}, "method full"),
        ({"base": {"name": "", "fingerprint": "", "config": {"n_layer": 2}}}, "num_attention_heads|n_head"),
    ],
)
def test_what_the_format_cannot_say_is_refused_with_the_reason(changes, words, tmp_path):
    save_prefix(dataclasses.replace(make_prefix(make_gpt2(), 3), **changes), tmp_path / "a.pt")
    with pytest.raises(InputError, match=words):
        to_peft(tmp_path / "a.pt", tmp_path / "a")
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.fixture
def folder(tmp_path) -> Path:
    train(make_gpt2(), tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "a")
    return tmp_path / "a"


def test_nothing_is_overwritten_and_no_half_folder_is_left(folder, monkeypatch):
    path, place = folder.with_suffix(".pt"), folder.parent
    os.mkdir(place / "taken")
    with pytest.raises(InputError, match="not overwritten"):
        to_peft(path, place / "taken")
    with pytest.raises(InputError, match="cannot be written"):
        to_peft(path, place / "no" / "such" / "place")
    monkeypatch.setattr(
        Path, "rename", mock.Mock(side_effect=[OSError(28, "No space left"), KeyboardInterrupt])
    )
    for refused in (InputError, KeyboardInterrupt):
        with pytest.raises(refused):
            to_peft(path, place / "new")
    assert sorted(os.listdir(place)) == ["a", "a.pt", "taken"] and not os.listdir(place / "taken")


def edit_config(**changes):
    def edit(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(content | changes))

    return edit


def put(**tensors):
    return lambda folder: save_file(tensors, folder / WEIGHTS)


def remove(name: str):
    return lambda folder: (folder / name).unlink()


ONES = torch.ones(3, 128)
BAD = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 2}
BAD |= {"token_dim": "32", "num_layers": None, "base_model_name_or_path": 3}
FAULTS = [
    *[(edit_config(**{key: value}), f"{key} is {value!r}") for key, value in BAD.items()],
    (edit_config(num_layers=3), r"\(3, 128\).*\(3, 192\)"),
    (edit_config(num_virtual_tokens=4), r"\(3, 128\).*\(4, 128\)"),
    (remove(CONFIG), CONFIG),
    (lambda folder: (folder / CONFIG).write_text("{"), CONFIG),
    (remove(WEIGHTS), "safetensors is missing or damaged"),
    (lambda folder: (folder / WEIGHTS).write_bytes(b"PK"), "missing or damaged"),
    (put(lora_A=torch.ones(2, 2)), "lora_A"),
    (put(prompt_embeddings=ONES, head=torch.ones(2, 2)), "head"),
    (put(prompt_embeddings=ONES * torch.nan), "finite"),
    (put(prompt_embeddings=ONES.long()), "finite floats"),
    (put(prompt_embeddings=ONES * 1j), "finite floats"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS)
def test_a_damaged_folder_or_one_of_another_kind_is_one_sentence(change, words, folder):
    torch.save({TENSOR: ONES}, folder / "adapter_model.bin")  # a pickle, which is never read
    change(folder)
    with pytest.raises(InputError, match=words) as error:
        from_peft(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_floats(dtype, folder):
    P_theta = from_peft(folder).sites["decoder"].to(dtype)
    put(prompt_embeddings=P_theta)(folder)
    found = from_peft(folder).sites["decoder"]
    assert found.dtype == torch.float32 and torch.equal(found, P_theta.float())


def test_sample_reads_a_peft_folder_as_the_file_it_came_from(tiny_folder, tmp_path, capsys):
    train(load_lm(tiny_folder)[0], tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "a")
    (tmp_path / "in.txt").write_text("name : Blue Fig | food : Thai\n")
    texts, short = [], ["--input", str(tmp_path / "in.txt"), "--beams", "2", "--max-new-tokens", "5"]
    for name in ("a.pt", "a"):
        sample.main(["--prefix", str(tmp_path / name), *short])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and "Blue Fig" in texts[0]
    edit_config(base_model_name_or_path=None)(tmp_path / "a")
    with pytest.raises(InputError, match="pass --model"):
        sample.main(["--prefix", str(tmp_path / "a"), *short])
