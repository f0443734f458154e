"""Text in, numbers out."""

from collections.abc import Sequence

import sacrebleu

from minprefix.errors import InputError


def bleu(outputs: list[str], references: list[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU (0 to 100) as the E2E challenge computes it (lower case, 13a tokens, all references)
    and "length_ratio", the length of the outputs over that of the closest references. An empty output is
    allowed. Raises InputError where the counts differ or an output has no reference."""
    _check(outputs, references)
    width = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(width)]
    # force: no warning that outputs look tokenised
    score = sacrebleu.BLEU(lowercase=True, tokenize="13a", force=True).corpus_score(outputs, streams)
    return {"BLEU": score.score, "length_ratio": score.sys_len / score.ref_len}


def _check(outputs: list[str], references: list[Sequence[str]]) -> None:
    if not outputs:
        raise InputError("there is no output to score")
    if len(outputs) != len(references):
        raise InputError(
            f"{len(outputs)} outputs, but references for {len(references)}; give one list for each output"
        )
    for i, texts in enumerate(references):
        if isinstance(texts, str) or not any(text.strip() for text in texts):
            raise InputError(f"output {i} has no reference (a list with at least one text)")
