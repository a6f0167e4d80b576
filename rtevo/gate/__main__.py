"""Command line of the gate: ``calibrate`` shows what a session's filters would refuse."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.command import Parser, command, say
from rtevo.errors import ConfigError

__all__ = ["main"]

NEARLY = 1.5  # times a threshold: a picture within this is shown as nearly refused
THUMBNAIL = 144  # pixels


def parser() -> Parser:
    """Return the command line's parser."""
    p = Parser(prog="python -m rtevo.gate", description="The filters that keep pictures from the participant: docs/safety.md.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    c = commands.add_parser(
        "calibrate",
        help="paint random latents of a session's space, and show which its filters would refuse",
        description="Paint pictures of random latents with the session's model and latent space, have its filters judge them, and write a "
        "page with all of them, the nearest to the avoided pictures first: choose [safety] avoid_distance and thresholds from it.",
    )
    c.add_argument("session", type=Path, metavar="SESSION.toml")
    c.add_argument("--images", type=int, default=60, metavar="N", help="pictures to paint (default 60)")
    c.add_argument("--seed", type=int, default=1, help="seed of the random latents (default 1)")
    c.add_argument("--out", type=Path, default=Path("gate.html"), metavar="FILE.html", help="the page (default gate.html)")
    return p


def calibrate(session: Path, images: int, seed: int, out: Path) -> None:
    """Paint, judge, and write the page.

    Raises
    ------
    RtevoError
        The session file, the model or a filter cannot be used.
    """
    from rich.progress import track

    from rtevo import generate
    from rtevo.config import load
    from rtevo.session.checks import check_space
    from rtevo.session.safety import avoid_of, gate_of
    from rtevo.stages.generate import settings_of

    if images < 1 or out.suffix != ".html":
        raise ConfigError(f"--images and --out: expected at least one picture and an .html file, got {images} and {out}")
    config = load(session)
    model = Path(config.generator.unclip_model_path) if config.generator.unclip_model_path else None
    space = check_space(config, generate.probe(model, config.generator.px)[0])
    avoid = avoid_of(config, space)
    device = config.generator.devices[0]
    latents = np.random.default_rng(seed).standard_normal((images, space.latent_size)).astype(np.float32)
    embeddings = space.to_embedding(latents)
    asked = None if avoid is None else avoid.nearest(embeddings)
    rows: list[dict[str, Any]] = []
    with gate_of(config, avoid, device) as gate, generate.load(settings_of(config.generator, device), say) as generator:
        stream = generator.paint(embeddings, np.full(images, config.session.seed, np.uint64))
        for painted in track(stream, "painting", images, transient=True):
            verdict = gate.judge(painted.pixels, painted.embedding)
            found = [f for f in verdict.findings if f.name != "marked"]
            near = None if asked is None else float(asked[painted.index])
            rows.append({"data": _data(painted.pixels), "findings": found, "asked": near, "refused": verdict.refused})
    out.write_text(page(rows, session), encoding="utf-8")
    for line in summary(rows):
        print(line)
    print(out)


def _data(pixels: Any) -> str:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a few lines that say how many pictures each filter refuses."""
    lines = [f"{sum(row['refused'] for row in rows)} of {len(rows)} pictures would be refused"]
    for k, first in enumerate(rows[0]["findings"]):
        found = [row["findings"][k] for row in rows]
        values = np.array([f.value for f in found])
        low, middle, high = np.nanpercentile(values, [5, 50, 95]) if np.isfinite(values).any() else (np.nan,) * 3
        lines.append(
            f"  {first.name} {first.version}: refuses {sum(f.refused for f in found)}; 5, 50, 95% of the values: {low:.3f}, {middle:.3f}, "
            f"{high:.3f}; limit {first.threshold:g}; {np.mean([f.ms for f in found]):.1f} ms a picture"
        )
    if rows[0]["asked"] is not None:
        near = np.array([row["asked"] for row in rows])
        lines.append(f"  requested: distances of {near.min():.3f} to {near.max():.3f} (evolution keeps to the limit in its requests)")
    return lines


def _severity(row: dict[str, Any]) -> float:
    """Return how near a picture is to refusal: 1 = at the limit of a filter, > 1: beyond it."""

    def of(finding: Any) -> float:
        if not np.isfinite(finding.value):
            return np.inf
        if finding.name == "avoid":
            return float(finding.threshold / max(finding.value, 1e-9))
        return float(1 + (finding.value - finding.threshold) / max(abs(finding.threshold), 1e-9))

    return max(map(of, row["findings"]), default=0.0)


def page(rows: Sequence[dict[str, Any]], session: Path) -> str:
    """Write the page: all pictures, the refused ones first, then the nearly refused."""
    import jinja2

    ordered = sorted(rows, key=_severity, reverse=True)
    kinds = [("Refused", [r for r in ordered if r["refused"]])]
    rest = [r for r in ordered if not r["refused"]]
    kinds += [
        ("Nearly refused", [r for r in rest if _severity(r) > 1 / NEARLY]),
        ("Shown", [r for r in rest if _severity(r) <= 1 / NEARLY]),
    ]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "calibrate.html").read_text(encoding="utf-8"))
    return template.render(kinds=kinds, session=session.name, summary=summary(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    options = parser().parse_args(arguments)
    return command(lambda: calibrate(options.session, options.images, options.seed, options.out))


if __name__ == "__main__":
    sys.exit(main())
