"""METEOR 1.5 by its authors' Java program, which `pip install "minprefix[meteor]"` brings.

It stands here because only the tables need it: it takes Java and half a minute, so trainings leave it out.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.metrics import tokenize_all, words_coco


def meteor(outputs: list[str], references: list[Sequence[str]], tokenize: Callable = words_coco) -> dict:
    """METEOR on the words of the COCO tools, 0 to 100; {"METEOR": None, "METEOR missing": the reason} where
    it cannot run."""
    rows = tokenize_all(tokenize, outputs, references)
    package = importlib.util.find_spec("pycocoevalcap")
    if not package or not shutil.which("java"):
        reason = "java is not on the PATH" if package else 'pip install "minprefix[meteor]" brings it'
        return {"METEOR": None, "METEOR missing": reason}
    width = max(map(len, rows)) - 1
    # METEOR reads `width` lines for each output; a blank one is no reference
    padded = [words for _, *texts in rows for words in texts + [[]] * (width - len(texts))]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("outputs", "references")]
        for path, lines in zip(paths, ([words for words, *_ in rows], padded)):
            path.write_text("".join(" ".join(words) + "\n" for words in lines), encoding="utf-8")
        jar = Path(package.submodule_search_locations[0], "meteor", "meteor-1.5.jar")
        command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar, *paths, "-l", "en", "-norm"]
        result = subprocess.run([*command, "-r", str(width)], capture_output=True, text=True)
    if found := re.search(r"Final score:\s*(\S+)", result.stdout):
        return {"METEOR": 100 * float(found[1])}
    return {"METEOR": None, "METEOR missing": f"java failed: {' '.join(result.stderr.split())[:200]}"}
