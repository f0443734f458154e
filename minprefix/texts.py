"""From texts to the ids a model reads, and back: the input format of the paper, for training and for
decoding.
"""

from minprefix.checks import InputError
from minprefix.generate import generate


def encode_source(lm, tokenizer, source: str, limit: int = 0) -> list[int]:
    """What stands before y: for GPT-2 ids(x), BOS, which separates the two; for BART BOS, ids(x), EOS.

    x is cut so that all of it is at most `limit` tokens; 0 cuts nothing.
    """
    return cut(lm, tokenizer.encode(source), limit, is_target=False)


def encode_target(lm, tokenizer, target: str, limit: int = 0) -> list[int]:
    """What the loss is over: ids(" " + y), EOS; for BART BOS, ids(y), EOS; cut as a source is."""
    return cut(lm, tokenizer.encode(lm.begins + target), limit, is_target=True)


def cut(lm, ids: list[int], limit: int, is_target: bool) -> list[int]:
    """The framed ids, of which so many are kept that all are `limit`; InputError if that leaves none."""
    kept = limit - len(lm.frame([], is_target)) if limit else len(ids)
    if limit and kept < 1:
        raise InputError(f"texts cannot be cut to {limit} tokens: give more, or 0 to cut nothing")
    return lm.frame(ids[:kept], is_target)


def newline_ids(tokenizer) -> tuple[int, ...]:
    """The tokens that contain a line break: the paper's decoding bans them."""
    return tuple(id for id, token in tokenizer.bytes_of_id.items() if b"\n" in token)


def generate_texts(
    lm, tokenizer, sources: list[str], prefix, decoding: dict, max_source: int = 0, ensemble: bool = False
) -> list[str]:
    """One line of text for each source; prefix and decoding as of `generate`; max_source cuts the sources."""
    ids = [encode_source(lm, tokenizer, source, max_source) for source in sources]
    outputs = generate(lm, ids, prefix, ensemble=ensemble, banned=newline_ids(tokenizer), **decoding)
    texts = ([token for token in tokens if token not in tokenizer.special_ids] for tokens in outputs)
    return [tokenizer.decode(tokens).strip() for tokens in texts]
