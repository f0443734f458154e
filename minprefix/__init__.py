"""minprefix: Prefix-Tuning (Li & Liang 2021) from scratch. A prefix is a cache that nobody computed."""

from minprefix.checks import InputError
from minprefix.generate import generate
from minprefix.hub import load_lm
from minprefix.peft import from_peft, to_peft
from minprefix.store import load_prefix, save_prefix

__all__ = ["InputError", "from_peft", "generate", "load_lm", "load_prefix", "save_prefix", "to_peft"]
