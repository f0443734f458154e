"""From texts to the ids a model reads, and back: the input format of the paper, for training and for
decoding.
"""

from minprefix.generate import generate


def encode_source(lm, tokenizer, source: str) -> list[int]:
    """ids(x), BOS: what stands before y. BOS separates the two."""
    return [*tokenizer.encode(source), lm.config.bos_token_id]


def encode_target(lm, tokenizer, target: str) -> list[int]:
    """ids(" " + y), EOS: what the loss is over."""
    return [*tokenizer.encode(" " + target), lm.config.eos_token_id]


def newline_ids(tokenizer) -> tuple[int, ...]:
    """The tokens that contain a line break: the paper's decoding bans them."""
    return tuple(id for id, token in tokenizer.bytes_of_id.items() if b"\n" in token)


def generate_texts(lm, tokenizer, sources: list[str], prefix, options: dict) -> list[str]:
    """One line of text for each source; prefix and options as of `generate`."""
    ids = [encode_source(lm, tokenizer, source) for source in sources]
    outputs = generate(lm, ids, prefix, banned=newline_ids(tokenizer), **options)
    return [tokenizer.decode(tokens).strip() for tokens in outputs]
