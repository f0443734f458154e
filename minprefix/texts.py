"""From texts to the ids a model reads, and back: the input format of the paper, for training and for
decoding.
"""

from minprefix.bart import BART
from minprefix.errors import InputError
from minprefix.generate import generate


def encode_source(lm, tokenizer, source: str, limit: int = 0) -> list[int]:
    """What stands before y: for GPT-2 ids(x), BOS, which separates the two; for BART BOS, ids(x), EOS.

    x is cut so that all of it is at most `limit` tokens; 0 cuts nothing.
    """
    config = lm.config
    if isinstance(lm, BART):
        return [config.bos_token_id, *cut(tokenizer.encode(source), limit, 2), config.eos_token_id]
    return [*cut(tokenizer.encode(source), limit, 1), config.bos_token_id]


def encode_target(lm, tokenizer, target: str, limit: int = 0) -> list[int]:
    """What the loss is over: ids(" " + y), EOS; for BART BOS, ids(y), EOS; cut as a source is.

    BART's decoder starts from EOS and was trained to say BOS next, so its fine-tuning (and transformers'
    labels) keep BOS as y's first token; generation may force it.
    """
    if isinstance(lm, BART):
        return encode_source(lm, tokenizer, target, limit)
    return [*cut(tokenizer.encode(" " + target), limit, 1), lm.config.eos_token_id]


def cut(ids: list[int], limit: int, special: int) -> list[int]:
    """The first ids, so many that with the special ones they are `limit`; InputError if that is too small."""
    if limit and limit <= special:
        raise InputError(f"texts cannot be cut to {limit} tokens: give more, or 0 to cut nothing")
    return ids[: limit - special] if limit else ids


def newline_ids(tokenizer) -> tuple[int, ...]:
    """The tokens that contain a line break: the paper's decoding bans them."""
    return tuple(id for id, token in tokenizer.bytes_of_id.items() if b"\n" in token)


def generate_texts(lm, tokenizer, sources: list[str], prefix, options: dict) -> list[str]:
    """One line of text for each source; prefix and options as of `generate`, and max_source, which cuts."""
    decoding = {"max_source": 0} | options
    limit = decoding.pop("max_source")
    ids = [encode_source(lm, tokenizer, source, limit) for source in sources]
    outputs = generate(lm, ids, prefix, banned=newline_ids(tokenizer), **decoding)
    texts = ([token for token in tokens if token not in tokenizer.special_ids] for tokens in outputs)
    return [tokenizer.decode(tokens).strip() for tokens in texts]
