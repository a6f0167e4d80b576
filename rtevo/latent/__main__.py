"""Command line of latent spaces: ``fit`` makes one from pictures or embeddings, ``import`` from a pickled PCA."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.command import Parser, command
from rtevo.errors import DataError
from rtevo.latent import Examples, LatentSpace, draw, fit
from rtevo.latent.enough import enough
from rtevo.outside import load_array, load_arrays, parse_json, read_apart

__all__ = ["main"]

READ_S = 120.0  # longest time to read a pickle


def parser() -> argparse.ArgumentParser:
    """Make the command line's parser."""
    p = Parser(prog="python -m rtevo.latent", description="Make latent spaces: what evolution searches in.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    f = commands.add_parser(
        "fit",
        help="principal components of a folder of pictures, or of embeddings",
        description="Find the principal components of the embeddings of pictures like those that are to be painted. Beside the space a "
        "figure is drawn: the variance that the components explain, and pictures that the model paints along the first of them. Of a "
        "folder of pictures up to 400 are kept in the space, small and with their names, for a report to say in them what drives a run.",
    )
    f.add_argument("source", type=Path, metavar="SOURCE", help="folder of pictures (all below it), or embeddings (.npy, n x e)")
    f.add_argument("--components", type=int, default=100, metavar="D", help="latent dimensions (default 100)")
    f.add_argument("--plain", action="store_true", help="latent units are embedding units, not standard deviations")
    i = commands.add_parser(
        "import",
        help="read a pickled scikit-learn PCA, as the prototype's unclip_large_pca.pkl",
        description="Read a PCA without running the pickle: in a process that may only name numbers, arrays and linear estimators.",
    )
    i.add_argument("source", type=Path, metavar="FILE.pkl")
    for each in (f, i):
        each.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="the space; must not exist yet")
        each.add_argument("--model", type=Path, metavar="DIR", help="folder of the unCLIP pipeline (default: the built-in model)")
        each.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
        each.add_argument("--no-figure", action="store_true", help="do not paint pictures along the components (FILE.png)")
    return p


def embeddings_of(options: argparse.Namespace) -> NDArray[np.float32]:
    """Read embeddings, or encode the pictures of a folder."""
    source: Path = options.source
    if source.suffix == ".npy":
        try:
            return load_array(source)
        except (OSError, DataError) as problem:
            raise DataError(f"{source}: expected an .npy file of embeddings, found something else: {problem}") from None
    if not source.is_dir():
        raise DataError(f"{source}: expected a folder of pictures or an .npy file of embeddings, found neither")
    from rtevo.generate.encode import encode_folder

    return encode_folder(source, options.model, options.device)


def with_examples(space: LatentSpace, source: Path, embeddings: NDArray[np.float32]) -> LatentSpace:
    """Keep some of a folder's pictures in the space made from them; embeddings have no known pictures."""
    if not source.is_dir():
        return space
    from rtevo.generate.encode import pictures_below

    points = (embeddings.astype(np.float64) - space.mean) @ space.components.T
    return replace(space, examples=Examples.of_files(pictures_below(source), source, points))


def imported(source: Path) -> tuple[LatentSpace, NDArray[np.float64]]:
    """Read a pickled PCA in a process of its own; gives the space and its explained variance as shares."""
    if not source.is_file():
        raise DataError(f"{source}: expected a pickled PCA, found no such file")
    command = [sys.executable, "-I", "-m", "rtevo.decode.unpickle", str(source.resolve())]  # -I: no module of the current folder
    try:
        head, _, rest = read_apart(command, READ_S).partition(b"\n")
        steps, arrays = parse_json(head), load_arrays(rest)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    return _from_pca(source, steps, arrays)


def _from_pca(source: Path, steps: list[dict[str, Any]], arrays: dict[str, NDArray[Any]]) -> tuple[LatentSpace, NDArray[np.float64]]:
    names = [step["name"] for step in steps]
    if names != ["PCA"]:
        raise DataError(f"{source}: expected a fitted PCA, found {' -> '.join(names) or 'nothing'}")
    try:
        mean, components, variance = (arrays[f"0.{name}"] for name in ("mean_", "components_", "explained_variance_"))
    except KeyError as missing:
        raise DataError(f"{source}: expected a fitted PCA, found none of its {missing}") from None
    sd = np.sqrt(np.maximum(variance, 0))
    scale = sd if steps[0].get("whiten") else np.ones(0)
    space = LatentSpace(mean.astype(np.float32), components.astype(np.float32), scale.astype(np.float32), sd.astype(np.float32))
    return space, np.asarray(variance / max(float(variance.sum()), 1e-300), np.float64)


def save(options: argparse.Namespace, space: LatentSpace, explained: NDArray[np.float64]) -> None:
    """Write the space, say what it is, and draw it."""
    space.save(options.out)
    scaled = "standard deviations" if np.array_equal(space.scale, space.sd) else "embedding units"
    print(f"{options.out}: {space.latent_size} components of {space.embedding_size}-d embeddings, in {scaled}")
    together = np.cumsum(explained)
    for k in sorted({1, 2, 5, 10, 20, 50, 100, 200, space.latent_size}):
        if k <= space.latent_size:
            print(f"  first {k:>4}: {100 * together[k - 1]:5.1f}% of the variance")
    if options.no_figure:
        return
    from rtevo.generate import GeneratorSettings, load

    settings = GeneratorSettings(model_path=options.model, device=options.device)
    with load(settings, lambda text: print(f"  {text}", file=sys.stderr)) as generator:
        if generator.embedding_size != space.embedding_size:
            raise DataError(
                f"--model: expected a model of {space.embedding_size}-d embeddings to paint the figure, got {generator.embedding_size}-d; "
                "name the model, or --no-figure"
            )

        def paint(embeddings: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
            return [painted.pixels for painted in generator.paint(embeddings, np.zeros(len(embeddings), np.uint64))]

        figure = draw(space, explained, paint)
    picture = options.out.with_suffix(".png")
    figure.savefig(picture)
    print(picture)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    options = parser().parse_args(arguments)

    def work() -> None:
        if options.out.exists() or options.out.suffix != ".npz":
            raise DataError(f"--out {options.out}: expected a new .npz file")
        if options.command == "import":
            space, explained = imported(options.source)
        else:
            embeddings = embeddings_of(options)
            space, explained = fit(embeddings, options.components, whitened=not options.plain)
            space = with_examples(space, options.source, embeddings)
            if (found := enough(embeddings, options.components, np.random.default_rng(0))) is not None:
                print(found)
        save(options, space, explained)

    return command(work)


if __name__ == "__main__":
    sys.exit(main())
