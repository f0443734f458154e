"""The one exception that means "the input is at fault, not the code"."""


class InputError(ValueError):
    """One sentence for the user: what was wrong, where, and what to do. The commands exit with 2."""


def first_line(error: Exception) -> str:
    """What another library's error says, short enough to be part of a sentence."""
    return " ".join(str(error).strip().partition("\n")[0].split()) or type(error).__name__
