"""weights/pretrain.py and weights/records.py on a text made here."""

import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers", reason="tokenizers trains the vocabulary: pip install .[pretrain]")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "weights"))

import copying
import corpus
import pretrain
import records

from minprefix.checks import InputError
from minprefix.hub import load_lm
from tasks import e2e

TINY = ["vocab_size=400", "n_positions=32", "n_embd=32", "n_layer=2", "n_head=2", "batch=256", "workers=1"]
PEOPLE = ["Ada Zarnock", "Bela Quist", "Cora of Pellwood", "Dr. E. F. Moss"]
TEXT = "Ada Zarnock, née Møller, sold 17 houses.\n\n It's\ttrue"
DATA = ("vocab.json", "merges.txt", "data.json", "train.npy", "heldout.npy", "heldout_records.npy")


def make_document(rng: random.Random) -> str:
    who, where, year = rng.choice(PEOPLE), rng.choice(["Oslo", "Lima", "Port Hale"]), rng.randint(1800, 2000)
    born = f"{who} was a famous painter born in {where} in {year}."
    sold = f"It has {rng.randint(2, 90)} small rooms. {who} sold it for £{rng.randint(100, 999)},000."
    lines = [f"{born} The old house still stands near the river.", *[sold] * rng.randint(1, 3)]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    (folder / "wiki.txt").write_text("\n\n".join(make_document(rng) for _ in range(1500)))
    return folder


@pytest.fixture(scope="module")
def work(text_folder, tmp_path_factory) -> Path:
    return finish(text_folder, tmp_path_factory.mktemp("run"))


def finish(text_folder: Path, work: Path, *more: str) -> Path:
    """A finished run of 12 steps."""
    files = [f"corpus={text_folder}", f"work={work}", f"out={work / 'lm'}"]
    pretrain.main([*TINY, *files, "tokens=3072", *more])
    return work


def start_anew(work: Path, folder: Path) -> list[str]:
    """Copies a run's data, not its state, to another folder -> the arguments for a run there."""
    for name in DATA:
        (folder / name).write_bytes((work / name).read_bytes())
    return [*TINY, f"work={folder}", f"out={folder / 'lm'}", "tokens=3072"]


def read_state(work: Path) -> dict:
    return torch.load(work / "state.pt", weights_only=True)


def read_log(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def load_theirs(folder: Path, kind: str):
    """What transformers makes of a checkpoint, which must lack nothing -> its model and tokenizer."""
    transformers = pytest.importorskip("transformers", reason="a test dependency: pip install .[test]")
    options = {"dtype": torch.float32, "output_loading_info": True}
    theirs, info = getattr(transformers, kind).from_pretrained(folder, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return theirs, transformers.AutoTokenizer.from_pretrained(folder)


def check_resuming(work: Path, folder: Path, arguments: list[str], monkeypatch) -> None:
    """A run that stops after five steps and goes on ends with the tensors of one that was left alone."""
    save_state = pretrain.save_state

    def stop_after_five(lm, optimisers, step, *rest):
        save_state(lm, optimisers, step, *rest)
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "save_state", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main([*arguments, "save_minutes=1e-9"])
    assert read_state(folder)["step"] == 5 and not (folder / "lm").exists()
    pretrain.main(arguments)
    torch.testing.assert_close(read_state(folder)["lm"], read_state(work)["lm"], rtol=0, atol=0)


def test_log_tells_losses_and_bits(work):
    first, *_, last = read_log(work)
    assert first["step"] == 12 and first["tokens"] == 3072 and 0 < first["loss"] < 7
    assert 0 < last["heldout"] < 7 and 0 < last["bits_per_byte"] < 8 and 0 < last["heldout_records"] < 7


def test_transformers_loads_the_checkpoint_and_agrees(work):
    theirs, tokenizer = load_theirs(work / "lm", "AutoModelForCausalLM")
    ours, our_tokenizer = load_lm(work / "lm")
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == our_tokenizer.encode(TEXT)
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == 0 and tokenizer.model_max_length == 32
    with torch.no_grad():
        torch.testing.assert_close(ours(torch.tensor([ids[:32]])), theirs(torch.tensor([ids[:32]])).logits)


def test_resuming_changes_nothing(work, tmp_path, monkeypatch):
    check_resuming(work, tmp_path, start_anew(work, tmp_path), monkeypatch)


def test_resuming_with_fewer_tokens_pulls_the_decay_forward(work, tmp_path):
    config = pretrain.parse([*TINY, "tokens=3072"])
    assert pretrain.scale_rate(11, 12, config) < 0.3 < pretrain.scale_rate(11, 24, config)
    (tmp_path / "state.pt").write_bytes((work / "state.pt").read_bytes())
    pretrain.main([*start_anew(work, tmp_path), "tokens=3584"])
    assert read_state(tmp_path)["step"] == 14


def test_two_workers_compute_the_same(work, tmp_path):
    pretrain.main([*start_anew(work, tmp_path), "workers=2"])
    torch.testing.assert_close(read_state(tmp_path)["lm"], read_state(work)["lm"], atol=1e-4, rtol=1e-3)


def test_minutes_limit_the_run_from_an_empty_folder(text_folder, tmp_path):
    """The BPE and the token files take their share of the minutes; the checkpoint is there when they end."""
    files = [f"corpus={text_folder}", f"work={tmp_path / 'work'}", f"out={tmp_path / 'lm'}"]
    began = time.monotonic()
    pretrain.main([*TINY, *files, "tokens=1000M", "minutes=0.2"])
    assert time.monotonic() - began < 60
    assert 5 <= read_state(tmp_path / "work")["step"] < 20_000
    load_theirs(tmp_path / "lm", "AutoModelForCausalLM")


def test_batches_go_through_the_data_in_order_and_grow_longer():
    config, data = pretrain.parse(TINY), np.arange(5000, dtype=np.uint16)
    early, late = (pretrain.read_batch(data, step, 12, config) for step in (8, 9))
    assert early.shape == (16, 17) and late.shape == (8, 33)
    assert early[:, :-1].flatten().tolist() == list(range(8 * 256, 9 * 256))
    assert late[:, 1:].flatten().tolist() == list(range(9 * 256 + 1, 10 * 256 + 1))
    config = pretrain.parse([*TINY, "warm=0.5"])
    assert [pretrain.read_batch(data, step, 12, config).shape[1] for step in (0, 5, 6, 9)] == [5, 5, 17, 33]


def test_loss_skips_records_and_has_the_right_gradient():
    lm = pretrain.build_lm(pretrain.parse(TINY))
    ids = torch.randint(1, 400, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = lm(ids[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits[:, 3:].flatten(0, 1), ids[:, 4:].flatten())
    marked = torch.cat((ids[:, :4] | corpus.GIVEN, ids[:, 4:]), 1)
    loss, count = pretrain.compute_loss(lm, marked)
    assert count == 10
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, list(lm.parameters())) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_muon_moves_matrices_by_orthogonal_steps_of_adams_size_in_float32():
    config = pretrain.parse(TINY)
    lm = pretrain.build_lm(config)
    weight = lm.h[0].mlp.c_fc.weight  # (32, 128)
    before, gradient = weight.detach().clone(), torch.randn(32, 128)
    pretrain.take_step(lm, pretrain.build_optimisers(lm, config), (weight * gradient).sum(), 1.0, config)
    step = (before * (1 - 0.05 * 3e-3) - weight.detach()) / (0.2 * 3e-3 * 128**0.5)
    values = torch.linalg.svdvals(step)
    assert values.min() > 0.5 and values.max() < 1.3
    assert (step.bfloat16() - step).norm() > 1e-4 * step.norm()  # its numbers are no bfloat16


def test_records_never_look_like_the_tasks():
    rng = random.Random(0)
    text = "The Ivy | a pub : since 1990 : serves cheap Thai food near Clare Hall. It sold in 2004 for £20."
    made = [record for _ in range(3000) for record, _ in records.make_records(text, rng)]
    assert len(set(made)) > 2500
    assert not any(" : " in record or " | " in record for record in made)
    keys = {key.lower() for group in (*records.KEYS.values(), records.BARE_KEYS) for key in group}
    assert keys.isdisjoint(key.lower() for key in (*e2e.KEYS, *e2e.RENAMED))
    assert 0.45 < sum(record.endswith(corpus.EOT) for record in made) / len(made) < 0.55


def test_records_hold_the_facts_of_their_text():
    rng, text = random.Random(0), "Cora of Pellwood was born in Port Hale in 1843."
    kept = [fact for _ in range(200) for fact in records.extract_facts(text, rng)]
    names = {("name", "Cora of Pellwood"), ("name", "Port Hale")}
    assert set(kept) == names | {("words", "born"), ("number", "1843")}
    assert len(kept) > 0.8 * 4 * 200


def test_copied_names_are_whole_words():
    assert copying.holds("year : 1843 | who : Cora", "1843") and copying.holds("Cora (1843).", "Cora")
    assert not copying.holds("year : 1843 | who : Cora", "18") and not copying.holds("Coral", "Cora")


def test_documents_that_overlap_with_tests_are_left_out(work, tmp_path):
    words = "was a famous painter born in Oslo in 1850. The old house still stands"
    (tmp_path / "task.txt").write_text(f"{words}\n")
    documents = [[f"Ada {words} near the river. ".replace("born", "Born")], ["Some other text."]]
    pieces, counts = corpus.encode_chunk((0, documents), work, corpus.read_tests(tmp_path), 0.0)
    assert counts == {"documents": 2, "left_out": 1, "task": 1} and len(pieces) == 1


def test_held_out_documents_are_not_trained_on(work):
    bpe = load_lm(work / "lm")[1]
    trained = bpe.decode((np.load(work / "train.npy") & (corpus.GIVEN - 1)).tolist())
    texts = bpe.decode(np.load(work / "heldout.npy").tolist()).split(corpus.EOT)
    held_out = [text for text in texts if text.count("\n") >= 2]
    assert held_out and not any(text in trained for text in held_out)


BAD_INPUT = {
    "token=3": "'token'; did you mean 'tokens'",
    "tokens": "'tokens' is not understood: write key=value",
    "n_layer=two": "n_layer is 'two'",
    "lr_rest=nan": "lr_rest is 'nan'",
    "batch=1000 workers=2": "batch=1000",
    "n_embd=33": "n_embd 33 must be divisible by n_head 4",
    "corpus=nowhere": "nowhere",
    "corpus=.": r"broken\.txt\.xz cannot be read",
}


@pytest.mark.parametrize("arguments", BAD_INPUT)
def test_bad_input_is_named(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.txt.xz").write_bytes(b"\xfd7zXZ\x00 and no more")
    with pytest.raises(InputError, match=BAD_INPUT[arguments]):
        pretrain.main(arguments.split())


def test_a_run_of_another_kind_is_neither_resumed_nor_replaced(work, tmp_path):
    for change, message in (("n_layer=3", "n_layer=2"), ("tokens=256", "3,072"), (f"out={work}", "exists")):
        with pytest.raises(InputError, match=message):
            pretrain.main([*TINY, f"work={work}", change])
    state = read_state(work)
    del state["optimisers"][0]["param_groups"][0]["ns_steps"]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"before torch\.optim\.Muon"):
        pretrain.read_state(pretrain.parse([*TINY, f"work={tmp_path}"]))
