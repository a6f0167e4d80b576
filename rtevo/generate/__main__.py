"""``python -m rtevo.generate check [MODEL_DIR]``: is a model folder fit for a session?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rtevo.command import FAILED, MISTAKE, Parser, command, finite, say
from rtevo.errors import ModelError
from rtevo.generate import BACKENDS, SCHEDULERS, TINY_UNCLIP, GeneratorSettings
from rtevo.generate.check import check


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)

    def work() -> int:
        settings = GeneratorSettings(
            steps=options.steps,
            guidance_scale=options.guidance,
            scheduler=options.scheduler,
            device=options.device,
            backend=options.backend,
            px=options.px,
            threads=options.threads,
        )
        model = options.model or TINY_UNCLIP
        try:
            report = check(settings, model, print)
        except ModelError as error:
            say(error)
            return FAILED if model.is_dir() else MISTAKE  # it was looked at, and is not good
        if options.save:
            from PIL import Image

            Image.fromarray(report.trial.pixels).save(options.save)
        print("good")
        return 0

    return command(work)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m rtevo.generate", description="Work with image models.")
    command = parser.add_subparsers(required=True).add_parser("check", help="verify a model folder: files, hashes, weights, one image")
    command.add_argument("model", nargs="?", type=Path, metavar="MODEL_DIR", help="diffusers folder (default: the built-in model)")
    command.add_argument("--steps", type=int, default=10)
    command.add_argument("--guidance", type=finite, default=3.0)
    command.add_argument("--scheduler", choices=SCHEDULERS, default="model")
    command.add_argument("--backend", choices=BACKENDS, default="eager", help="what paints the image (default: eager, the reference)")
    command.add_argument("--px", type=int, default=0, help="longer side of the image (default: the model's own)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument("--threads", type=int, default=1, help="CPU threads")
    command.add_argument("--save", type=Path, metavar="PNG", help="keep the image")
    return parser


if __name__ == "__main__":
    sys.exit(main())
