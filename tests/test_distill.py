"""Context distillation: a prefix learns to say what the frozen model says behind a text."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sample
from experiments import cartridges
from minprefix import generate, load_lm, load_prefix
from minprefix.checks import InputError
from minprefix.methods import compute_sites, distil_loss, make_theta, target_logits
from minprefix.prefix import read_activations, spread_activations
from minprefix.store import save_prefix
from tests.conftest import assert_close, assert_refused
from tests.models import BATCHES, MODELS, both_models, make_gpt2, make_prefix
from tests.test_llama import BATCH, make_llama

TEXT = [5, 9, 4, 7, 3, 8, 6, 5, 5, 9]
DECODERS = {"GPT-2": (make_gpt2, BATCHES["GPT-2"]), "Llama": (make_llama, BATCH)}
both_decoders = pytest.mark.parametrize("name", DECODERS)


def whole(lm) -> dict[str, torch.Tensor]:
    return {"decoder": read_activations(lm, TEXT, len(TEXT))}


@both_decoders
def test_behind_its_activations_the_model_says_what_it_says_behind_the_text(name):
    """So the KL of the prefix that is the whole text is 0."""
    make, batch = DECODERS[name]
    lm = make()
    spliced, y = target_logits(lm, whole(lm), batch)
    read, same = target_logits(lm, {}, [(TEXT + source, y) for source, y in batch])
    assert_close(spliced, read)
    assert torch.equal(y, same) and (spliced - target_logits(lm, {}, batch)[0]).abs().max() > 0.1
    assert distil_loss(lm, whole(lm), whole(lm), batch).max() < 1e-6  # two libraries, two roundings


@both_models
def test_the_loss_is_the_kl_of_each_token_of_y(model):
    lm, batch = MODELS[model](), BATCHES[model]
    teacher, sites = (make_prefix(lm, 3, seed).sites for seed in (0, 1))
    p, q = (target_logits(lm, prefix, batch)[0].double().softmax(-1) for prefix in (teacher, sites))
    kl = distil_loss(lm, sites, teacher, batch)
    assert kl.shape == (sum(len(y) for _, y in batch),) and kl.min() > 0
    assert_close(kl, (p * (p / q).log()).sum(-1).float())
    alone = torch.cat([distil_loss(lm, sites, teacher, [pair]) for pair in batch])
    assert_close(kl, alone)  # whoever else is in the batch


def test_both_see_the_same_tokens_and_the_gradient_reaches_p_theta_only(monkeypatch):
    lm, batch, seen = make_gpt2(), BATCHES["GPT-2"], []
    hidden = type(lm).hidden

    def watch(lm, ids, cache=None, mask=None, embeds=None):
        seen.append((ids, len(cache)))
        return hidden(lm, ids, cache, mask, embeds)

    teacher = whole(lm)["decoder"].requires_grad_()
    theta = make_theta(lm, "prefix", 3, 0, TEXT)
    monkeypatch.setattr(type(lm), "hidden", watch)
    distil_loss(lm, compute_sites(lm, "prefix", theta), {"decoder": teacher}, batch).sum().backward()
    (theirs, behind), (ours, ours_behind) = seen
    assert torch.equal(theirs, ours) and (behind, ours_behind) == (len(TEXT), 3)
    assert teacher.grad is None and all(parameter.grad is None for parameter in lm.parameters())
    assert (theta["decoder"].P.grad.abs().sum(1) > 0).all()


@both_decoders
def test_slots_all_over_a_text_are_its_own_at_other_positions(name):
    lm = DECODERS[name][0]()
    assert torch.equal(spread_activations(lm, TEXT, len(TEXT)), whole(lm)["decoder"])
    few = spread_activations(lm, TEXT, 4)
    back = lm.move(few, torch.tensor([0, 2, 5, 7]) - torch.arange(4))
    assert_close(back, whole(lm)["decoder"][[0, 2, 5, 7]])
    assert torch.equal(few[0], whole(lm)["decoder"][0])


def test_a_moved_llama_s_keys_are_those_it_computes_further_on():
    """At all layers: what a token computes depends on how far it is from others, not on where they are."""
    lm, cache = make_llama(), make_llama().empty_cache(1)
    cache.next += 7
    lm.hidden(torch.tensor([TEXT]), cache)
    there = torch.stack([kv[0] for pair in zip(cache.keys, cache.values) for kv in pair])
    moved = lm.move(whole(lm)["decoder"], torch.full((len(TEXT),), 7))
    assert_close(moved, there.permute(2, 0, 1, 3).flatten(1))
    assert (moved - whole(lm)["decoder"]).abs().max() > 0.1


def test_a_prefix_comes_nearer_to_the_text_and_its_first_slots_stay(tmp_path):
    """And a stopped training goes on to the same bits."""
    lm, batch, teacher = make_gpt2(), BATCHES["GPT-2"], whole(make_gpt2())

    def descend(state: Path, stop: int = 60) -> tuple[torch.Tensor, list[float]]:
        theta = make_theta(lm, "prefix", 4, 0, TEXT)

        def find_loss(step: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return distil_loss(lm, compute_sites(lm, "prefix", theta), teacher, batch[step % 3 :]).mean()

        losses = cartridges.descend(theta, find_loss, 60, 0.03, 2, state)
        return theta["decoder"].P.detach(), losses

    P_theta, losses = descend(tmp_path / "a.state.pt")
    moved = (read_activations(lm, TEXT, 4) != P_theta).any(1)
    assert moved.tolist() == [False, False, True, True] and losses[-3] < 0.5 * losses[0]
    with pytest.raises(KeyboardInterrupt):
        descend(tmp_path / "b.state.pt", 25)
    again, same = descend(tmp_path / "b.state.pt")
    assert torch.equal(again, P_theta) and same == losses


DOCUMENT = cartridges.read_table("document")
TINY = {"tokens": 4, "steps": 2, "batch": 2, "lr": 1e-2, "seed": 0}


def split_runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = text.lower().strip("?.").split()
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_the_document_s_held_out_questions_are_in_other_words():
    """Five words in a row stand neither in a training question of the fact nor in the document."""
    facts = DOCUMENT["facts"]
    assert len(facts) == 24 and not {f["test"] for f in facts} & {q for f in facts for q in f["train"]}
    for fact in facts:
        for text in (*fact["train"], DOCUMENT["text"]):
            assert not split_runs(fact["test"], 5) & split_runs(text, 5), fact["test"]
        questions, answers = [fact["test"], *fact["train"]], [text.lower() for text in fact["answer"]]
        assert all(answer in DOCUMENT["text"].lower() for answer in answers), fact
        assert not any(answer in question.lower() for answer in answers for question in questions), fact


QUESTION = "Who is the mayor?"


def ask_in_the_terminal(folder: Path, name: str) -> str:
    (folder / "in.txt").write_text(QUESTION)
    flags = ["--input", str(folder / "in.txt"), "--output", str(folder / "out.jsonl")]
    sample.main(["--prefix", str(folder / name), *flags])
    return json.loads((folder / "out.jsonl").read_text())["text"]


def say_line(lm, tokenizer, prefix) -> str:
    """What the model says of QUESTION in the frame of the training, up to the end of the line."""
    ids = tokenizer.encode(f"Question: {QUESTION}\nAnswer:")
    [said] = generate(lm, [ids], prefix, beams=1, max_new_tokens=TINY["tokens"])
    return tokenizer.decode(said).strip().split("\n")[0]


def test_a_cell_trains_on_no_held_out_question_and_leaves_a_prefix_like_any_other(
    tiny_folder, tmp_path, monkeypatch
):
    lm, tokenizer = load_lm(tiny_folder)
    lm.wpe.weight = torch.nn.Parameter(
        lm.wpe.weight.repeat(5, 1), False
    )  # it reads bytes, and has 512 of them
    lm.config = type(lm.config)(**vars(lm.config) | {"n_positions": 2560})
    bench, seen = cartridges.open_document(lm, tokenizer, TINY), []
    train = cartridges.train

    def watch(*arguments):
        with monkeypatch.context() as patch:
            real = cartridges.distil_loss
            patch.setattr(cartridges, "distil_loss", lambda *a: seen.extend(a[3]) or real(*a))
            return train(*arguments)

    monkeypatch.setattr(cartridges, "train", watch)
    taught = cartridges.ask_teacher(bench, tmp_path / "teacher.json")
    again = cartridges.ask_teacher(bench, tmp_path / "teacher.json")
    assert (again.pairs, again.held_out) == (taught.pairs, taught.held_out)
    for name in ("weighted-4", "both-3"):
        path = tmp_path / f"{name}.json"
        found = cartridges.run_cell(bench, lambda: taught, name, path)
        assert found["of"] == 24 and found["slots"] == int(name[-1]) and found["kl"] >= 0 and found["loss"]
        json.dumps(found)
    assert seen and not {tuple(x) for x, _ in seen} & {tuple(x) for x in bench.held_out}
    prefixes = [load_prefix(tmp_path / "both-3.pt"), None, taught.prefix]
    sources, options = bench.held_out[:3], dict(beams=1, max_new_tokens=3)
    together = generate(lm, sources, prefixes, **options)
    assert together == [generate(lm, [x], one, **options)[0] for x, one in zip(sources, prefixes)]
    assert ask_in_the_terminal(tmp_path, "both-3.pt") == say_line(lm, tokenizer, prefixes[0])
    save_prefix(replace(prefixes[0], config={}), tmp_path / "plain.pt")
    with pytest.raises(InputError, match=r"--prefix: one asks in the words '.*', another in ''"):
        sample.main(
            [
                "--prefix",
                str(tmp_path / "both-3.pt"),
                "--prefix",
                str(tmp_path / "plain.pt"),
                "--records",
                "1",
            ]
        )
    whole = cartridges.run_cell(bench, lambda: taught, "whole", tmp_path / "whole.json")
    assert whole["kl"] == 0 and whole["slots"] == whole["text_tokens"] == len(bench.text)
    for name in ("distil", "whole-3", "distil-0", "distil-3@", "weights-3"):
        with pytest.raises(InputError, match="unknown cell"):
            cartridges.run_cell(bench, lambda: taught, name, tmp_path / "unknown.json")


def test_the_prompt_s_records_are_those_of_no_worked_example(tiny_folder, monkeypatch):
    """And what is trained on are the model's own texts, not people's."""
    lm, tokenizer = load_lm(tiny_folder)
    files = cartridges.find_files("e2e", "sample")
    monkeypatch.setattr(cartridges, "find_files", lambda dataset: files)
    settings = TINY | {"examples": 2, "records": 3, "dev": 2, "texts": 2}
    bench = cartridges.open_prompt(lm, tokenizer, settings)
    assert bench.text == list(itertools.chain(*(x + y for x, y in bench.labelled)))
    assert len(bench.asked) == 3 and not [x for x, _ in bench.labelled if x in bench.asked]
    assert not [x for x in bench.held_out if x in bench.asked]
    random.seed(1)
    again = cartridges.open_prompt(lm, tokenizer, settings)
    assert again.asked == bench.asked and again.text == bench.text


def test_an_unknown_part_is_one_sentence():
    assert_refused(lambda: cartridges.main(["documents"]), "unknown part 'documents'", "prompt, document")


def test_serving_counts_what_a_request_holds():
    lm = make_gpt2()
    few = cartridges.keep_sites(lm, read_activations(lm, TEXT, 3))
    found = cartridges.serve(lm, [[5, 6, 7]] * 4, few, 2)
    assert found["cache_bytes_a_request"] == (3 + 3) * 128 * 4 and found["requests_at_once"] == 2
    assert found["seconds"] >= 0
