"""What is wrong with what comes from outside, in one sentence.

`build` is the one validator: a frozen pydantic dataclass states types, bounds and defaults, and what pydantic
reports becomes one InputError.
"""

import contextlib
import difflib
import json
import os
import re
import reprlib
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)  # for what a person writes
LENIENT = ConfigDict(strict=True)  # for a file of others, which says more than we ask for


class InputError(ValueError):
    """One sentence for the user: what was wrong, where, and what to do. The commands exit with 2."""

    def __init__(self, sentence: object):
        super().__init__(" ".join(str(sentence).splitlines()))  # names of files and keys may hold line breaks


def build(cls: type[T], values: dict, place: str = "", text: bool = False) -> T:
    """`cls(**values)`, a pydantic dataclass; InputError in one sentence behind `place` if it refuses them.

    text: the values are strings, as somebody typed them.
    """
    try:
        if text:
            return TypeAdapter(cls).validate_strings(values)
        return cls(**{str(key): value for key, value in values.items()})
    except ValidationError as report:
        raise InputError(place + describe(report, cls)) from None


def describe(report: ValidationError, cls: type) -> str:
    """The first thing that pydantic found wrong, in our words."""
    error = report.errors(include_url=False)[0]
    name = ".".join(str(part) for part in error["loc"] if part != "bool")  # that is the kind, not a place
    if error["type"] == "unexpected_keyword_argument":
        return f"unknown key '{name}'; {nearest(name, cls.__pydantic_fields__)}"
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "value_error":  # our own check, which speaks for itself
        return f"{name} {error['ctx']['error']}".strip()
    given, wanted = reprlib.repr(error["input"]), error["msg"].partition("should ")[2]
    if error["type"] == "string_pattern_mismatch":
        wanted = f"be {cls.__pydantic_fields__[name].description}"
    return f"{name} is {given}: it must {wanted}"


def read_json(path: Path) -> dict:
    """The JSON object in a file of a checkpoint. InputError where there is none."""
    kinds, advice = (OSError, ValueError, RecursionError), "put the checkpoint's own file there"
    with explain(kinds, f"{path} is no JSON object", advice):
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_twins)
        if not isinstance(content, dict):
            raise ValueError(type(content).__name__)
    return content


def refuse_twins(pairs: list[tuple[str, object]]) -> dict:
    """json's object_pairs_hook: ValueError for a key that is there twice, where json would drop the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twin = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twin!r} is there twice")
    return content


@contextlib.contextmanager
def explain(kinds: type[Exception] | tuple, what: str, advice: str) -> Iterator[None]:
    """Exceptions of these kinds become the InputError "what (their reason): advice"."""
    try:
        yield
    except InputError:  # says it already
        raise
    except kinds as error:
        raise InputError(f"{what} ({first_line(error)}): {advice}") from None


def read_path(name: object) -> Path:
    """The Path of a file's name. InputError for anything else."""
    with explain(TypeError, f"{reprlib.repr(name)} names no file", "give a string or a Path"):
        return Path(name)


def first_line(error: Exception) -> str:
    """What another library's error says, short enough to be part of a sentence."""
    text = getattr(error, "strerror", None) or str(error)  # the system's, without its number and path
    return textwrap.shorten(text, 400, placeholder=" ...") or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint for a word that is not among those known."""
    match = difflib.get_close_matches(word, known, 1)
    return f"did you mean '{match[0]}'?" if match else f"known are {', '.join(known)}"


def run_command(main: Callable[[list[str]], None]) -> None:
    """Runs a program's `main`; what its user can mend becomes one line on stderr and exit code 2.

    Characters that the terminal's encoding lacks are printed as escapes; a warning is one line, too.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # there may be no terminal, or a notebook's
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")
    warnings.showwarning = lambda warning, *_: complain(warning)
    # Of top2 in bfloat16, whose norms are float32: PyTorch is right, but says that it could be faster.
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        sys.exit(complain(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("(out of|allocate|enough) memory", str(error)):
            raise
        sys.exit(complain(f"memory ran out ({first_line(error)}): lower batch_size, beams or prefix_len"))


def complain(sentence: object) -> int:
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    return 2
