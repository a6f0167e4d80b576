"""What MkDocs does for this project's site beyond Markdown (``mkdocs.yml``: hooks).

- Pages of the reference are filled from the sources (``reference.py``).
- Pages outside ``docs/`` that its pages link to, as ``ARCHITECTURE.md``, are pages of the site; links to other files of the project lead to
  copies.
- Diagrams (Mermaid) are pictures that were made before (``diagrams.py``), so that the site needs no script and no network.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diagrams import BLOCK, picture_of
from mkdocs.structure.files import File, Files
from reference import filled

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {  # of the project, outside docs/: the page of the site
    "README.md": "project/readme.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "examples/README.md": "project/examples.md",
    "examples/analysis.ipynb": "project/analysis.md",
    "build/README.md": "project/build.md",
    "rtevo/assets/tiny-unclip/README.md": "project/tiny-unclip.md",
}
ROLE = re.compile(r":(?:class|func|mod|data|meth|attr|exc):(?=<code)")  # of docstrings, which are also read in a terminal
LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")  # of Markdown, within the project
API = {  # pages of the reference that come from docstrings: module, and what it is for
    "rtevo": "load what a run has left",
    "rtevo.record": "a recorded session",
    "rtevo.record.kinds": "the log's records",
    "rtevo.records": "what crosses processes: shapes, types, units",
    "rtevo.study": "a study",
    "rtevo.decode": "decoders and scores",
    "rtevo.evolve": "strategies of evolution",
    "rtevo.evolve.base": "what a strategy has to do",
    "rtevo.latent": "latent spaces",
    "rtevo.generate": "image models",
    "rtevo.gate": "filters",
    "rtevo.ingest": "files of the scanner",
    "rtevo.realign": "realignment",
    "rtevo.place": "placement",
    "rtevo.shm": "rings in shared memory",
    "rtevo.wire": "messages to the stimulus PC",
    "rtevo.export": "BIDS",
    "rtevo.errors": "errors",
}


def on_config(config: Any) -> Any:
    """Put pages that ``nav`` does not have at the end of its explanations, so that none is lost."""
    listed = set(re.findall(r"[\w-]+\.md", str(config.nav)))
    missing = [page.name for page in sorted((REPOSITORY / "docs").glob("*.md")) if page.name not in listed]
    next(section["Explanation"] for section in config.nav if "Explanation" in section).extend(missing)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside ``docs/``, the files that pages link to, and the pages of the docstrings."""
    texts = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in PAGES}
    texts = {name: notebook(text) if name.endswith(".ipynb") else text for name, text in texts.items()}
    for name, text in texts.items():
        files.append(File.generated(config, PAGES[name], content=text))
    here = {file.src_uri: file.content_string for file in files if file.src_uri.endswith(".md") and not file.src_uri.startswith("project/")}
    sources = {**texts, **{f"docs/{uri}": text for uri, text in here.items()}}
    for name, text in sources.items():
        for target in {_target(name, found.group(2)) for found in LINK.finditer(text)}:
            path, uri = REPOSITORY / target, f"project/{target}"
            if not target.startswith(("docs/", "..")) and target not in PAGES and path.is_file() and uri not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    for module, words in API.items():
        files.append(File.generated(config, f"api/{module}.md", content=f"# {module}: {words}\n\n::: {module}\n"))
    return files


def notebook(text: str) -> str:
    """Return a notebook as a page: its words, its code, and what it printed and drew."""
    found = []
    for each in json.loads(text)["cells"]:
        source = "".join(each["source"])
        found.append(source if each["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in each.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                found.append(f"![What the cell above draws](data:image/png;base64,{''.join(data['image/png'].split())})")
            elif said := "".join(output.get("text", data.get("text/plain", []))):
                found.append(f"```text\n{said}\n```")
    return "\n\n".join(found) + "\n"


def _target(page: str, link: str) -> str:
    """Return the path in the project that a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _led(page: str, own: str) -> Callable[[re.Match[str]], str]:
    """Return what a link of a page becomes: `page` is its path in the project, `own` in the site."""

    def led(found: re.Match[str]) -> str:
        target = _target(page, found.group(2))
        there = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else f"project/{target}")
        exists = target.startswith("docs/") or target in PAGES or (REPOSITORY / target).is_file()
        return found.group(1) + (posixpath.relpath(there, posixpath.dirname(own) or ".") if exists else found.group(2)) + found.group(3)

    return led


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill a page in, lead its links to where their targets are in the site, and show its diagrams as pictures."""
    own = page.file.src_uri
    outside = {site: name for name, site in PAGES.items()}
    markdown = LINK.sub(_led(outside.get(own, f"docs/{own}"), own), filled(markdown))
    up = "../" * own.count("/")

    def picture(found: re.Match[str]) -> str:
        where = up + picture_of(found.group(1))
        return f"[![A diagram: what it shows is in the text]({where})]({where})"

    return BLOCK.sub(picture, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave out what docstrings say of the kind of what they name."""
    return ROLE.sub("", html)
