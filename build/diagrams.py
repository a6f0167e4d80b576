"""Diagrams of the pages (Mermaid) -> ``docs/diagrams/*.svg``: the site shows these, so that it needs no script.

``python build/diagrams.py`` draws those that are new or were changed, and removes those of no page. It needs the network (npm: mermaid)
and Chromium.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["BLOCK", "drawn", "picture_of", "wanted"]

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "docs" / "diagrams"
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MERMAID = "mermaid@11.12.0"
SETTINGS = {"startOnLoad": False, "theme": "neutral", "fontFamily": "sans-serif", "htmlLabels": False, "flowchart": {"htmlLabels": False}}


def picture_of(diagram: str) -> str:
    """Return where a diagram's picture is, from ``docs/``."""
    return f"diagrams/{hashlib.sha256(diagram.encode()).hexdigest()[:12]}.svg"


def wanted() -> dict[str, str]:
    """Return the diagrams of all pages, by the names of their pictures."""
    pages = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")]
    found = (match.group(1) for page in sorted(pages) for match in BLOCK.finditer(page.read_text(encoding="utf-8")))
    return {picture_of(diagram): diagram for diagram in found}


def drawn(diagrams: dict[str, str], work: Path) -> dict[str, str]:
    """Draw diagrams.

    Parameters
    ----------
    diagrams : dict of str to str
    work : Path
        An empty folder.

    Returns
    -------
    dict of str to str
        SVG, by the same names.
    """
    subprocess.run(["npm", "install", "--silent", "--prefix", str(work), MERMAID], check=True)
    script = work / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"
    shown = "const out = document.createElement('pre'); out.id = 'out'; out.textContent = JSON.stringify(found);"
    call = (
        f"mermaid.initialize({json.dumps(SETTINGS)});"
        f"(async () => {{ const found = {{}}; let n = 0;"
        f"for (const [name, text] of Object.entries({json.dumps(diagrams)})) found[name] = (await mermaid.render('d' + n++, text)).svg;"
        f"{shown} document.body.replaceChildren(out); }})();"
    )
    page = work / "page.html"
    page.write_text(f"<meta charset=utf-8><body><script src='{script.as_uri()}'></script><script>{call}</script>", encoding="utf-8")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(page.as_uri())
        text = tab.locator("#out").text_content(timeout=60_000)
        browser.close()
    return dict(json.loads(text or "{}"))


def main() -> int:
    """Draw what is missing; gives the exit status."""
    diagrams = wanted()
    missing = {name: diagram for name, diagram in diagrams.items() if not (FOLDER.parent / name).exists()}
    if missing:
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            for name, svg in drawn(missing, Path(work)).items():
                (FOLDER.parent / name).write_text(svg + "\n", encoding="utf-8")
                print(f"docs/{name}")
    for path in FOLDER.glob("*.svg"):
        if f"diagrams/{path.name}" not in diagrams:
            path.unlink()
            print(f"removed: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
