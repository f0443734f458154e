"""weights/pretrain.py and weights/records.py on a text made here."""

import json
import random
import re
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
import muon
import pretrain
import records

from minprefix.errors import InputError
from minprefix.hub import load_lm

TINY = [
    "vocab_size=400",
    "n_positions=32",
    "n_embd=32",
    "n_layer=2",
    "n_head=2",
    "batch=256",
    "warmup=2",
    "workers=1",
]
PEOPLE = ["Ada Zarnock", "Bela Quist", "Cora of Pellwood", "Dr. E. F. Moss"]
TASK_KEYS = [
    "name",
    "type",
    "eattype",
    "food",
    "price",
    "pricerange",
    "customer rating",
    "area",
    "family friendly",
    "near",
]


def make_document(rng: random.Random) -> str:
    who, where, year = rng.choice(PEOPLE), rng.choice(["Oslo", "Lima", "Port Hale"]), rng.randint(1800, 2000)
    lines = [
        f"{who} was a famous painter born in {where} in {year}. The old house still stands near the river."
    ]
    lines += [
        f"It has {rng.randint(2, 90)} small rooms. {who} sold it for £{rng.randint(100, 999)},000."
    ] * rng.randint(1, 3)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    (folder / "wiki.txt").write_text("\n\n".join(make_document(rng) for _ in range(1500)))
    return folder


@pytest.fixture(scope="module")
def work(text_folder, tmp_path_factory) -> Path:
    """A finished run of 12 steps."""
    work = tmp_path_factory.mktemp("run")
    pretrain.main([*TINY, f"corpus={text_folder}", f"work={work}", f"out={work / 'lm'}", "tokens=3072"])
    return work


def start_anew(work: Path, tmp_path: Path) -> Path:
    """A folder with the same data and no state."""
    for name in ("vocab.json", "merges.txt", "data.json", "train.npy", "heldout.npy", "heldout_records.npy"):
        (tmp_path / name).write_bytes((work / name).read_bytes())
    return tmp_path


def read_state(work: Path) -> dict:
    return torch.load(work / "state.pt", weights_only=True)


def test_log_tells_losses_and_bits(work):
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 12 and lines[0]["tokens"] == 3072 and 0 < lines[0]["loss"] < 7
    assert (
        0 < lines[-1]["heldout"] < 7
        and 0 < lines[-1]["bits_per_byte"] < 8
        and 0 < lines[-1]["heldout_records"] < 7
    )


def test_transformers_loads_the_checkpoint_and_agrees(work):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is a test dependency: pip install .[test]"
    )
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        work / "lm", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "lm")
    ours, our_tokenizer = load_lm(work / "lm")
    text = "Ada Zarnock, née Møller, sold 17 houses.\n\n It's\ttrue"
    ids = tokenizer(text)["input_ids"]
    assert ids == our_tokenizer.encode(text)
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == 0
    with torch.no_grad():
        torch.testing.assert_close(ours(torch.tensor([ids[:32]])), theirs(torch.tensor([ids[:32]])).logits)


def test_resuming_changes_nothing(work, text_folder, tmp_path, monkeypatch):
    arguments = [
        *TINY,
        f"work={start_anew(work, tmp_path)}",
        f"out={tmp_path / 'lm'}",
        "tokens=3072",
        "save_minutes=1e-9",
    ]
    take_step, calls = pretrain.take_step, []

    def stop_at_the_sixth(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return take_step(*args)

    monkeypatch.setattr(pretrain, "take_step", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(arguments)
    assert read_state(tmp_path)["step"] == 5 and not (tmp_path / "lm").exists()
    pretrain.main(arguments)
    once, twice = read_state(work)["lm"], read_state(tmp_path)["lm"]
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_resuming_with_fewer_tokens_pulls_the_decay_forward(work, tmp_path):
    config = pretrain.parse([*TINY, "tokens=3072"])
    assert pretrain.scale_rate(11, 12, config) < 0.3 < pretrain.scale_rate(11, 24, config)
    (tmp_path / "state.pt").write_bytes((work / "state.pt").read_bytes())
    arguments = [*TINY, f"work={start_anew(work, tmp_path)}", f"out={tmp_path / 'lm'}"]
    pretrain.main([*arguments, "tokens=3584"])
    assert read_state(tmp_path)["step"] == 14


def test_two_workers_compute_the_same(work, tmp_path):
    arguments = [
        *TINY[:-1],
        "workers=2",
        f"work={start_anew(work, tmp_path)}",
        f"out={tmp_path / 'lm'}",
        "tokens=3072",
    ]
    pretrain.main(arguments)
    one, two = read_state(work)["lm"], read_state(tmp_path)["lm"]
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3)


def test_minutes_limit_the_run_from_an_empty_folder(text_folder, tmp_path):
    """The BPE and the token files take their share of the minutes; the checkpoint is there when they end."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is a test dependency: pip install .[test]"
    )
    files = [f"corpus={text_folder}", f"work={tmp_path / 'work'}", f"out={tmp_path / 'lm'}"]
    began = time.monotonic()
    pretrain.main([*TINY, *files, "tokens=1000M", "minutes=0.2"])
    assert time.monotonic() - began < 60
    assert 5 <= read_state(tmp_path / "work")["step"] < 20_000
    lm = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "lm")
    ids = lm.generate(**tokenizer("Ada Zarnock", return_tensors="pt"), max_new_tokens=3, min_new_tokens=3)
    assert tokenizer.decode(ids[0]).startswith("Ada Zarnock")


def test_batches_go_through_the_data_in_order_and_grow_longer():
    config, data = pretrain.parse(TINY), np.arange(5000, dtype=np.uint16)
    early, late = (pretrain.read_batch(data, step, 12, config) for step in (8, 9))
    assert early.shape == (16, 17) and late.shape == (8, 33)
    config = pretrain.parse([*TINY, "warm=0.5"])
    assert [pretrain.read_batch(data, step, 12, config).shape[1] for step in (0, 5, 6, 9)] == [5, 5, 17, 33]
    assert early[:, :-1].flatten().tolist() == list(range(8 * 256, 9 * 256))
    assert late[:, 1:].flatten().tolist() == list(range(9 * 256 + 1, 10 * 256 + 1))


def test_loss_skips_records_and_has_the_right_gradient():
    lm = pretrain.build_lm(pretrain.parse(TINY))
    ids = torch.randint(1, 400, (2, 9), generator=torch.Generator().manual_seed(0))
    marked = ids.clone()
    marked[:, :4] |= corpus.GIVEN
    logits = lm(ids[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits[:, 3:].flatten(0, 1), ids[:, 4:].flatten())
    loss, count = pretrain.compute_loss(lm, marked)
    assert count == 10
    torch.testing.assert_close(loss, expected)
    for p, q in zip(
        torch.autograd.grad(loss, lm.parameters()), torch.autograd.grad(expected, lm.parameters())
    ):
        torch.testing.assert_close(p, q)


def test_muon_step_has_singular_values_near_one():
    values = torch.linalg.svdvals(
        muon.orthogonalise(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))
    )
    assert values.min() > 0.5 and values.max() < 1.3


def test_records_never_look_like_the_tasks():
    rng = random.Random(0)
    text = (
        "The Ivy | a pub : since 1990 : serves cheap Thai food near Clare Hall. It was sold in 2004 for £20."
    )
    made = [record for _ in range(3000) for record, _ in records.make_records(text, rng)]
    assert len(set(made)) > 2500
    assert not any(" : " in record or " | " in record for record in made)
    keys = {key.lower() for group in (*records.KEYS.values(), records.BARE_KEYS) for key in group}
    assert keys.isdisjoint(TASK_KEYS)
    ends = sum(record.endswith(corpus.EOT) for record in made) / len(made)
    assert 0.45 < ends < 0.55


def test_records_hold_the_facts_of_their_text():
    rng = random.Random(0)
    text = "Cora of Pellwood was born in Port Hale in 1843."
    kept = [fact for _ in range(200) for fact in records.extract_facts(text, rng)]
    assert set(kept) == {
        ("name", "Cora of Pellwood"),
        ("words", "born"),
        ("name", "Port Hale"),
        ("number", "1843"),
    }
    assert len(kept) > 0.8 * 4 * 200


def test_copied_names_are_whole_words():
    assert copying.holds("year : 1843 | who : Cora", "1843") and copying.holds("Cora (1843).", "Cora")
    assert not copying.holds("year : 1843 | who : Cora", "18") and not copying.holds("Coral", "Cora")


def test_documents_that_overlap_with_tests_are_left_out(text_folder, work, tmp_path):
    tests = tmp_path / "tests"
    tests.mkdir()
    words = "was a famous painter born in Oslo in 1850. The old house still stands"
    (tests / "task.txt").write_text(f"{words}\n")
    document = [f"Ada {words} near the river. ".replace("born", "Born")]
    pieces, counts = corpus.encode_chunk(
        (0, [document, ["Some other text."]]), work, corpus.read_tests(tests), 0.0
    )
    assert counts == {"documents": 2, "left_out": 1, "task": 1} and len(pieces) == 1


def test_held_out_documents_are_not_trained_on(text_folder, work):
    bpe = load_lm(work / "lm")[1]
    trained = bpe.decode((np.load(work / "train.npy") & (corpus.GIVEN - 1)).tolist())
    held_out = bpe.decode(np.load(work / "heldout.npy").tolist()).split(corpus.EOT)
    held_out = [text for text in held_out if len(re.findall(r"\n", text)) >= 2]
    assert held_out and not any(text in trained for text in held_out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["token=3"], "token=3"),
        (["n_layer=two"], "n_layer"),
        (["batch=1000", "workers=2"], "batch=1000"),
        (["corpus=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_named(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        pretrain.main([f"work={tmp_path}", *arguments])


def test_another_shape_or_a_shorter_run_is_not_resumed(work):
    with pytest.raises(InputError, match="n_layer=2"):
        pretrain.main([*TINY, "n_layer=3", f"work={work}"])
    with pytest.raises(InputError, match="3,072 tokens"):
        pretrain.main([*TINY, "tokens=2560", f"work={work}"])


def test_a_checkpoint_is_not_replaced(work):
    with pytest.raises(InputError, match="exists"):
        pretrain.main([*TINY, f"work={work}", f"out={work / 'lm'}"])
