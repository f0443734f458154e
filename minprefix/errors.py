"""The one exception that means "the input is at fault, not the code", what makes others into it, and how
commands say it.
"""

import contextlib
import difflib
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import TextIO


class InputError(ValueError):
    """One sentence for the user: what was wrong, where, and what to do. The commands exit with 2."""

    def __init__(self, sentence: object):
        super().__init__(" ".join(str(sentence).splitlines()))  # names of files and keys may hold line breaks


def first_line(error: Exception) -> str:
    """What another library's error says, short enough to be part of a sentence."""
    text = getattr(error, "strerror", None) or str(error)  # the system's, without its number and path
    return " ".join(text.strip().partition("\n")[0].split()) or type(error).__name__


@contextlib.contextmanager
def explain(kinds: type[Exception] | tuple, what: str, advice: str) -> Iterator[None]:
    """Exceptions of these kinds become the InputError "what (their reason): advice"."""
    try:
        yield
    except InputError:  # says it already
        raise
    except kinds as error:
        raise InputError(f"{what} ({first_line(error)}): {advice}") from None


def check_range(name: str, value: float, least: float, most: float) -> None:
    """InputError for a number out of its range; NaN is out of any."""
    if not least <= value <= most:
        raise InputError(f"{name} is {value}: it must lie between {least} and {most}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint for a word that is not among those known."""
    match = difflib.get_close_matches(word, known, 1)
    return f"did you mean '{match[0]}'?" if match else f"known are {', '.join(known)}"


def refuse_twins(pairs: list[tuple[str, object]]) -> dict:
    """json's object_pairs_hook: ValueError for a key that is there twice, where json would drop the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return content


@contextlib.contextmanager
def blame_memory(advice: str) -> Iterator[None]:
    """Out of memory, on a processor or a GPU, becomes an InputError that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("(out of|allocate|enough) memory", str(error)):
            raise
        raise InputError(f"memory ran out ({first_line(error)}): {advice}") from None


def wrap(label: str, text: str, stream: TextIO) -> str:
    """What a command says: one line, or on a terminal lines of its width that begin where the text does."""
    if not stream.isatty():
        return label + text
    columns = max(40, shutil.get_terminal_size().columns)
    indent = " " * min(len(label), columns // 2)
    whole = {"break_long_words": False, "break_on_hyphens": False}  # a path can still be copied
    return textwrap.fill(text, columns, initial_indent=label, subsequent_indent=indent, **whole) or label
