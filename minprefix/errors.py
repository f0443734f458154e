"""The one exception that means "the input is at fault, not the code"."""


class InputError(ValueError):
    """One sentence for the user: what was wrong, where, and what to do. The commands exit with 2."""
