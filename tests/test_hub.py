"""Checkpoints: every variant of a Hugging Face GPT-2 loads equal; what is damaged is one clear sentence."""

import functools
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minprefix import hub
from minprefix.errors import InputError
from minprefix.generate import check_base
from minprefix.hub import load_lm
from minprefix.prefix import SavedPrefix
from minprefix.store import load_prefix, save_prefix, write_atomically
from minprefix.tokenizer import BYTE_OF_CHAR

transformers = pytest.importorskip("transformers", reason="transformers makes and reads the checkpoints")

VOCAB = 300


def save_checkpoint(folder: Path, **settings) -> transformers.GPT2LMHeadModel:
    """A tiny random GPT-2 and a vocabulary of the 256 bytes, as save_pretrained writes them."""
    torch.manual_seed(0)
    settings = {"vocab_size": VOCAB, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2} | settings
    config = transformers.GPT2Config(**{"bos_token_id": 1, "eos_token_id": 2} | settings)
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    model.save_pretrained(folder)
    vocab = {char: id for id, char in enumerate(BYTE_OF_CHAR)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return model


@pytest.fixture
def folder(tmp_path) -> Path:
    save_checkpoint(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({k: t.contiguous() for k, t in change(tensors).items()}, folder / "model.safetensors")


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_same_model(lm, theirs) -> None:
    expected = {k.removeprefix("transformer."): v for k, v in theirs.state_dict().items()}
    found = lm.state_dict()
    assert set(expected) - set(found) <= {"lm_head.weight"} and set(found) <= set(expected)
    assert all(torch.equal(found[name], expected[name].to(found[name].dtype)) for name in found)
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    with torch.no_grad():
        torch.testing.assert_close(lm(ids), theirs.float()(ids).logits, atol=1e-5, rtol=0)


# --- what loads ---


def with_prefix(tensors):
    return {"transformer." + name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def without_prefix(tensors):
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_legacy_buffers(tensors):
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril().bool() for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    return without_prefix(tensors) | masks


def with_tied_head(tensors):
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}


def with_own_head(tensors):
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}


def in_bfloat16(tensors):
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def in_float16(tensors):
    return {name: tensor.half() for name, tensor in tensors.items()}


VARIANTS = [
    with_prefix,
    without_prefix,
    with_legacy_buffers,
    with_tied_head,
    with_own_head,
    in_bfloat16,
    in_float16,
]


@pytest.mark.parametrize("change", VARIANTS)
def test_every_spelling_of_a_file_loads_as_transformers_does(change, folder):
    rewrite(folder, change)
    lm, _ = load_lm(folder)
    assert_same_model(lm, transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32))
    assert lm.config.tie_word_embeddings == (change is not with_own_head)


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": False},
        {"n_inner": 40, "activation_function": "relu", "layer_norm_epsilon": 1e-3},
        {"activation_function": "gelu", "n_head": 4, "n_layer": 3},
    ],
)
def test_other_shapes_load(settings, tmp_path):
    theirs = save_checkpoint(tmp_path, **settings)
    assert_same_model(load_lm(tmp_path)[0], theirs)


def test_shards_load_and_have_the_same_fingerprint(folder):
    whole, _ = load_lm(folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    lm, _ = load_lm(folder)
    assert_same_model(lm, theirs)
    assert lm.config.fingerprint == whole.config.fingerprint


def test_the_model_is_frozen_typed_and_named(folder):
    lm, tokenizer = load_lm(str(folder), dtype=torch.bfloat16)
    assert not lm.training and not any(p.requires_grad for p in lm.parameters())
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16}
    assert lm.config.name == str(folder)
    assert (lm.config.bos_token_id, lm.config.eos_token_id) == (1, 2)
    assert tokenizer.decode(tokenizer.encode("né")) == "né"


def test_the_model_outlives_its_file(folder):
    lm, _ = load_lm(folder)
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    with open(
        folder / "model.safetensors", "r+b"
    ) as file:  # overwritten in place: a mapped view would change
        file.write(bytes(os.path.getsize(file.name)))
    assert all(torch.equal(before[name], tensor) for name, tensor in lm.state_dict().items())


def test_fingerprint_tells_weights_apart_but_not_dtypes(folder):
    first = load_lm(folder)[0].config.fingerprint
    assert len(first) == 16 and int(first, 16)
    assert load_lm(folder, dtype=torch.float16)[0].config.fingerprint == first
    rewrite(folder, without_prefix)
    assert load_lm(folder)[0].config.fingerprint == first

    def change_one_value_a_little(tensors):
        tensors["ln_f.bias"][5] += 1e-5
        return tensors

    rewrite(folder, change_one_value_a_little)
    assert load_lm(folder)[0].config.fingerprint != first


@pytest.mark.parametrize(("generation", "expected"), [(5, 5), ([7, 2], 7), (None, 2), ("absent", 2)])
def test_end_token_comes_from_generation_config_first(generation, expected, folder):
    path = folder / "generation_config.json"
    if generation == "absent":
        path.unlink()
    else:
        edit_json(path, eos_token_id=generation)
    assert load_lm(folder)[0].config.eos_token_id == expected


def test_a_folder_of_the_repository_is_found_from_anywhere(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "REPOSITORY", tmp_path)
    monkeypatch.chdir("/")
    assert load_lm("model")[0].config.name == "model"


# --- what does not ---


def drop(*names):
    return lambda tensors: {k: t for k, t in tensors.items() if k.removeprefix("transformer.") not in names}


def put(**new):
    return lambda tensors: tensors | {f"transformer.{k.replace('__', '.')}": t for k, t in new.items()}


BAD_TENSORS = {
    "missing": (drop("ln_f.bias", "h.1.ln_1.weight"), ["ln_f.bias is missing", "h.1.ln_1.weight is missing"]),
    "unexpected": (put(h__2__ln_1__bias=torch.ones(16)), ["h.2.ln_1.bias is unexpected"]),
    "shape": (put(wpe__weight=torch.ones(9, 16)), ["wpe.weight is (9, 16) and should be (24, 16)"]),
    "transposed": (
        put(h__0__attn__c_attn__weight=torch.ones(48, 16)),
        ["h.0.attn.c_attn.weight is (48, 16) and should be (16, 48)"],
    ),
    "head shape": (
        lambda t: t | {"lm_head.weight": torch.ones(9, 16)},
        ["lm_head.weight is (9, 16) and should be (300, 16)"],
    ),
    "all three": (
        lambda t: put(wte__weight=torch.ones(3), x=torch.ones(1))(drop("ln_f.bias")(t)),
        ["ln_f.bias is missing", "x is unexpected", "wte.weight is (3,) and should be (300, 16)"],
    ),
    "integers": (put(ln_f__bias=torch.ones(16, dtype=torch.int8)), ["ln_f.bias holds torch.int8"]),
    "twice": (lambda t: t | {"wte.weight": torch.ones(2)}, ["wte.weight is there twice"]),
}


def assert_refused(call, *parts: str) -> str:
    with pytest.raises(InputError) as refused:
        call()
    message = str(refused.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and not message.endswith("."), message
    assert max(map(message.count, ("put the", "again", "cannot be"))) <= 1, (
        message
    )  # not one error in another
    return message


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_wrong_tensors_are_named(case, folder):
    change, parts = BAD_TENSORS[case]
    rewrite(folder, change)
    assert_refused(lambda: load_lm(folder), str(folder), *parts)


def test_untied_checkpoint_without_head_is_refused(folder):
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert_refused(lambda: load_lm(folder), "lm_head.weight is missing")


BAD_CONFIG = [
    ("model_type", "t5", 'model_type is \'t5\', but must be "gpt2" or "bart"'),
    ("model_type", None, "model_type is None"),
    ("vocab_size", 0, "vocab_size is 0, but must be a whole number"),
    ("n_positions", "24", "n_positions is '24', but must be a whole number"),
    ("n_embd", 16.0, "n_embd is 16.0, but must be a whole number"),
    ("n_embd", 10**12, "n_embd is 1000000000000, but must be"),
    ("n_layer", 10**9, "n_layer is 1000000000, but must be"),
    ("n_layer", 2**20, "n_layer is 1048576, but must be"),
    ("n_layer", True, "n_layer is True, but must be"),
    ("n_head", 3, "n_embd 16 must be divisible by n_head 3"),
    ("n_inner", -4, "n_inner is -4, but must be null or a whole number"),
    ("layer_norm_epsilon", "small", "layer_norm_epsilon is 'small', but must be"),
    ("activation_function", "swish", "activation_function is 'swish', but must be one of gelu_new"),
    ("activation_function", ["gelu"], "activation_function is ['gelu'], but must be one of"),
    ("scale_attn_weights", False, "scale_attn_weights is False, but must be true"),
    ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True, but must be false"),
    ("tie_word_embeddings", "yes", "tie_word_embeddings is 'yes', but must be true or false"),
    ("vocab_size", 2**20, "wte.weight is (300, 16) and should be (1048576, 16)"),
    ("n_embd", 2**20, "wte.weight is (300, 16) and should be (300, 1048576)"),
    ("n_inner", 2**20, "h.0.mlp.c_fc.weight is (16, 64) and should be (16, 1048576)"),
]


@pytest.mark.parametrize(("key", "value", "part"), BAD_CONFIG)
def test_bad_config_is_refused_at_once(key, value, part, folder):
    edit_json(folder / "config.json", **{key: value})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(lambda: load_lm(folder), "config.json", part)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("key", ["model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_missing_key_is_named(key, folder):
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(lambda: load_lm(folder), f"{key} is missing, but must be")


@pytest.mark.parametrize("value", [VOCAB, -1, "x", []])
def test_an_end_token_outside_the_vocabulary_is_refused(value, folder):
    edit_json(folder / "generation_config.json", eos_token_id=value)
    assert_refused(lambda: load_lm(folder), "eos_token_id", "must be an id below 300")


def header(entries: dict, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


F32 = {"dtype": "F32", "shape": [4, 4]}
BAD_BYTES = {
    "empty": b"",
    "seven bytes": b"1234567",
    "text": b"<!DOCTYPE html><html>not found</html>",
    "header too long": header({}, 2**60),
    "header past the end": header({}, 10_000),
    "header not JSON": (5).to_bytes(8, "little") + b"hello",
    "data missing": header({"wte.weight": F32 | {"data_offsets": [0, 64]}}),
    "offsets lie": header({"wte.weight": F32 | {"data_offsets": [0, 2**50]}}) + bytes(64),
    "shape lies": header({"wte.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 64]}})
    + bytes(64),
    "shape overflows": header({"a": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 64]}})
    + bytes(64),
    "unknown type": header({"a": {"dtype": "F33", "shape": [4, 4], "data_offsets": [0, 64]}}) + bytes(64),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_a_damaged_weights_file_is_refused(case, folder):
    (folder / "model.safetensors").write_bytes(BAD_BYTES[case])
    assert_refused(lambda: load_lm(folder), "model.safetensors is missing or damaged")


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.999])
def test_a_truncated_weights_file_is_refused(keep, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert_refused(lambda: load_lm(folder), "model.safetensors is missing or damaged")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.json", "merges.txt"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    assert_refused(lambda: load_lm(folder), str(folder / name))


@pytest.mark.parametrize("content", ["{", "[]", "3", "[" * 100_000, b"\xff\xfe"])
def test_a_damaged_config_is_refused(content, folder):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(lambda: load_lm(folder), "config.json")


BAD_INDEX = {
    "no map": ({}, "weight_map must give"),
    "list": ({"weight_map": ["a"]}, "weight_map must give"),
    "number": ({"weight_map": {"wte.weight": 3}}, "weight_map must give"),
    "outside": ({"weight_map": {"wte.weight": "../model.safetensors"}}, "weight_map must give"),
    "no shard": (
        {"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}},
        "00001-of-00002.safetensors",
    ),
    "no tensors": ({"weight_map": {}}, "wte.weight is missing"),
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_a_bad_index_is_refused(case, folder):
    index, part = BAD_INDEX[case]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(lambda: load_lm(folder), part)


@pytest.mark.parametrize("name", ["", "./gone", "/gone/model", "~/gone", "a/b/c", "tests/gone", "../gone"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert_refused(lambda: load_lm(name), "no model folder", repr(name))


# --- the hub ---


class FakeHub(SimpleHTTPRequestHandler):
    """The three answers that huggingface_hub needs: a repository's file list, a file's head, and a file."""

    def __init__(self, *args, folder: Path, asked: list[str]):
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        name = self.path.split("?")[0].removeprefix("/org/tiny/resolve/" + "a" * 40 + "/")
        content, headers = b"", {"X-Repo-Commit": "a" * 40}
        if self.path.startswith("/api/models/org/tiny"):
            names = [{"rfilename": path.name} for path in self.folder.iterdir()]
            info = {"id": "org/tiny", "modelId": "org/tiny", "sha": "a" * 40, "siblings": names}
            if "/tree/" in self.path:
                info = [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "b" * 40}
                    for p in self.folder.iterdir()
                ]
            content = json.dumps(info).encode()
            headers["Content-Type"] = "application/json"
        elif (self.folder / name).is_file():
            content = (self.folder / name).read_bytes()
            headers["ETag"] = f'"{name}"'
            self.asked.append(name)
        else:
            headers["X-Error-Code"] = "RepoNotFound"
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for key, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake_hub(folder):
    for extra in ("pytorch_model.bin", "tf_model.h5", "README.md"):
        (folder / extra).write_bytes(b"not needed")
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(FakeHub, folder=folder, asked=asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def load_in_new_process(names: list[str], cache: Path, endpoint: str, offline: str) -> list[str]:
    """One line about each: huggingface_hub reads its environment once, at import."""
    code = (
        "import sys\n"
        "from minprefix.hub import InputError, load_lm\n"
        "for name in sys.argv[1:]:\n"
        "    try: print('loaded', load_lm(name)[0].config.fingerprint)\n"
        "    except InputError as error: print('refused', error)"
    )
    settings = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "NO_PROXY": "*"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(hub.REPOSITORY)}
    command = [sys.executable, "-c", code, *names]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=cache)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_a_hub_id_is_downloaded_once_and_only_what_is_needed(folder, fake_hub, tmp_path):
    endpoint, asked = fake_hub
    (tmp_path / "cache").mkdir()
    load = functools.partial(load_in_new_process, ["org/tiny", "org/unknown"], tmp_path / "cache")
    loaded = f"loaded {load_lm(folder)[0].config.fingerprint}"
    refused = "refused model 'org/unknown' is no folder, and the Hugging Face hub did not give it ("
    advice = "): check the name, the network and HF_HUB_OFFLINE, or give a folder that holds it"

    first = load(endpoint, offline="0")
    needed = {"config.json", "generation_config.json", "vocab.json", "merges.txt", "model.safetensors"}
    assert set(asked) == needed  # and not pytorch_model.bin
    asked.clear()
    without_network = load("http://127.0.0.1:9", offline="0")
    offline = load(endpoint, offline="1")
    assert asked == []
    for known, unknown in (first, without_network, offline):  # a line each
        assert known == loaded and unknown.startswith(refused) and unknown.endswith(advice)


# --- prefix files ---


def make_prefix(lm=None, **changes) -> SavedPrefix:
    base = {"name": "tiny", "config": {"n_layer": 2}, "fingerprint": lm.config.fingerprint if lm else ""}
    prefix = SavedPrefix(
        method="prefix",
        sites={"decoder": torch.arange(5 * 64.0).reshape(5, 64)},
        positions="shifted",
        base=base,
        config={"lr": 1e-3, "epochs": 5, "out": "e2e.pt", "seeds": [1, 2]},
        metrics={"BLEU": 50.5},
        data="e2e",
    )
    return replace(prefix, **changes)


@pytest.mark.parametrize(
    "changes", [{}, {"method": "full", "sites": {}, "tensors": {"ln_f.bias": torch.ones(16)}}]
)
def test_what_was_trained_comes_back_as_it_was(changes, tmp_path):
    prefix = make_prefix(**changes)
    save_prefix(prefix, tmp_path / "a.pt")
    back = load_prefix(str(tmp_path / "a.pt"))
    for key, value in vars(prefix).items():
        if key in ("sites", "tensors"):
            assert value.keys() == getattr(back, key).keys()
            assert all(torch.equal(value[k], getattr(back, key)[k]) for k in value)
        else:
            assert getattr(back, key) == value
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["format"] == "minprefix/1" and set(content) == {"format", *vars(prefix)}
    assert os.listdir(tmp_path) == ["a.pt"]


def test_only_the_prefix_is_stored_and_not_what_it_is_a_view_of(tmp_path):
    large = torch.randn(5, 200_000)
    save_prefix(make_prefix(sites={"decoder": large[:, :64]}), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    assert torch.equal(load_prefix(tmp_path / "a.pt").sites["decoder"], large[:, :64])


def test_a_trained_parameter_on_the_graph_is_stored_as_a_plain_tensor(tmp_path):
    save_prefix(make_prefix(sites={"decoder": torch.nn.Parameter(torch.ones(2, 64)) * 2}), tmp_path / "a.pt")
    site = load_prefix(tmp_path / "a.pt").sites["decoder"]
    assert type(site) is torch.Tensor and not site.requires_grad


class Code:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["zip", "plain pickle", "old torch format", "in a field"])
def test_a_file_that_would_run_code_is_refused_and_not_run(kind, tmp_path):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    content = Code(trace)
    if kind == "in a field":
        content = {"format": "minprefix/1", **vars(make_prefix(config={"lr": Code(trace)}))}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old torch format")
    with warnings.catch_warnings(action="error"):
        message = assert_refused(
            lambda: load_prefix(path), "evil.pt is refused", "code", "nothing in it was run"
        )
    assert "weights_only" not in message and not trace.exists()
    pickle.loads(pickle.dumps(Code(trace))).close()  # the trap works: this is what was not run
    assert trace.exists()


def with_field(**changes):
    return lambda content: content | changes


nan = torch.full((5, 64), float("nan"))
FULL = {"method": "full", "sites": {}}
BAD_CONTENT = {
    "a list": (lambda content: [1, 2], "is not a prefix of format minprefix/1"),
    "a tensor": (lambda content: torch.ones(3), "is not a prefix of format minprefix/1"),
    "newer format": (with_field(format="minprefix/2"), "is not a prefix of format minprefix/1"),
    "no format": (lambda c: {k: v for k, v in c.items() if k != "format"}, "is not a prefix of format"),
    "no sites": (lambda c: {k: v for k, v in c.items() if k != "sites"}, "keys missing or unexpected: sites"),
    "unknown key": (with_field(mlp=1), "keys missing or unexpected: mlp"),
    "number as key": (lambda c: c | {3: 1}, "keys missing or unexpected: 3"),
    "method": (with_field(method=3), "method must be of type str"),
    "config": (with_field(config=None), "config must be of type dict"),
    "sites a list": (with_field(sites=[nan]), "sites must be of type dict"),
    "base empty": (with_field(base={}), "base must hold name, config, fingerprint"),
    "base number": (with_field(base={"name": "a", "config": {}, "fingerprint": 3}), "base must hold"),
    "site a number": (with_field(sites={"decoder": 3}), "site decoder must be a tensor"),
    "site 1-D": (with_field(sites={"decoder": torch.ones(4)}), "site decoder must be a tensor (P, 2·L·C)"),
    "site of integers": (
        with_field(sites={"decoder": torch.ones(2, 64).long()}),
        "decoder must be a tensor of floats",
    ),
    "site complex": (
        with_field(sites={"decoder": torch.ones(2, 64) * 1j}),
        "decoder must be a tensor of floats",
    ),
    "site sparse": (
        with_field(sites={"decoder": torch.eye(4).to_sparse()}),
        "decoder must be a tensor of floats",
    ),
    "one number as many": (
        with_field(sites={"decoder": torch.ones(1, 1).expand(10**9, 10**6)}),
        "tensor of floats",
    ),
    "NaN": (with_field(sites={"decoder": nan}), "decoder holds values that are not finite"),
    "infinite": (
        with_field(**FULL, tensors={"ln_f.bias": torch.tensor([float("inf")])}),
        "ln_f.bias holds values",
    ),
    "tensor a string": (
        with_field(**FULL, tensors={"ln_f.bias": "x"}),
        "ln_f.bias must be a tensor of floats",
    ),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_a_foreign_or_damaged_prefix_is_refused(case, tmp_path):
    change, part = BAD_CONTENT[case]
    with warnings.catch_warnings(action="ignore"):
        torch.save(change({"format": "minprefix/1", **vars(make_prefix())}), tmp_path / "a.pt")
    assert_refused(lambda: load_prefix(tmp_path / "a.pt"), "a.pt", part)


def test_a_truncated_prefix_file_is_refused_wherever_it_ends(tmp_path):
    save_prefix(make_prefix(), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for end in {*range(0, len(whole), 97), 1, 2, 4, len(whole) - 1}:
        (tmp_path / "b.pt").write_bytes(whole[:end])
        assert_refused(lambda: load_prefix(tmp_path / "b.pt"), "b.pt")


def test_other_files_are_no_prefix(tmp_path):
    assert_refused(lambda: load_prefix(tmp_path / "gone.pt"), "gone.pt does not exist")
    assert_refused(lambda: load_prefix(tmp_path), "is damaged or no .pt file")
    for n, content in enumerate([b"hello world", b"PK\x03\x04" + bytes(50), b"\x80\x02}", bytes(1000)]):
        (tmp_path / f"{n}.pt").write_bytes(content)
        assert_refused(lambda path=tmp_path / f"{n}.pt": load_prefix(path), f"{n}.pt")


@pytest.mark.parametrize("changes", [{"sites": {"decoder": nan}}, {"config": {"path": Path("a")}}])
def test_what_could_not_be_read_back_is_not_written(changes, tmp_path):
    save_prefix(make_prefix(), tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    assert_refused(lambda: save_prefix(make_prefix(**changes), tmp_path / "a.pt"))
    assert os.listdir(tmp_path) == ["a.pt"] and (tmp_path / "a.pt").read_bytes() == before


def test_a_prefix_fits_only_its_base(folder, tmp_path):
    lm, _ = load_lm(folder)
    check_base(make_prefix(lm), lm)
    save_checkpoint(tmp_path / "other", n_layer=3)
    other, _ = load_lm(tmp_path / "other")
    assert_refused(
        lambda: check_base(make_prefix(lm), other), "'tiny'", repr(other.config.name), "pass --model"
    )
    rewrite(folder, lambda tensors: tensors | {"transformer.ln_f.bias": torch.ones(16)})
    retrained, _ = load_lm(folder)  # the same shapes
    assert_refused(lambda: check_base(make_prefix(lm), retrained), lm.config.fingerprint, "pass --model")
    width = make_prefix(lm, sites={"decoder": torch.ones(5, 96)})
    assert_refused(lambda: check_base(width, lm), "does not fit")


# --- writing ---


def test_writing_replaces_the_old_file_in_one_step(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        assert temporary.parent == tmp_path and path.read_text() == "old"
        temporary.write_text("new")

    write_atomically(path, write)
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device"), ZeroDivisionError]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    expected = InputError if isinstance(error, OSError) else error
    with pytest.raises(expected) as refused:
        write_atomically(path, write)
    assert expected is not InputError or f"{path} cannot be written (No space left" in str(refused.value)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_sentence(tmp_path):
    """The operating system itself refuses to write more than 2,000 bytes to a file."""
    code = (
        "import resource, signal, sys, torch\n"
        "from minprefix.store import InputError, SavedPrefix, save_prefix\n"
        "base = {'name': '', 'config': {}, 'fingerprint': ''}\n"
        "prefix = SavedPrefix('prefix', {'decoder': torch.ones(50, 640)}, 'shifted', base, {}, {}, '')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: save_prefix(prefix, sys.argv[1])\n"
        "except InputError as error: print(error)"
    )
    path = tmp_path / "a.pt"
    run = subprocess.run(
        [sys.executable, "-c", code, path], cwd=hub.REPOSITORY, capture_output=True, text=True
    )
    assert run.stdout == f"{path} cannot be written (File too large): choose another place for it\n", (
        run.stderr
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["gone/a.pt", "file/a.pt", "folder", "a" * 300 + ".pt"])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    assert_refused(
        lambda: save_prefix(make_prefix(), tmp_path / place), f"{tmp_path / place} cannot be written"
    )
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write anywhere")
        assert_refused(
            lambda: save_prefix(make_prefix(), tmp_path / "a.pt"), "cannot be written (Permission denied)"
        )
    finally:
        tmp_path.chmod(0o700)


def test_half_precision_takes_half_the_bytes_and_comes_back_as_floats(tmp_path):
    P_theta = torch.randn(50, 512)
    for name, dtype in (("whole.pt", None), ("half.pt", torch.float16)):
        save_prefix(make_prefix(sites={"decoder": P_theta}), tmp_path / name, dtype)
    sizes = [(tmp_path / name).stat().st_size for name in ("whole.pt", "half.pt")]
    assert sizes[0] - sizes[1] == 2 * P_theta.numel()
    back = load_prefix(tmp_path / "half.pt").sites["decoder"]
    assert back.dtype == torch.float32 and torch.equal(back, P_theta.half().float())
    too_large = make_prefix(sites={"decoder": P_theta * 1e5})
    assert_refused(lambda: save_prefix(too_large, tmp_path / "half.pt", torch.float16), "not finite")
    assert torch.equal(load_prefix(tmp_path / "half.pt").sites["decoder"], back)
