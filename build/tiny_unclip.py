"""Train the small unCLIP that rtevo ships: a CLIP, an autoencoder and a diffusion network on Noto's colour emoji.

    python build/tiny_unclip.py render clip judge vae unet assemble evaluate --work WORK \\
        --font NotoColorEmoji.ttf --emojibase package

Each stage writes files of at most 16 MB to WORK, is skipped if they exist already, and starts from one seed. `vae` needs only `render`, so
it can run beside `clip`; `unet` can be stopped with ``--until S``, and continues from its last checkpoint when called again. On one H100
all stages take some 15 minutes; ``--share 0.001`` is a short trial on a CPU.

1. ``clip``: vision and text towers (Radford et al. 2021, arXiv:2103.00020) on pictures and names, and between two augmentations of a
   picture (SimCLR, Chen et al. 2020, arXiv:2002.05709).
2. ``judge``: a separate small convolutional network, the simulated participant's eye; nothing else uses it.
3. ``vae``: an AutoencoderKL (Rombach et al. 2022, arXiv:2112.10752) from 64 x 64 pixels to 16 x 16 x 4 latents.
4. ``unet``: predicts v (Salimans & Ho 2022, arXiv:2202.00512) from noisy latents, given a noised image embedding as
   StableUnCLIPImg2ImgPipeline hands it over; one embedding in ten is left out for guidance (Ho & Salimans 2022, arXiv:2207.12598).
5. ``assemble``: the pipeline's folder, its latent space, and the keywords' mean embeddings (``keyword-means.npz``), by which a report says
   a direction in words.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from unclip_parts import Run
from unclip_pipeline import stage_assemble, stage_evaluate
from unclip_training import stage_clip, stage_judge, stage_render, stage_unet, stage_vae

STAGES = {
    "render": (stage_render, "pictures.npz"),
    "clip": (stage_clip, "clip-vision.0.safetensors"),
    "judge": (stage_judge, "participant-eye.npz"),
    "vae": (stage_vae, "vae.0.safetensors"),
    "unet": (stage_unet, None),
    "assemble": (stage_assemble, None),
    "evaluate": (stage_evaluate, None),
}


def main() -> None:
    """Run the requested stages."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stages", nargs="+", choices=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    p.add_argument("--work", type=Path, required=True, help="working folder")
    p.add_argument("--font", type=Path, help="NotoColorEmoji.ttf (stage render)")
    p.add_argument("--emojibase", type=Path, help="unpacked npm package emojibase-data 15 (stage render)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--share", type=float, default=1.0, help="share of the optimiser steps (default: 1)")
    p.add_argument("--until", type=float, default=math.inf, metavar="S", help="stop training after this many seconds")
    p.add_argument("--no-compile", dest="compile", action="store_false", help="do not compile the networks")
    options = p.parse_args()
    run = Run(options)
    for name in options.stages:
        stage, product = STAGES[name]
        if product and (run.work / product).exists():
            run.say(f"{name}: done already")
            continue
        began = time.monotonic()
        stage(run)
        run.say(f"{name}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
