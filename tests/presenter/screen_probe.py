"""Run by the interpreter that has PsychoPy: show every scene, read the back buffer, save what was in it.

Usage: ``PYTHON screen_probe.py FOLDER SETTINGS`` with the settings as JSON; writes ``FOLDER/NAME.npy``, uint8 (height, width, 3).
"""

import json
import sys
from pathlib import Path

import numpy as np

from presenter.display import Picture, Scene
from presenter.screen import Screen
from rtevo.wire import PresentationSettings


def picture(seed: int, height: int, width: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(0, seed, height, width, memoryview(pixels.tobytes()))


def main(folder: Path, settings: PresentationSettings) -> None:
    screen = Screen(settings)

    def show(name: str, scene: Scene) -> None:
        screen.show(scene, screen.now_ns())
        read(name)

    def read(name: str) -> None:
        screen._stimuli.draw(screen._scene)
        np.save(folder / f"{name}.npy", np.asarray(screen._window._getFrame(buffer="back")))
        screen._window.clearBuffer()

    first, second = picture(1, 301, 403), picture(2, 200, 100)
    show("text", Scene("text", settings.wait_text))
    show("fixation", Scene("fixation"))
    screen.prepare(first)
    read("fixation-while-preparing")
    show("first", Scene("image", picture=first))
    screen.prepare(second)
    read("first-while-preparing")
    show("second", Scene("image", picture=second))
    if settings.rating_window_s:
        show("rating", Scene("rating", settings.rating_text))
        show("answer", Scene("answer", settings.rating_text, chosen=0))
    screen.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), PresentationSettings(**json.loads(sys.argv[2])))
