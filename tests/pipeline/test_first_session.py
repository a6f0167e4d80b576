"""The tutorial, word for word: what docs/first-session.md has one type works, one block after the other."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import rtevo

from .conftest import Warm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("localizer")]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "first-session.md"
SHORT = (
    ("generations = 7", "generations = 2"),
    ('prefers = "animal"', 'prefers = "animal"\nvoxel_mm = [8.0, 8.0, 8.8]'),
)  # so that it takes less
ELSEWHERE = "rtevo run --check session.toml"  # a check is made, after the same command, in test_localizer.py


def typed() -> list[str]:
    """What is typed from the session file on, before the control (which is the same command again)."""
    text = PAGE.read_text(encoding="utf-8")
    part = text[text.index("## 2. ") : text.index("## 7. ")]
    return [line for block in re.findall(r"^```sh\n(.*?)^```$", part, re.DOTALL | re.MULTILINE) for line in commands(block)]


def commands(block: str) -> list[str]:
    """The commands of a block; a quoted text may have several lines."""
    found, open_line = list[str](), ""
    for line in block.splitlines():
        open_line += line + "\n"
        if open_line.count('"') % 2 == 0:
            found.append(open_line.strip())
            open_line = ""
    return found


def done(line: str, here: Path) -> str:
    """Do what is typed, in a shell where it is none of ours; returns what it prints."""
    if not line.startswith("rtevo "):
        line = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", line)
        return subprocess.run(["sh", "-c", line], cwd=here, check=True, capture_output=True, text=True).stdout
    words = [str(found) for word in shlex.split(line)[1:] for found in (sorted(here.glob(word)) if "*" in word else [word])]
    process = Warm(words, here, module="rtevo.__main__")
    _, printed = process.communicate()
    assert process.wait(0) == 0, f"{line}\n{printed}"
    return printed


def test_the_first_session_can_be_followed_word_for_word(tmp_path: Path) -> None:
    here = tmp_path / "first"
    said = {}
    (tmp_path / "rtevo").mkdir()
    for line in typed():
        said[line] = done(line, here if here.exists() else tmp_path / "rtevo") if line != ELSEWHERE else ""
        if line.startswith("rtevo init"):
            text = (here / "session.toml").read_text()
            for before, after in SHORT:
                assert before in text
                text = text.replace(before, after)
            (here / "session.toml").write_text(text)
    assert ELSEWHERE in said
    [run] = (here / "sessions").iterdir()
    assert rtevo.load(run).status == "completed"
    assert (run / "report.html").exists()
    last = typed()[-1]
    assert "brain, completed" in said[last]
    assert "true_response" in said[last]
