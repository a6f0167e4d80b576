"""``python -m rtevo.generate``: ``get`` a known model, ``check`` that a model folder is fit for a session."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rtevo.command import FAILED, MISTAKE, Parser, command, finite, say
from rtevo.errors import ModelError
from rtevo.generate import BACKENDS, SCHEDULERS, TINY_UNCLIP, GeneratorSettings
from rtevo.generate.check import check
from rtevo.generate.download import KNOWN, Known, download, plan


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "get":
        if options.name is None:
            for name, known in KNOWN.items():
                print(f"{name:12} {known.title}")
            return 0
        return command(lambda: _get(KNOWN[options.name], options))
    return command(lambda: _check(options))


def _check(options: argparse.Namespace) -> int:
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
        return FAILED if model.is_dir() else MISTAKE  # the model was checked, and is not fit
    if options.save:
        from PIL import Image

        Image.fromarray(report.trial.pixels).save(options.save)
    print("good")
    return 0


def _get(known: Known, options: argparse.Namespace) -> int:
    folder = options.into or Path(options.name)
    for line in plan(known, folder):
        print(line)
    if options.dry_run:
        return 0
    if any(source.non_commercial for source in known.sources) and not (options.accept_licence or _agreed()):
        say(f"{options.name}: expected agreement to a licence that does not allow commercial use: type yes, or add --accept-licence")
        return MISTAKE
    try:
        download(known, folder, print, options.endpoint)
    except ModelError as error:
        say(error)
        return FAILED
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("Do you agree to this licence? Type yes: ").strip().lower() == "yes"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m rtevo.generate", description="Work with image models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    get = commands.add_parser("get", help="download a known model; without NAME, list the known models")
    get.add_argument("name", nargs="?", choices=KNOWN, metavar="NAME", help=", ".join(KNOWN))
    get.add_argument("--into", type=Path, metavar="DIR", help="folder to make (default: NAME); an interrupted download continues")
    get.add_argument("--dry-run", action="store_true", help="print the download's steps and licences, and do nothing")
    get.add_argument("--accept-licence", action="store_true", help="agree to a licence that does not allow commercial use")
    get.add_argument("--endpoint", metavar="URL", help="address of the hub or a mirror (default: as huggingface_hub is set)")
    command = commands.add_parser("check", help="verify a model folder: files, hashes, weights, one image")
    command.add_argument("model", nargs="?", type=Path, metavar="MODEL_DIR", help="diffusers folder (default: the built-in model)")
    command.add_argument("--steps", type=int, default=10)
    command.add_argument("--guidance", type=finite, default=3.0)
    command.add_argument("--scheduler", choices=SCHEDULERS, default="model")
    command.add_argument(
        "--backend", choices=BACKENDS, default="eager", help="backend that paints the image (default: eager, the reference)"
    )
    command.add_argument("--px", type=int, default=0, help="longer side of the image (default: the model's own)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument("--threads", type=int, default=1, help="CPU threads")
    command.add_argument("--save", type=Path, metavar="PNG", help="save the image")
    return parser


if __name__ == "__main__":
    sys.exit(main())
