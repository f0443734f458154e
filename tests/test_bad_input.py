"""Wrong input is one sentence and exit code 2, at once, and the user's files stay as they are.

Each row of the table spoils one thing in a folder where everything works, and names the command and words of
its message. What a single reader or option refuses besides stands in test_hub, test_tokenizer and test_data.
"""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import sample
import train
from minprefix.errors import InputError
from minprefix.generate import generate
from minprefix.hub import load_lm
from minprefix.methods import make_theta
from minprefix.store import load_prefix, save_prefix
from minprefix.tokenizer import BYTE_OF_CHAR

REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = {"train": train.main, "sample": sample.main}
SAMPLE = "sample --prefix good.pt --input in.txt --beams 2 --max-new-tokens 4"
DESCRIBE = "sample --prefix good.pt --records 1 --beams 2 --max-new-tokens 4"
TRAIN = "train model=model data=data batch_size=4 lr=0.01 prefix_len=3 mlp_hidden=0 max_steps=2 eval_limit=1"
TRAIN += " beams=2 max_new_tokens=4 out=new.pt"
RESUME = "train resume=run/e2e.state.pt"
WEIGHTS, CONFIG, VOCAB, MERGES = (
    f"model/{name}" for name in ("model.safetensors", "config.json", "vocab.json", "merges.txt")
)
ROW = '"name[Blue Fig], food[Thai]",Blue Fig serves Thai food.\n'


# --- the folder where everything works ---


@pytest.fixture(scope="module")
def good(tiny_folder, tmp_path_factory) -> Path:
    """model/, data/, in.txt, good.pt, and run/ with the state of a run that was stopped in its evaluation."""
    folder = tmp_path_factory.mktemp("good")
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "in.txt").write_text("name : Blue Fig | food : Thai\n")
    for part in ("data", "run"):
        (folder / part).mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"data/{split}.csv").write_text("mr,ref\n" + ROW + ROW.replace("Blue", "Red"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main([*shlex.split(TRAIN.removeprefix("train "))[:-1], "out=good.pt"])
        Path("good.jsonl").unlink()
        patch.setattr(train, "describe_split", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            train.main([*shlex.split(TRAIN.removeprefix("train "))[:-1], "out=run/e2e.pt"])
    return folder


@pytest.fixture
def scratch(good, tmp_path, monkeypatch) -> Path:
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def take_digests(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- what spoils it: each returns a function without arguments ---


def put(path: str, content: str | bytes):
    return lambda: Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(path: str, keep: float):
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[: int(keep * Path(path).stat().st_size)])


def remove(path: str):
    return lambda: Path(path).unlink()


def make_folder(path: str):
    """A folder where a file should be."""

    def change():
        Path(path).unlink(missing_ok=True)
        Path(path).mkdir()

    return change


def both(*changes):
    return lambda: [change() for change in changes]


def edit_json(path: str, without: str = "", **changes):
    def change():
        content = json.loads(Path(path).read_text()) | changes
        Path(path).write_text(json.dumps({key: value for key, value in content.items() if key != without}))

    return change


def edit_weights(change):
    def rewrite():
        tensors = change(load_file(WEIGHTS))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, WEIGHTS)

    return rewrite


def edit_pt(path: str, change):
    def rewrite():
        content = torch.load(path, weights_only=True)
        torch.save(change(content), path)

    return rewrite


def with_values(**values):
    return lambda content: content | values


def within(key: str, **values):
    return lambda content: content | {key: content[key] | values}


def prefix_with(**values):
    return edit_pt("good.pt", with_values(**values))


def config_with(**values):
    return edit_pt("good.pt", within("config", **values))


def state_with(**values):
    return edit_pt("run/e2e.state.pt", with_values(**values))


def run_with(**values):
    return both(remove("run/e2e.pt"), edit_pt("run/e2e.state.pt", within("config", **values)))


def csv_with(*rows: str, split: str = "train", header: str = "mr,ref"):
    return put(f"data/{split}.csv", "\n".join([header, *rows, ""]))


def input_with(text: str | bytes, name: str = "in.txt"):
    return put(name, text)


def header(entries: dict, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def claim(dtype: str, shape: list[int], start: int, end: int, **more) -> dict:
    return {"wte.weight": {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}}


def shards(weight_map, **files: bytes):
    """An index, and files in place of model.safetensors."""

    def change():
        Path(WEIGHTS).unlink()
        Path(WEIGHTS + ".index.json").write_text(json.dumps({"weight_map": weight_map}))
        for name, content in files.items():
            Path(f"model/{name}.safetensors").write_bytes(content)

    return change


class Code:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def make_bomb():
    """A .pt file of a few kilobytes that unpacks to 300 MB."""
    with zipfile.ZipFile("good.pt") as old:
        entries = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile("good.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries.items():
            new.writestr(name, bytes(300_000_000) if name.endswith("data/0") else content)


BYTES = {char: n for n, char in enumerate(BYTE_OF_CHAR, 1)}
GOOD_VOCAB = {"<|endoftext|>": 0} | BYTES
NAN = torch.full((3, 32), float("nan"))
DAMAGED = "missing or damaged"

# --- the table: (name, what spoils the folder, the command, words of the message) ---

WEIGHTS_ROWS = [
    ("missing", remove(WEIGHTS), DAMAGED),
    ("a folder", make_folder(WEIGHTS), DAMAGED),
    ("empty", put(WEIGHTS, b""), DAMAGED),
    ("three bytes", put(WEIGHTS, b"\x03\0\0"), DAMAGED),
    ("a web page", put(WEIGHTS, "<!DOCTYPE html><html>not found</html>"), DAMAGED),
    (
        "a pointer of git-lfs",
        put(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:1"),
        DAMAGED,
    ),
    ("cut in the header", cut(WEIGHTS, 0.01), DAMAGED),
    ("cut in half", cut(WEIGHTS, 0.5), DAMAGED),
    ("a byte short", cut(WEIGHTS, 0.99999), DAMAGED),
    ("a byte more", lambda: Path(WEIGHTS).write_bytes(Path(WEIGHTS).read_bytes() + b"\0"), DAMAGED),
    ("header of 2^63", put(WEIGHTS, header({}, 2**63)), DAMAGED),
    ("header of 2^40", put(WEIGHTS, header({}, 2**40)), DAMAGED),
    ("header of 90 MB", put(WEIGHTS, header({}, 90_000_000)), DAMAGED),
    ("header of length 0", put(WEIGHTS, header({}, 0)), DAMAGED),
    ("header a list", put(WEIGHTS, (2).to_bytes(8, "little") + b"[]"), DAMAGED),
    ("header deep", put(WEIGHTS, (90_000).to_bytes(8, "little") + b"[" * 90_000), DAMAGED),
    ("header without offsets", put(WEIGHTS, header({"wte.weight": {"dtype": "F32", "shape": [1]}})), DAMAGED),
    ("header that says 2^50 bytes", put(WEIGHTS, header(claim("F32", [2**48], 0, 2**50))), DAMAGED),
    ("offsets reversed", put(WEIGHTS, header(claim("F32", [4], 16, 0)) + bytes(16)), DAMAGED),
    ("offsets negative", put(WEIGHTS, header(claim("F32", [4], -16, 0)) + bytes(16)), DAMAGED),
    ("offsets with a hole", put(WEIGHTS, header(claim("F32", [4], 16, 32)) + bytes(32)), DAMAGED),
    ("shape that overflows", put(WEIGHTS, header(claim("F32", [2**33, 2**33], 0, 16)) + bytes(16)), DAMAGED),
    ("shape negative", put(WEIGHTS, header(claim("F32", [-4], 0, 16)) + bytes(16)), DAMAGED),
    ("shape of another size", put(WEIGHTS, header(claim("F32", [5], 0, 16)) + bytes(16)), DAMAGED),
    ("type unknown", put(WEIGHTS, header(claim("F31", [4], 0, 16)) + bytes(16)), DAMAGED),
    ("no tensors", put(WEIGHTS, save({})), "wte.weight is missing"),
    (
        "two missing",
        edit_weights(lambda t: {k: v for k, v in t.items() if "ln_f" not in k}),
        "ln_f.bias is missing",
    ),
    ("one unexpected", edit_weights(lambda t: t | {"h.7.x": torch.ones(1)}), "h.7.x is unexpected"),
    ("a name twice", edit_weights(lambda t: t | {"wte.weight": torch.ones(1)}), "wte.weight is there twice"),
    (
        "one transposed",
        edit_weights(lambda t: {k: v.T if k.endswith("c_attn.weight") else v for k, v in t.items()}),
        "(48, 16) and should be (16, 48)",
    ),
    (
        "one empty",
        edit_weights(lambda t: t | {"transformer.ln_f.bias": torch.ones(0)}),
        "ln_f.bias is (0,) and should be (16,)",
    ),
    (
        "integers",
        edit_weights(lambda t: t | {"transformer.ln_f.bias": torch.ones(16).int()}),
        "ln_f.bias holds torch.int32",
    ),
    (
        "complex",
        edit_weights(lambda t: t | {"transformer.ln_f.bias": torch.ones(16) * 1j}),
        "ln_f.bias holds torch.complex64",
    ),
    ("NaN", edit_weights(lambda t: {k: v * torch.nan for k, v in t.items()}), "not finite"),
    (
        "infinity in float16",
        edit_weights(lambda t: {k: (v.half() / 0 if "ln_f.w" in k else v.half()) for k, v in t.items()}),
        "ln_f.weight holds values that are not finite",
    ),
    ("index not JSON", both(remove(WEIGHTS), put(WEIGHTS + ".index.json", "{")), "index.json is not JSON"),
    (
        "index without a map",
        both(remove(WEIGHTS), put(WEIGHTS + ".index.json", "{}")),
        "weight_map must give",
    ),
    ("index with a list", shards(["a"]), "weight_map must give"),
    ("index that leaves the folder", shards({"a": "../good.pt"}), "weight_map must give"),
    ("index with an absolute path", shards({"a": "/etc/passwd"}), "weight_map must give"),
    ("index with a number", shards({"a": 3}), "weight_map must give"),
    ("index of nothing", shards({}), "wte.weight is missing"),
    (
        "shard missing",
        shards({"a": "model-1.safetensors"}),
        "model-1.safetensors " + DAMAGED.join(["is ", ""]),
    ),
    ("shard empty", shards({"a": "one.safetensors"}, one=b""), "one.safetensors is " + DAMAGED),
    (
        "tensor in two shards",
        shards(
            {"a": "one.safetensors", "b": "two.safetensors"},
            one=save({"wte.weight": torch.ones(1)}),
            two=save({"transformer.wte.weight": torch.ones(1)}),
        ),
        "is there twice",
    ),
]

MUST = "but must be"
CONFIG_ROWS = [
    ("missing", remove(CONFIG), "config.json cannot be read"),
    ("a folder", make_folder(CONFIG), "config.json cannot be read"),
    ("empty", put(CONFIG, ""), "config.json is not JSON"),
    ("cut", cut(CONFIG, 0.5), "config.json is not JSON"),
    ("not UTF-8", put(CONFIG, b"\xff\xfe{\0}\0"), "config.json cannot be read"),
    ("deep", put(CONFIG, "[" * 100_000), "config.json is not JSON"),
    ("a list", put(CONFIG, "[]"), "one JSON object"),
    ("null", put(CONFIG, "null"), "one JSON object"),
    ("a key twice", put(CONFIG, '{"n_layer": 1, "n_layer": 2}'), "'n_layer' is there twice"),
    ("a number of 5,000 digits", put(CONFIG, '{"n_layer": ' + "9" * 5000 + "}"), "config.json is not JSON"),
    ("another model", edit_json(CONFIG, model_type="llama"), "model_type is 'llama'"),
    ("no model type", edit_json(CONFIG, without="model_type"), "model_type is missing"),
    ("vocab_size 0", edit_json(CONFIG, vocab_size=0), "vocab_size is 0, " + MUST),
    ("vocab_size negative", edit_json(CONFIG, vocab_size=-257), "vocab_size is -257, " + MUST),
    ("vocab_size 10^18", edit_json(CONFIG, vocab_size=10**18), MUST),
    ("vocab_size 2^20", edit_json(CONFIG, vocab_size=2**20), "should be (1048576, 16)"),
    ("vocab_size too small", edit_json(CONFIG, vocab_size=256), "should be (256, 16)"),
    ("n_positions text", edit_json(CONFIG, n_positions="512"), "n_positions is '512', " + MUST),
    ("n_positions a list", edit_json(CONFIG, n_positions=[512]), "n_positions is [512], " + MUST),
    ("n_positions other", edit_json(CONFIG, n_positions=511), "should be (511, 16)"),
    ("n_embd null", edit_json(CONFIG, n_embd=None), "n_embd is None, " + MUST),
    ("n_embd NaN", edit_json(CONFIG, n_embd=float("nan")), "n_embd is nan, " + MUST),
    ("n_embd infinite", edit_json(CONFIG, n_embd=float("inf")), "n_embd is inf, " + MUST),
    ("n_embd 16.0", edit_json(CONFIG, n_embd=16.0), "n_embd is 16.0, " + MUST),
    ("n_embd 2^20", edit_json(CONFIG, n_embd=2**20), "should be"),
    ("n_embd 2^20 and 200 layers", edit_json(CONFIG, n_embd=2**20, n_layer=200), "and 2384 more"),
    ("n_layer 10^9", edit_json(CONFIG, n_layer=10**9), "n_layer is 1000000000, " + MUST),
    ("n_layer true", edit_json(CONFIG, n_layer=True), "n_layer is True, " + MUST),
    ("n_layer missing", edit_json(CONFIG, without="n_layer"), "n_layer is missing, " + MUST),
    ("n_layer 2 of 1", edit_json(CONFIG, n_layer=2), "h.1.ln_1.weight is missing"),
    ("n_head 0", edit_json(CONFIG, n_head=0), "n_head is 0, " + MUST),
    ("n_head 3 of 16", edit_json(CONFIG, n_head=3), "n_embd 16 must be divisible by n_head 3"),
    ("n_inner negative", edit_json(CONFIG, n_inner=-64), "n_inner is -64, " + MUST),
    ("epsilon NaN", edit_json(CONFIG, layer_norm_epsilon=float("nan")), "layer_norm_epsilon is nan, " + MUST),
    (
        "epsilon negative",
        edit_json(CONFIG, layer_norm_epsilon=-1e-5),
        "layer_norm_epsilon is -1e-05, " + MUST,
    ),
    ("activation unknown", edit_json(CONFIG, activation_function="swish"), "activation_function is 'swish'"),
    ("activation an object", edit_json(CONFIG, activation_function={}), "activation_function is {}"),
    ("tied by text", edit_json(CONFIG, tie_word_embeddings="no"), "tie_word_embeddings is 'no', " + MUST),
    ("untied without a head", edit_json(CONFIG, tie_word_embeddings=False), "lm_head.weight is missing"),
    ("scaling off", edit_json(CONFIG, scale_attn_weights=False), "the only scaling supported"),
    ("end past the vocabulary", edit_json(CONFIG, eos_token_id=257), "must be an id below 257"),
    ("end negative", edit_json(CONFIG, eos_token_id=-1), "must be an id below 257"),
    ("end text", edit_json(CONFIG, eos_token_id="</s>"), "must be an id below 257"),
    ("end true", edit_json(CONFIG, bos_token_id=True), "must be an id below 257"),
    ("no ends", put("model/generation_config.json", '{"eos_token_id": []}'), "must be an id below 257"),
    ("generation config a list", put("model/generation_config.json", "[]"), "one JSON object"),
    ("generation config cut", put("model/generation_config.json", "{"), "generation_config.json is not JSON"),
    (
        "GPT-2's keys called BART",
        edit_json(CONFIG, model_type="bart"),
        "max_position_embeddings is missing",
    ),
]

TOKENIZER_ROWS = [
    ("vocab missing", remove(VOCAB), "vocab.json cannot be read"),
    ("merges missing", remove(MERGES), "merges.txt cannot be read"),
    ("vocab a folder", make_folder(VOCAB), "vocab.json cannot be read"),
    ("vocab empty", put(VOCAB, ""), "vocab.json is not JSON"),
    ("vocab cut", cut(VOCAB, 0.9), "vocab.json is not JSON"),
    ("vocab a list", put(VOCAB, json.dumps(list(BYTES))), "one JSON object"),
    ("vocab empty object", put(VOCAB, "{}"), "lacks byte tokens"),
    ("vocab Latin-1", put(VOCAB, b'{"\xe9": 1}'), "vocab.json cannot be read"),
    ("id twice", edit_json(VOCAB, thy=7), "both have id 7"),
    ("token twice", put(VOCAB, json.dumps(GOOD_VOCAB)[:-1] + ', "a": 300}'), "'a' is there twice"),
    ("id text", edit_json(VOCAB, a="65"), "each token needs an id"),
    ("id a fraction", edit_json(VOCAB, a=65.5), "each token needs an id"),
    ("id negative", edit_json(VOCAB, a=-1), "each token needs an id"),
    ("id null", edit_json(VOCAB, a=None), "each token needs an id"),
    ("id past the model", edit_json(VOCAB, th=257), "ids beyond config.json's vocab_size 257"),
    ("id 10^15", edit_json(VOCAB, th=10**15), "ids beyond config.json's vocab_size 257"),
    ("a byte missing", edit_json(VOCAB, without="Ā"), "lacks byte tokens (Ā)"),
    ("merge of one", put(MERGES, "th\n"), "line 1: 'th' must join two tokens"),
    ("merge of three", put(MERGES, "#version: 0.2\nt h e\n"), "line 2: 't h e' must join two tokens"),
    ("merge of nothing known", put(MERGES, "th e\n"), "line 1: 'th e' must join two tokens made above"),
    ("merge into nothing", put(MERGES, "t h\n"), "line 1: 'th' is not in vocab.json"),
    ("merge twice", both(edit_json(VOCAB, th=257), put(MERGES, "t h\nt h\n")), "line 2: 't h' must join"),
    ("merges not UTF-8", put(MERGES, b"\xff\xfet\0"), "merges.txt cannot be read"),
    ("merges a program", put(MERGES, bytes(range(256)) * 4), "merges.txt"),
]

NO_PREFIX = "is not a prefix of format"
PREFIX_ROWS = [
    ("missing", remove("good.pt"), "good.pt does not exist"),
    ("a folder", make_folder("good.pt"), "good.pt is no PEFT folder"),
    ("empty", put("good.pt", b""), "good.pt is damaged or no .pt file"),
    ("text", put("good.pt", "hello"), "good.pt"),
    ("cut", cut("good.pt", 0.5), "good.pt is damaged or no .pt file"),
    ("a byte short", cut("good.pt", 0.9999), "good.pt is damaged or no .pt file"),
    ("zip without content", put("good.pt", b"PK\5\6" + bytes(18)), "good.pt is refused"),
    (
        "code",
        edit_pt("good.pt", lambda c: {"format": c["format"], "method": Code()}),
        "nothing in it was run",
    ),
    ("code in a value", config_with(lr=Code()), "nothing in it was run"),
    ("code as a key", edit_pt("good.pt", lambda c: c | {Path("x"): 1}), "nothing in it was run"),
    ("a bomb", make_bomb, "good.pt is damaged or no .pt file"),
    ("a list", edit_pt("good.pt", lambda c: [c]), NO_PREFIX),
    ("a tensor", edit_pt("good.pt", lambda c: torch.ones(3)), NO_PREFIX),
    ("another format", prefix_with(format="minprefix/9"), NO_PREFIX),
    ("format a tensor", prefix_with(format=torch.ones(2)), NO_PREFIX),
    ("a training state", lambda: shutil.copy("run/e2e.state.pt", "good.pt"), NO_PREFIX),
    ("a key missing", edit_pt("good.pt", lambda c: {k: v for k, v in c.items() if k != "sites"}), "sites"),
    ("a key more", prefix_with(mlp=1), "keys missing or unexpected: mlp"),
    ("method a number", prefix_with(method=3), "method must be of type str"),
    ("method unknown", prefix_with(method="lora"), "method 'lora'"),
    ("no sites", prefix_with(sites={}), "with sites [] is unknown"),
    ("a site of another method", prefix_with(method="infix"), "method 'infix' with sites ['decoder']"),
    ("a site with a number as name", prefix_with(sites={3: NAN}), "is unknown"),
    (
        "tensors in a prefix",
        prefix_with(tensors={"wte.weight": torch.ones(1)}),
        "it must hold either sites or tensors",
    ),
    ("site a number", prefix_with(sites={"decoder": 3}), "site decoder must be a tensor"),
    ("site 1-D", prefix_with(sites={"decoder": torch.ones(32)}), "site decoder must be a tensor"),
    (
        "site of integers",
        prefix_with(sites={"decoder": torch.ones(3, 32).int()}),
        "must be a tensor of floats",
    ),
    ("site without rows", prefix_with(sites={"decoder": torch.ones(0, 32)}), "decoder"),
    ("site without memory", prefix_with(sites={"decoder": torch.ones(3, 32, device="meta")}), "decoder"),
    ("site in 8 bits", prefix_with(sites={"decoder": torch.ones(3, 32).to(torch.float8_e4m3fn)}), "decoder"),
    (
        "one number as many",
        prefix_with(sites={"decoder": torch.ones(1, 1).expand(10**9, 32)}),
        "tensor of floats",
    ),
    ("NaN", prefix_with(sites={"decoder": NAN}), "decoder holds values that are not finite"),
    ("infinity", prefix_with(sites={"decoder": NAN.nan_to_num() / 0}), "not finite"),
    ("too narrow", prefix_with(sites={"decoder": torch.ones(3, 30)}), "does not fit"),
    ("too wide", prefix_with(sites={"decoder": torch.ones(3, 64)}), "does not fit"),
    ("too long", prefix_with(sites={"decoder": torch.ones(600, 32)}), "positions (prefix 600"),
    ("BART's site", prefix_with(sites={"encoder": torch.ones(3, 32)}), "does not fit"),
    ("other positions", prefix_with(positions="unshifted"), "'unshifted' positions"),
    ("another base", edit_pt("good.pt", within("base", fingerprint="0" * 16)), "pass --model"),
    (
        "base gone",
        edit_pt("good.pt", within("base", name="gone/model")),
        "'gone/model' is no folder",
    ),
    ("base a number", edit_pt("good.pt", within("base", name=3)), "base must hold name"),
    ("full without tensors", prefix_with(method="full", sites={}), "it must hold either sites or tensors"),
    (
        "full with too few",
        prefix_with(method="full", sites={}, tensors={"wte.weight": torch.ones(257, 16)}),
        "are not those of method full",
    ),
]

DECODING_ROWS = [
    ("beams text", config_with(beams="five"), "beams"),
    ("beams 0", config_with(beams=0), "beams is 0"),
    ("length penalty a list", config_with(length_penalty=[1.0]), "length_penalty"),
    ("data set a number", config_with(dataset=3), "dataset=3"),
    ("max_new_tokens 2.5", config_with(max_new_tokens=2.5), "max_new_tokens"),
]

DATA_ROWS = [
    ("folder empty", lambda: [path.unlink() for path in Path("data").iterdir()], "data=data is not auto"),
    ("dev missing", remove("data/dev.csv"), "data=data is not auto"),
    ("train empty", put("data/train.csv", ""), "no column mr and ref"),
    ("only a header", csv_with(), "train.csv has no train records"),
    ("no header", put("data/train.csv", ROW), "the first line must be mr,ref"),
    ("no ref", csv_with("name[A]", header="mr"), "no column ref"),
    ("ref twice", csv_with("name[A],good,bad", header="mr,ref,ref"), "column"),
    ("semicolons", put("data/train.csv", "mr;ref\nname[A];good\n"), "the first line must be mr,ref"),
    ("a comma too many", csv_with("name[A],It is cheap, by the river."), "train.csv, line 2"),
    ("empty reference", csv_with("name[A],"), "line 2: '' stands where a text should"),
    ("no reference", csv_with("name[A],good", "name[B]"), "line 3: None stands where a text should"),
    ("empty record", csv_with(",good"), "line 2: malformed record"),
    ("unknown key", csv_with("nome[A],good"), "line 2: unknown key 'nome'; did you mean 'name'"),
    ("key twice", csv_with('"name[A], name[B]",good'), "line 2: malformed record"),
    ("bracket open", csv_with("name[A,good"), "line 2: malformed record"),
    ("quote open", csv_with('"name[A],good'), "unexpected end of data"),
    ("Latin-1", put("data/train.csv", b"mr,ref\nname[Caf\xe9],good\n"), "line 2: not UTF-8"),
    ("UTF-16", put("data/train.csv", ("mr,ref\n" + ROW).encode("utf-16")), "line 1: not UTF-8"),
    ("a field of 200 KB", csv_with("name[A]," + "a" * 200_000), "line 2: field larger than field limit"),
    ("a long text", csv_with("name[A]," + "a" * 600), "training or dev pair 1 needs"),
    ("a long test record", csv_with("name[" + "a" * 600 + "],good", split="test"), "test record 1 needs"),
    ("gzip in name only", both(remove("data/dev.csv"), put("data/dev.csv.gz", ROW)), "is the file whole?"),
    (
        "gzip cut",
        both(remove("data/dev.csv"), put("data/dev.csv.gz", b"\x1f\x8b\x08\0")),
        "is the file whole?",
    ),
    ("dev without records", csv_with(split="dev"), "dev.csv has no dev records"),
]

INPUT_ROWS = [
    ("missing", remove("in.txt"), "", "--input in.txt cannot be read"),
    ("a folder", make_folder("in.txt"), "", "--input in.txt cannot be read"),
    ("without a name", None, "--input ''", "cannot be read"),
    ("empty", input_with(""), "", "--input in.txt is empty"),
    ("only blank lines", input_with("\n \n\t\n"), "", "--input in.txt is empty"),
    ("Latin-1", input_with(b"name : Caf\xe9"), "", "give a UTF-8 file"),
    ("UTF-16", input_with("name : A".encode("utf-16")), "", "give a UTF-8 file"),
    (
        "unknown key",
        input_with('name : A\n{"nme": "B"}\n'),
        "",
        "line 2: unknown key 'nme'; did you mean 'name'",
    ),
    ("malformed MR", input_with("name[A], food"), "", "line 1: malformed record"),
    ("JSON cut", input_with('{"name": "A"'), "", "line 1: not JSON"),
    ("JSON empty", input_with("{}"), "", "line 1: the record is empty"),
    ("JSON key twice", input_with('{"name": "A", "name": "B"}'), "", "'name' is there twice"),
    ("JSON NaN", input_with('{"name": NaN}'), "", "line 1: "),
    ("JSON with a list", input_with('{"name": ["A"]}'), "", "value of 'name'"),
    (
        "JSON with true",
        input_with('{"name": "A", "family friendly": true}'),
        "",
        "value of 'family friendly'",
    ),
    ("half a character", input_with('{"name": "\\ud800"}'), "", "valid Unicode"),
    ("deep JSON", input_with("[" * 99_999), "", "not JSON"),
    ("a list of numbers", input_with("[1, 2]", "a.json"), "--input a.json", "give a list of JSON objects"),
    (".json that is text", input_with("name : A", "a.json"), "--input a.json", "not JSON"),
    (".json empty list", input_with("[]", "a.json"), "--input a.json", "a.json is empty"),
    (".csv only a header", input_with("name,food\n", "a.csv"), "--input a.csv", "a.csv is empty"),
    (
        ".csv unknown column",
        input_with("name,foo\nA,B\n", "a.csv"),
        "--input a.csv",
        "line 2: unknown key 'foo'",
    ),
    (".csv column twice", input_with("name,name\nA,B\n", "a.csv"), "--input a.csv", "'name' is there twice"),
    (".csv huge field", input_with("name\n" + "a" * 200_000, "a.csv"), "--input a.csv", "field larger"),
    (".csv a field more", input_with("name,food\nA,B,C\n", "a.csv"), "--input a.csv", "line 2: "),
    ("a long record", input_with("name : B\nname : " + "A" * 600), "", "source 2 needs"),
]

TRAIN_FLAGS = [
    ("prefix_length=5", "did you mean 'prefix_len'"),
    ("=5", "unknown key ''"),
    ("''", "unknown key ''"),
    ("beams", "'beams' has no value"),
    ("--lr", "has no value"),
    ("'a\nb=1'", "unknown key"),
    ("dataset=e3e", "did you mean 'e2e'"),
    ("dataset=", "unknown data set ''"),
    ("method=lora2", "choose one of prefix"),
    ("method=", "choose one of prefix"),
    ("model=", "there is no model folder ''"),
    ("model=./gone", "there is no model folder './gone'"),
    ("model=good.pt/x", "'good.pt/x' is no folder"),
    ("lr=fast", "must be a number"),
    ("lr=", "must be a number"),
    ("lr=0", "between 1e-12 and"),
    ("lr=-1", "between 1e-12 and"),
    ("lr=nan", "between 1e-12 and"),
    ("lr=inf", "between 1e-12 and 1000"),
    ("lr==1", "must be a number"),
    ("clip=0", "between 1e-12 and"),
    ("clip=nan", "between 1e-12 and"),
    ("weight_decay=-0.1", "between 0 and 1"),
    ("weight_decay=nan", "between 0 and 1"),
    ("epochs=2.5", "must be a whole number"),
    ("epochs=0", "between 1 and"),
    ("epochs=99999999999999999999", "and 1048576"),
    ("batch_size=0", "between 1 and"),
    ("batch_size=-4", "between 1 and"),
    ("batch_size=1e3", "must be a whole number"),
    ("prefix_len=0", "between 1 and"),
    ("prefix_len=600", "needs"),
    ("prefix_len=1000000", "needs"),
    ("mlp_hidden=-1", "between 0 and"),
    ("max_steps=-1", "between 0 and"),
    ("n_train=-1", "between 0 and"),
    ("subset=-1", "between 0 and"),
    ("seed=-1", "between 0 and"),
    ("seed=99999999999", "and 1048576"),
    ("eval_every=0", "between 1 and"),
    ("dev_limit=0", "between 1 and"),
    ("eval_limit=-1", "between 0 and"),
    ("save_seconds=-1", "between 0 and"),
    ("beams=0", "between 1 and"),
    ("beams=1000000", "beams"),
    ("max_new_tokens=0", "between 1 and"),
    ("max_new_tokens=600", "needs"),
    ("length_penalty=nan", "between -20 and 20"),
    ("bf16=perhaps", "true or false"),
    ("bf16=", "true or false"),
    ("loss=squared", "token or sum"),
    ("init=", "no words"),
    ("init=' '", "no words"),
    ("device=abacus", "must be cpu or cuda"),
    ("device=cuda:x", "device=cuda:x"),
    ("device=cuda:99", "device=cuda:99"),
    ("data=gone", "data=gone is not auto"),
    ("data=in.txt", "data=in.txt is not auto"),
    ("out=e2e.txt", "must end in .pt"),
    ("out=good.pt", "good.pt exists and is not overwritten"),
    ("out=run/e2e.pt", "go on with resume=run/e2e.state.pt"),
    ("out=gone/e2e.pt", "gone/e2e"),
    ("out=in.txt/e2e.pt", "in.txt/e2e"),
    ("out=e2e.state.pt", "e2e.state.pt is the name of a state"),
    ("out=" + "a" * 300 + ".pt", "File name too long"),
]

SAMPLE_FLAGS = [
    ("--prefixes good.pt", "unrecognized arguments"),
    ("extra", "unrecognized arguments: extra"),
    ("--records many", "invalid int value"),
    ("--records 1.5", "invalid int value"),
    ("--beams", "expected one argument"),
    ("--top-p high", "invalid float value"),
    ("--records -1", "--records -1"),
    ("--prefix gone.pt", "gone.pt does not exist"),
    ("--prefix in.txt", "in.txt"),
    ("--model ''", "there is no model folder ''"),
    ("--model gone/at/all", "there is no model folder"),
    ("--model good.pt", "good.pt"),
    ("--data gone", "data=gone is not auto"),
    ("--data ''", "data="),
    ("--device abacus", "device=abacus"),
    ("--device cuda:99", "device=cuda:99"),
    ("--beams 0", "beams is 0"),
    ("--beams -2", "beams is -2"),
    ("--beams 1000000", "beams is 1000000"),
    ("--max-new-tokens 0", "max_new_tokens is 0"),
    ("--max-new-tokens 9999999", "needs"),
    ("--min-new-tokens -1", "min_new_tokens is -1"),
    ("--min-new-tokens 50", "min_new_tokens is 50"),
    ("--length-penalty nan", "length_penalty is nan"),
    ("--length-penalty 1000", "length_penalty is 1000"),
    ("--sample --beams 3", "set beams to 1"),
    ("--top-k 3", "set sample too"),
    ("--temperature 0.5", "set sample too"),
    ("--sample --beams 1 --top-k -1", "top_k is -1"),
    ("--sample --beams 1 --top-p 0", "top_p is 0"),
    ("--sample --beams 1 --top-p nan", "top_p is nan"),
    ("--sample --beams 1 --temperature 0", "temperature is 0"),
    ("--sample --beams 1 --temperature nan", "temperature is nan"),
    ("--sample --beams 1 --seed -1", "seed is -1"),
    ("--sample --beams 1 --seed 99999999999999999999", "seed is 99999999999999999999"),
    ("--output in.txt", "in.txt exists and is not overwritten"),
    ("--output model", "model exists and is not overwritten"),
    ("--output gone/a.jsonl", "gone/a.jsonl cannot be written"),
    ("--output ''", "--output"),
    ("--ensemble", "--ensemble needs two different"),
    ("--ensemble --prefix good.pt", "--ensemble needs two different"),
    ("--prefix model", "model is no PEFT folder"),
]

NO_STATE = "is no training state"
RESUME_ROWS = [
    ("missing", remove("run/e2e.state.pt"), "", "does not exist"),
    ("a prefix", None, "resume=good.pt", NO_STATE),
    ("a folder", make_folder("run/e2e.state.pt"), "", "damaged"),
    ("cut", cut("run/e2e.state.pt", 0.7), "", "damaged"),
    ("empty", put("run/e2e.state.pt", b""), "", "damaged"),
    ("code", state_with(step=Code()), "", "nothing in it was run"),
    ("a list", edit_pt("run/e2e.state.pt", lambda s: [s]), "", NO_STATE),
    ("another format", state_with(format="minprefix-state/9"), "", NO_STATE),
    ("a key more", state_with(mlp=1), "", NO_STATE),
    ("config a list", state_with(config=[]), "", NO_STATE),
    ("config with a key more", run_with(colour="red"), "", "another version"),
    ("config with text for a number", run_with(batch_size="four"), "", "damaged or of another version"),
    ("config out of range", run_with(batch_size=-4), "", "batch_size"),
    ("config with NaN", run_with(lr=float("nan")), "", "lr is nan"),
    ("method of another run", run_with(method="full"), "", "damaged"),
    ("length of another run", run_with(prefix_len=4), "", "damaged"),
    ("step negative", state_with(step=-1), "", "damaged"),
    ("step text", state_with(step="two"), "", "damaged"),
    ("step past the end", state_with(step=10**9), "", "damaged"),
    ("step a tensor", state_with(step=torch.ones(3)), "", "damaged"),
    ("no theta", state_with(theta={}), "", "damaged"),
    ("theta a list", state_with(theta=[1]), "", "damaged"),
    ("theta of another shape", state_with(theta={"decoder.P": torch.ones(3, 31)}), "", "damaged"),
    ("theta NaN", state_with(theta={"decoder.P": NAN}), "", "damaged"),
    ("no optimizer", state_with(optimizer={}), "", "damaged"),
    (
        "optimizer of another shape",
        edit_pt(
            "run/e2e.state.pt",
            lambda s: (
                s | {"optimizer": s["optimizer"] | {"state": {0: {"step": torch.tensor(1.0)}}}, "step": 1}
            ),
        ),
        "",
        "damaged",
    ),
    ("another model", state_with(fingerprint="0" * 16), "", "began with fingerprint"),
    ("other data", csv_with("name[A],good"), "", "began with data"),
    ("another setting", None, "seed=5", "leave seed= out"),
    ("an unknown setting", None, "colour=red", "unknown key 'colour'"),
    ("another run's result", lambda: shutil.copy("good.pt", "run/e2e.pt"), "", "of another run"),
    ("a damaged result", cut("run/e2e.pt", 0.5), "", "e2e.pt is damaged"),
    ("log not JSON", put("run/e2e.jsonl", "hello\n"), "", "e2e.jsonl"),
    ("log a list", put("run/e2e.jsonl", "[1]\n"), "", "e2e.jsonl"),
    ("log not UTF-8", put("run/e2e.jsonl", b"\xff\xfe\n"), "", "e2e.jsonl"),
]


def name_rows(group: str, rows: list, command: str) -> list:
    """(change, command, words) with an id; a row's own arguments go behind the command's."""
    return [
        pytest.param(change, f"{command} {' '.join(more)}", words, id=f"{group}: {name}")
        for name, change, *more, words in rows
    ]


def name_flags(rows: list, command: str) -> list:
    """The same for rows that are arguments and words: nothing is spoilt."""
    script = command.partition(" ")[0]
    return [
        pytest.param(None, f"{command} {more}", words, id=f"{script} {more[:60]!r}") for more, words in rows
    ]


TABLE = [
    *name_rows("weights", WEIGHTS_ROWS, SAMPLE),
    *name_rows("config", CONFIG_ROWS, SAMPLE),
    *name_rows("tokenizer", TOKENIZER_ROWS, SAMPLE),
    *name_rows("prefix", PREFIX_ROWS, SAMPLE),
    *name_rows("decoding", DECODING_ROWS, "sample --prefix good.pt --input in.txt"),
    *name_rows("data", DATA_ROWS, TRAIN),
    *name_rows("input", INPUT_ROWS, SAMPLE),
    *name_rows("resume", RESUME_ROWS, RESUME),
    *name_flags(TRAIN_FLAGS, TRAIN),
    *name_flags(SAMPLE_FLAGS, DESCRIBE),
]


def run_here(command: str) -> str:
    """What the command says on stderr as it ends with exit code 2, without a new process."""
    script, *arguments = shlex.split(command)
    with pytest.raises((InputError, OSError)) as refused:
        COMMANDS[script](arguments)
    return str(refused.value)


def assert_one_sentence(message: str, words: str) -> None:
    assert words in message
    assert max(map(message.count, ("put the", " again", "cannot be"))) <= 1, message  # not one in another
    assert "\n" not in message and not message.endswith(".") and len(message) < 1000


@pytest.mark.parametrize("command", [SAMPLE, DESCRIBE, TRAIN, RESUME])
def test_without_a_fault_everything_works(command, scratch):
    script, *arguments = shlex.split(command)
    COMMANDS[script](arguments)


@pytest.mark.parametrize(("change", "command", "words"), TABLE)
def test_bad_input_is_one_sentence_and_touches_nothing(change, command, words, scratch):
    if change:
        change()
    before, began = take_digests(scratch), time.process_time()
    assert_one_sentence(run_here(command), words)
    assert time.process_time() - began < 5  # seconds: nothing is tried at length
    assert take_digests(scratch) == before


# --- calls: what the library refuses, with no command around it ---


CALLS = {
    "source empty": (lambda lm: generate(lm, [[]]), "source 1 is empty"),
    "more prefixes than sources": (lambda lm: generate(lm, [[5]], [None, None]), "2 prefixes for 1 sources"),
    "beams 0": (lambda lm: generate(lm, [[5]], beams=0), "beams is 0"),
    "beams 10^9": (lambda lm: generate(lm, [[5]], beams=10**9), "beams is 1000000000"),
    "no new tokens": (lambda lm: generate(lm, [[5]], max_new_tokens=0), "max_new_tokens is 0"),
    "too many tokens": (lambda lm: generate(lm, [[5]], max_new_tokens=512), "source 1 needs"),
    "shortest above longest": (
        lambda lm: generate(lm, [[5]], max_new_tokens=4, min_new_tokens=5),
        "min_new_tokens is 5",
    ),
    "n-gram negative": (lambda lm: generate(lm, [[5]], no_repeat_ngram_size=-1), "no_repeat_ngram_size"),
    "seed negative": (lambda lm: generate(lm, [[5]], seed=-1), "seed is -1"),
    "method unknown": (lambda lm: make_theta(lm, "lora2", 3, 0, []), "method=lora2 is unknown"),
    "site unknown": (lambda lm: make_theta(lm, "prefix", 3, 0, [], ("encoder",)), "no site 'encoder'"),
    "id unknown": (lambda lm: load_lm("model")[1].decode([257]), "token id 257 is not in vocab.json"),
    "id negative": (lambda lm: load_lm("model")[1].decode([-1]), "token id -1 is not in vocab.json"),
    "place a folder": (lambda lm: save_prefix(load_prefix("good.pt"), "model"), "model cannot be written"),
    "place gone": (
        lambda lm: save_prefix(load_prefix("good.pt"), "gone/a.pt"),
        "gone/a.pt cannot be written",
    ),
}


@pytest.fixture(scope="module")
def lm(good):
    return load_lm(good / "model")[0]


@pytest.mark.parametrize("case", CALLS)
def test_a_bad_call_is_an_input_error(case, lm, scratch):
    call, words = CALLS[case]
    before = take_digests(scratch)
    with pytest.raises(InputError) as refused:
        call(lm)
    assert_one_sentence(str(refused.value), words)
    assert take_digests(scratch) == before


# --- the commands themselves, as processes ---

PROCESSES = ["config: a key twice", "data: a comma too many", "sample '--beams'"]


@pytest.mark.parametrize(("change", "command", "words"), [row for row in TABLE if row.id in PROCESSES])
def test_the_commands_say_it_in_one_line_and_exit_with_2(change, command, words, scratch):
    if change:
        change()
    before = take_digests(scratch)
    script, *arguments = shlex.split(command)
    line = [sys.executable, str(REPOSITORY / f"{script}.py"), *arguments]
    run = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith(f"{script}.py: ") and words in run.stderr
    assert take_digests(scratch) == before


def test_the_table_is_long():
    assert len(TABLE) + len(CALLS) >= 300 and len({row.id for row in TABLE}) == len(TABLE)
