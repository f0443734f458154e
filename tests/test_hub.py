"""Checkpoints: every spelling of a Hugging Face folder loads as one model; what is damaged is refused."""

import json
import math
import os
import re
import resource
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from minprefix import generate, hub, load_lm
from minprefix.texts import encode_source, encode_target
from tests.conftest import assert_close, assert_refused
from tests.models import as_transformers, both_models, make_bart, make_gpt2, save_checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
MODELS = {
    "GPT-2": lambda: make_gpt2(vocab_size=300, n_positions=24, n_embd=16),
    "BART": lambda: make_bart(vocab_size=300),
}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for model, make in MODELS.items():
        save_checkpoint(folder / model, make())
    return folder


@pytest.fixture
def folders(saved, tmp_path) -> Path:
    """A GPT-2 and a BART, as transformers saves them."""
    return Path(shutil.copytree(saved, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def folder(folders) -> Path:
    return folders / "GPT-2"


def rewrite(folder: Path, change) -> None:
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def edit_json(path: Path, **changes) -> None:
    content = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


def assert_same(lm, expected, dtype=torch.float32) -> None:
    found, tensors = lm.state_dict(), expected.state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor.to(dtype).float()) for name, tensor in tensors.items())


# --- what loads ---


def bare(tensors: dict) -> dict:
    return {re.sub(r"^(transformer|model)\.", "", name): tensor for name, tensor in tensors.items()}


def with_masks(tensors: dict) -> dict:
    """As old files store them."""
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril().bool() for i in range(2)}
    return bare(tensors) | masks | {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}


def with_a_copy_only(tensors: dict) -> dict:
    return {name.replace("model.shared", "lm_head"): tensor for name, tensor in tensors.items()}


COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
VERSIONS = ("model.encoder.version", "model.decoder.version")
SPELLINGS = [
    ("GPT-2", dict),
    ("GPT-2", bare),
    ("GPT-2", with_masks),
    ("GPT-2", lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}),
    ("BART", dict),
    ("BART", bare),
    ("BART", lambda tensors: tensors | dict.fromkeys(COPIES, tensors["model.shared.weight"])),
    ("BART", with_a_copy_only),
    ("BART", lambda tensors: tensors | dict.fromkeys(VERSIONS, torch.ones(1))),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("model", "change"), SPELLINGS)
def test_every_spelling_of_a_file_loads_as_the_same_model(model, change, dtype, folders):
    folder, expected = folders / model, MODELS[model]()
    fingerprint = load_lm(folder)[0].config.fingerprint
    rewrite(folder, lambda tensors: {name: T.to(dtype) for name, T in change(tensors).items()})
    lm, tokenizer = load_lm(str(folder))
    assert_same(lm, expected, dtype)
    assert type(lm) is type(expected) and lm.config.name == str(folder)
    assert not lm.training and not any(parameter.requires_grad for parameter in lm.parameters())
    assert dtype != torch.float32 or lm.config.fingerprint == fingerprint
    assert tokenizer.decode(tokenizer.encode("né")) == "né"


OTHERS = [{"tie_word_embeddings": False}, {"activation_function": "gelu", "n_head": 4, "n_layer": 3}]
OTHERS += [{"n_inner": 40, "activation_function": "relu", "layer_norm_epsilon": 1e-3}]


@pytest.mark.parametrize("settings", OTHERS)
def test_other_shapes_load(settings, tmp_path):
    expected = make_gpt2(vocab_size=300, n_embd=16, **settings)
    lm, _ = load_lm(save_checkpoint(tmp_path, expected))
    assert_same(lm, expected)
    assert {key: getattr(lm.config, key) for key in settings} == settings


def test_a_head_of_its_own_is_gpt_2_s_and_not_bart_s(folders):
    """Whatever config.json says of it. BART's bias may be absent."""
    for model, name in (("GPT-2", "transformer.wte.weight"), ("BART", "model.shared.weight")):
        rewrite(folders / model, lambda t, name=name: t | {"lm_head.weight": t[name] + 1})
    lm, ids = load_lm(folders / "GPT-2")[0], torch.tensor([[3, 1, 4]])
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folders / "GPT-2", dtype=torch.float32)
    assert_close(lm(ids), theirs(ids).logits)
    assert_not_loaded(folders / "BART", "tie_word_embeddings")
    kept = MODELS["BART"]().state_dict().keys() - {"final_logits_bias"}
    rewrite(folders / "BART", lambda tensors: {f"model.{name}": tensors[f"model.{name}"] for name in kept})
    assert not load_lm(folders / "BART")[0].final_logits_bias.any()


@pytest.mark.parametrize("name", ["score.weight", "classification_head.dense.bias"])
def test_the_head_of_another_task_is_left_alone(folder, name):
    whole, _ = load_lm(folder)
    rewrite(folder, lambda tensors: tensors | {name: torch.ones(2)})
    assert_same(load_lm(folder)[0], whole)


def test_shards_load_and_have_the_same_fingerprint(folder):
    whole, _ = load_lm(folder)
    (folder / WEIGHTS).unlink()
    as_transformers(whole).save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    lm, _ = load_lm(folder)
    assert_same(lm, whole)
    assert lm.config.fingerprint == whole.config.fingerprint


def write_bin(folder: Path, way: str) -> None:
    """The weights as they were written before safetensors: in a pickle, an old one, or several."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if way == "shards":
        shards = {f"pytorch_model-0000{i}-of-00002.bin": dict(list(tensors.items())[i::2]) for i in (0, 1)}
        for name, part in shards.items():
            torch.save(part, folder / name)
        weight_map = {key: name for name, part in shards.items() for key in part}
        edit_json(folder / "pytorch_model.bin.index.json", weight_map=weight_map, metadata={})
    else:
        if way == "parameters":  # of a model's named_parameters()
            tensors = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=way != "old")


@pytest.mark.parametrize("way", ["new", "old", "shards", "parameters"])
@both_models
def test_a_pickle_of_weights_loads_as_the_same_model(model, way, folders):
    whole, _ = load_lm(folders / model)
    write_bin(folders / model, way)
    lm, _ = load_lm(folders / model)
    assert_same(lm, whole)
    assert lm.config.fingerprint == whole.config.fingerprint
    kind = transformers.AutoModelForCausalLM if model == "GPT-2" else transformers.AutoModelForSeq2SeqLM
    assert_close(kind.from_pretrained(folders / model).lm_head.weight, lm.wte.weight)


class Code:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


SPREAD = torch.ones(1).expand(2**24, 2**20)  # one stored number that shows as 64 TB
PICKLES = [([1], "no named tensors"), ({"wte.weight": "x"}, "wte.weight is damaged")]
PICKLES += [({"wte.weight": SPREAD}, "must hold finite floats")]
PICKLES += [({"wte.weight": Code()}, "nothing in it was run"), (Code(), "nothing in it was run")]


@pytest.mark.parametrize("way", ["new", "old"])
@pytest.mark.parametrize(("content", "words"), PICKLES)
def test_a_pickle_of_anything_else_is_refused_and_not_run(content, words, way, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / WEIGHTS).unlink()
    torch.save(content, "pytorch_model.bin", _use_new_zipfile_serialization=way == "new")
    assert_not_loaded(folder, "pytorch_model.bin", words)
    assert not Path("exploded").exists()


def test_the_model_has_its_type_and_outlives_its_file(folder):
    lm, _ = load_lm(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in lm.parameters()} == {torch.bfloat16}
    lm, _ = load_lm(folder)
    with open(folder / WEIGHTS, "r+b") as file:  # overwritten in place: a mapped view would change
        file.write(bytes(os.path.getsize(file.name)))
    assert_same(lm, MODELS["GPT-2"]())


def test_the_fingerprint_tells_weights_apart_but_not_dtypes(folder):
    first = load_lm(folder)[0].config.fingerprint
    assert len(first) == 16 and int(first, 16)
    assert load_lm(folder, dtype=torch.float16)[0].config.fingerprint == first
    rewrite(folder, lambda tensors: tensors | {LN: tensors[LN] + 1e-5 * torch.eye(16)[5]})
    assert load_lm(folder)[0].config.fingerprint != first


IDS = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
GENERATION = [None, {}, {"eos_token_id": 7}, {"eos_token_id": [7, 2]}, {"eos_token_id": None}]


@pytest.mark.parametrize("generation", [*GENERATION, {"forced_bos_token_id": 5}])
@pytest.mark.parametrize("config", [{}, {"forced_bos_token_id": 0}, {"forced_eos_token_id": "absent"}])
@both_models
def test_special_ids_come_from_the_file_that_transformers_takes_them_from(model, config, generation, folders):
    folder = folders / model
    edit_json(folder / "config.json", bos_token_id=1, eos_token_id=2, **config)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        start = {"bos_token_id": 3, "eos_token_id": 4, "decoder_start_token_id": 5}
        edit_json(folder / "generation_config.json", **start | generation)
    kind = transformers.AutoModelForCausalLM if model == "GPT-2" else transformers.AutoModelForSeq2SeqLM
    theirs, ours = kind.from_pretrained(folder).generation_config, load_lm(folder)[0].config
    for key in [key for key in IDS if hasattr(ours, key)]:
        expected = getattr(theirs, key)
        if key == "eos_token_id":  # of several the first, of none config.json's
            expected = expected[0] if isinstance(expected, list) else expected or 2
        assert getattr(ours, key) == expected, key


NAMES = {
    "GPT-2": [("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads")],
    "BART": [("d_model", "hidden_size"), ("encoder_layers", "num_hidden_layers")],
}
NAMES["GPT-2"] += [("n_positions", "max_position_embeddings")]
NAMES["BART"] += [("encoder_attention_heads", "num_attention_heads")]


@both_models
def test_sizes_may_have_their_general_names(model, folders):
    """As transformers reads them; GPT-2's positions are 1,024 if nothing is said."""
    folder, expected = folders / model, MODELS[model]()
    given = json.loads((folder / "config.json").read_text())
    for names in [[name] for name in NAMES[model]] + [NAMES[model]]:
        others = {general: given[own] for own, general in names} | {own: "absent" for own, _ in names}
        edit_json(folder / "config.json", **given | others)
        assert_same(load_lm(folder)[0], expected)
    save_checkpoint(folder, make_gpt2(vocab_size=300, n_positions=1024, n_embd=16))
    edit_json(folder / "config.json", n_positions="absent")
    assert load_lm(folder)[0].config.n_positions == 1024


SAME = ["gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_accurate", "gelu_pytorch_tanh", "quick_gelu"]
SAME += ["silu", "swish", "mish", "relu", "relu6", "leaky_relu", "tanh", "sigmoid", "hardswish", "linear"]
SAME += ["gelu_python_tanh"]


@pytest.mark.parametrize("name", transformers.activations.ACT2FN)
@both_models
def test_an_activation_is_that_of_transformers_or_refused(model, name, folders):
    if name not in SAME:  # not in torch, or trained
        configure(activation_function=name)(folders / model)
        assert_not_loaded(folders / model, f"activation_function is '{name}'")
        return
    kwargs = {"activation_function": name, "vocab_size": 40}
    lm = make_gpt2(**kwargs) if model == "GPT-2" else make_bart(**kwargs)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    inputs = {"input_ids": ids} if model == "GPT-2" else {"input_ids": ids, "decoder_input_ids": ids}
    with torch.no_grad():
        assert_close(lm(*inputs.values()), as_transformers(lm)(**inputs).logits, 1e-4)


def test_ids_past_the_vocabulary_are_no_tokens(folder, tmp_path):
    """transformers writes 50256 into the files of any GPT-2: then no text ends, and none can be framed."""
    for place in ("config.json", "generation_config.json"):
        edit_json(folder / place, bos_token_id=50256, eos_token_id=50256)
    lm, tokenizer = load_lm(folder)
    theirs, x = as_transformers(lm), torch.tensor([[5, 6, 7]])
    out = theirs.generate(x, max_new_tokens=9, min_new_tokens=3, num_beams=2, do_sample=False)
    assert generate(lm, [[5, 6, 7]], beams=2, max_new_tokens=9, min_new_tokens=3) == [out[0, 3:].tolist()]
    for frame in (encode_source, encode_target):
        assert_refused(
            lambda frame=frame: frame(lm, tokenizer, "a"), "bos_token_id, eos_token_id", "below 300"
        )


def test_a_folder_of_the_repository_is_found_from_anywhere(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "REPOSITORY", tmp_path)
    monkeypatch.chdir("/")
    assert load_lm("GPT-2")[0].config.name == "GPT-2"


def test_a_hub_id_is_found_in_the_hub_s_cache_and_what_is_not_needed_is_not_asked_for(
    folder, tmp_path, monkeypatch
):
    place, commit = tmp_path / "models--org--tiny", "a" * 40
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_lm("org/tiny")[0].config.fingerprint == load_lm(folder)[0].config.fingerprint
    assert_not_loaded("org/unknown", "'org/unknown' is no folder", "check name, network and HF_HUB_OFFLINE")
    needed = [*os.listdir(folder), "model-1-of-2.safetensors"]
    files = [*needed, "pytorch_model.bin", "tf_model.h5", "README.md"]
    assert list(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=hub.NEEDED)) == needed


# --- what does not: each function spoils one thing in a folder where everything is well ---


@pytest.fixture(autouse=True)
def watch_memory():
    """Whatever a file says, nothing large is allocated."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def assert_not_loaded(folder: str | Path, *parts: str) -> str:
    return assert_refused(lambda: load_lm(folder), *parts)


def put(name: str, *shape: int, dtype=torch.float32, value=1):
    return lambda folder: rewrite(folder, lambda t: t | {name: torch.full(shape, value, dtype=dtype)})


def configure(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def index(weight_map):
    """In place of the weights, an index that names small files."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        edit_json(folder / f"{WEIGHTS}.index.json", weight_map=weight_map)
        for name, tensors in (("one", {"wte.weight": ONE}), ("two", {"transformer.wte.weight": ONE})):
            save_file(tensors, folder / name)
        (folder / "empty").touch()

    return change


def drop(folder: Path) -> None:
    lost = ("ln_f.bias", "h.1.ln_1.weight")
    rewrite(folder, lambda tensors: {name: T for name, T in tensors.items() if not name.endswith(lost)})


ONE, LN, FLOATS = torch.ones(1), "transformer.ln_f.bias", "must hold finite floats"
FAULTS = [
    ("GPT-2", drop, "ln_f.bias", "h.1.ln_1.weight"),
    ("GPT-2", put("transformer.h.2.ln_1.bias", 16), "h.2.ln_1.bias"),
    ("GPT-2", put("transformer.wpe.weight", 9, 16), "wpe.weight", "[9, 16]", "[24, 16]"),
    ("GPT-2", put("transformer.h.0.attn.c_attn.weight", 48, 16), "c_attn.weight", "[48, 16]", "[16, 48]"),
    ("GPT-2", put("lm_head.weight", 9, 16), "lm_head.weight", "[9, 16]", "[300, 16]"),
    ("GPT-2", put(LN, 0), LN, FLOATS),
    ("GPT-2", lambda f: [put("x", 1)(f), put(LN, 3)(f)], "ln_f.bias", '"x"'),
    ("GPT-2", lambda folder: save_file({}, folder / WEIGHTS), "wte.weight"),
    ("GPT-2", put(LN, 16, dtype=torch.int8), LN, FLOATS),
    ("GPT-2", put(LN, 16, value=math.nan), LN, FLOATS),
    ("GPT-2", put(LN, 16, value=math.inf, dtype=torch.float16), LN, FLOATS),
    ("GPT-2", put("wte.weight", 2), "wte.weight is there twice"),
    ("GPT-2", configure(n_head=3), "n_embd 16", "divisible by n_head 3"),
    ("GPT-2", configure(vocab_size=2**20), "wte.weight", "[300, 16]", "[1048576, 16]"),
    ("GPT-2", configure(n_embd=2**20, n_layer=200), "h.2.ln_1.weight"),
    ("GPT-2", configure(n_inner=2**20), "h.0.mlp.c_fc.weight", "[16, 64]", "[16, 1048576]"),
    ("GPT-2", configure(tie_word_embeddings=False), "lm_head.weight"),
    ("GPT-2", configure(model_type="bart"), "max_position_embeddings"),
    ("BART", configure(decoder_layers="absent"), "decoder_layers is missing"),
    ("BART", configure(d_model=30), "d_model 30", "divisible by encoder_attention_heads 4"),
    ("BART", configure(decoder_attention_heads=3), "divisible by decoder_attention_heads 3"),
    ("BART", configure(scale_embedding="yes"), "scale_embedding is 'yes'"),
    ("BART", configure(max_position_embeddings=62), "embed_positions.weight", "[66, 32]", "[64, 32]"),
    ("GPT-2", lambda folder: edit_json(folder / "vocab.json", a=300), "vocab.json", "300"),
    ("GPT-2", index(["one"]), "index.json"),
    ("GPT-2", index({"a": "/../empty"}), "GPT-2/empty is missing or damaged"),  # none outside the folder
    ("GPT-2", index({"a": "one", "b": "two"}), "is there twice"),
    ("GPT-2", index({}), "wte.weight"),
]


@pytest.mark.parametrize(("model", "spoil", "parts"), [(row[0], row[1], row[2:]) for row in FAULTS])
def test_what_does_not_go_together_is_named(model, spoil, parts, folders):
    spoil(folders / model)
    assert_not_loaded(folders / model, str(folders / model), *parts)


SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
BAD_SIZES = (0, -4, "24", 16.0, [24], True, math.nan, math.inf, 2**20 + 1, 10**18)
BAD = dict.fromkeys(SIZES, BAD_SIZES)
BAD |= {"layer_norm_epsilon": ["small", math.nan, -1e-5], "activation_function": ["swoosh", ["gelu"], {}]}
BAD |= {"scale_attn_weights": [False], "scale_attn_by_inverse_layer_idx": [True]}
BAD |= {"model_type": ["t5", ["gpt2"], None, "absent"]}
BAD |= {f"{name}_token_id": [-1, "x", [], True] for name in ("bos", "eos")}
BAD |= {
    "forced_eos_token_id": [300, -1, [2]],
    "suppress_tokens": [3, [-1]],
    "no_repeat_ngram_size": [-1, "3"],
    "early_stopping": ["sometimes", 2],
}


@pytest.mark.parametrize("key", BAD)
def test_a_bad_value_in_config_json_is_refused_at_once(key, folder):
    (folder / "generation_config.json").unlink()
    good = (folder / "config.json").read_text()
    for value in [*BAD[key], "absent"] if key in SIZES[:-1] and key != "n_positions" else BAD[key]:
        configure(**{key: value})(folder)
        assert_not_loaded(folder, "config.json", key)
        (folder / "config.json").write_text(good)


def test_the_file_at_fault_is_named(folder):
    for key in ("bos_token_id", "eos_token_id", *list(BAD)[-4:]):
        for value in BAD[key]:
            (folder / "generation_config.json").write_text(json.dumps({key: value}))
            assert_not_loaded(folder, f"{folder}/generation_config.json: {key}", " is ")
    configure(n_layer=0)(folder)
    assert_not_loaded(folder, f"{folder}/config.json: n_layer")


def lie(good: bytes, old: bytes, new: bytes) -> bytes:
    """In the header, which says where each tensor lies."""
    end = 8 + int.from_bytes(good[:8], "little")
    text = good[8:end].replace(old, new, 1)
    return len(text).to_bytes(8, "little") + text + good[end:]


SHAPE = b"[300,16]"
LIES = {SHAPE: [b"[-300,16]", b"[281474976710656]", b"[9223372036854775808,9223372036854775808]"]}
LIES |= {b"[0,": [b"[4,", b"[-4,", b"[281474976710656,"], b"F32": [b"F33"], b"shape": [b"size"]}
BAD_BYTES = [b"", b"\3\0\0", b"<!DOCTYPE html><html>not found", b"version https://git-lfs.github.com/spec/v1"]
BAD_BYTES += [bytes(8), (2**40).to_bytes(8, "little"), b"\xff" * 9, b"\5" + bytes(7) + b"hello"]
BAD_BYTES += [(90_000).to_bytes(8, "little") + b"[" * 90_000]
NO_OBJECTS = [b"", b"{", b"[]", b"3", b"null", b"[" * 100_000, b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}"]


def test_a_damaged_weights_file_is_refused(folder):
    good = (folder / WEIGHTS).read_bytes()
    cut = [good[: int(part * len(good))] for part in (0.01, 0.5, 0.999)]
    lies = [lie(good, old, new) for old, several in LIES.items() for new in several]
    for content in [*BAD_BYTES, *cut, *lies, good[:-1], good + b"\0"]:
        assert content != good
        (folder / WEIGHTS).write_bytes(content)
        assert_not_loaded(folder, WEIGHTS, "damaged")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", WEIGHTS + ".index.json"])
def test_a_file_that_is_no_json_object_is_refused(name, folder):
    if name.startswith(WEIGHTS):
        (folder / WEIGHTS).unlink()
    for content in NO_OBJECTS:
        (folder / name).write_bytes(content)
        assert_not_loaded(folder, name)
    (folder / name).write_text('{"n_layer": 1, "n_layer": 2}')
    assert_not_loaded(folder, name, "'n_layer' is there twice")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "vocab.json", "merges.txt"])
def test_a_missing_file_or_a_folder_in_its_place_is_named(name, folder):
    (folder / name).unlink()
    assert_not_loaded(folder, str(folder / name))
    (folder / name).mkdir()
    assert_not_loaded(folder, str(folder / name))


@pytest.mark.parametrize("name", ["", "./gone", "/gone/model", "~/gone", "a/b/c", "tests/gone", "../gone"])
def test_a_missing_folder_is_named(name):
    assert_not_loaded(name, repr(name), "folder")
