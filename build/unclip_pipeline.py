"""The small unCLIP as one pipeline: writes its folder, and measures its pictures.

Stages of :mod:`tiny_unclip`.
"""

from __future__ import annotations

import json

import numpy as np
import torch
import transformers
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from emoji_pictures import MILD, NONE, SIDE, augment
from unclip_parts import (
    EMBEDDING,
    LATENT_SIDE,
    VOCABULARY,
    Judge,
    Run,
    autoencoder,
    contact_sheet,
    diffuser,
    embedding_schedule,
    noise_schedule,
    read_weights,
    text_tower,
    vision_tower,
)
from unclip_training import Conditioning, concept_space, decode, embed, keyword_means, load, retrieval, tokens


def stage_assemble(run: Run) -> None:
    """Write the folder of the pipeline, and the latent space."""
    folder = run.work / "tiny-unclip"
    draw = run.draw("evaluate")
    pictures, rgba, share = run.pictures()
    vision, vae = load(run, "clip-vision", vision_tower()), load(run, "vae", autoencoder())
    text, unet = load(run, "clip-text", text_tower(VOCABULARY)), diffuser()
    state = read_weights(run.work, "unet")
    state.pop("done", None)
    unet.load_state_dict(state)
    gallery = embed(vision, torch.cat([augment(part, NONE, draw) for part in torch.split(rgba, 512)]))
    told = Conditioning(gallery, share)
    normalizer = StableUnCLIPImageNormalizer(EMBEDDING)
    normalizer.mean.data.copy_(told.mean[None])
    normalizer.std.data.copy_(told.spread[None])
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    parts = {
        "feature_extractor": kind(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        "image_encoder": vision.half(),
        "image_normalizer": normalizer.half(),
        "image_noising_scheduler": embedding_schedule(),
        "scheduler": noise_schedule(),
        "text_encoder": text.half(),
        "unet": unet.half(),
        "vae": vae.half(),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    for file in (run.work / "tokenizer").iterdir():
        (folder / "tokenizer").mkdir(exist_ok=True)
        (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())
    classes = {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
        "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index = {"_class_name": "StableUnCLIPImg2ImgPipeline", "_diffusers_version": "0.35.0", **classes}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    mean, components, scale = concept_space(gallery, share, pictures.keywords)
    np.savez(folder / "latent_space.npz", mean=mean.numpy(), components=components.numpy(), scale=scale.numpy())
    words, means = keyword_means(gallery, share, pictures.keywords)
    np.savez_compressed(run.work / "keyword-means.npz", names=np.array(words), embeddings=means.numpy().astype(np.float16))
    size = sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6
    run.say(f"assemble: {size:.1f} MB of weights in {folder}")


class Painter:
    """Paints batches like the pipeline, and re-encodes them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.vision, self.vae = load(run, "clip-vision", vision_tower()), load(run, "vae", autoencoder())
        state = read_weights(run.work, "unet")
        state.pop("done", None)
        unet = diffuser()
        unet.load_state_dict(state)
        self.unet = unet.to(run.device).eval().requires_grad_(False)
        text = load(run, "clip-text", text_tower(VOCABULARY))
        with torch.inference_mode():
            self.prompt = text(tokens(run, [""])).last_hidden_state
        self.draw = run.draw("evaluate")
        pictures, self.rgba, self.share = run.pictures()
        self.names, self.plain = pictures.names, torch.from_numpy(pictures.plain).to(run.device)
        self.originals = torch.cat([augment(part, NONE, self.draw) for part in torch.split(self.rgba, 512)])
        self.gallery = embed(self.vision, self.originals)
        self.told = Conditioning(self.gallery, self.share)

    @torch.inference_mode()
    def paint(self, embeddings: torch.Tensor, steps: int = 10, guidance: float = 3.0, level: int = 0, same: bool = False) -> torch.Tensor:
        """Return pictures (n, 3, 64, 64) of embeddings (n, e)."""
        schedule = noise_schedule()
        schedule.set_timesteps(steps, device=self.run.device)
        painted = []
        for part in torch.split(embeddings, 512):
            labels = self.told.labels(part, torch.full((len(part),), level, device=part.device), self.draw)
            labels = torch.cat([torch.zeros_like(labels), labels])
            latents = torch.randn((1 if same else len(part), 4, LATENT_SIDE, LATENT_SIDE), generator=self.draw, device=part.device)
            latents = latents.expand(len(part), -1, -1, -1).clone()
            for t in schedule.timesteps:
                prompt = self.prompt.expand(2 * len(part), -1, -1)
                with self.run.half():
                    found = self.unet(torch.cat([latents] * 2), t, prompt, class_labels=labels, return_dict=False)[0]
                off, on = found.float().chunk(2)
                latents = schedule.step(off + guidance * (on - off), t, latents, return_dict=False)[0]
            painted.append(decode(self.vae, latents))
        return torch.cat(painted)


def stage_evaluate(run: Run) -> None:
    """Measure how well pictures are retrieved, and paint contact sheets."""
    painter = Painter(run)
    n, device = len(painter.names), run.device
    some = torch.randperm(n, generator=painter.draw, device=device)[: run.count(2048)]
    plain = painter.plain.nonzero()[:, 0]
    back = torch.full((n,), -1, device=device)
    back[plain] = torch.arange(len(plain), device=device)
    scores = {}
    for steps, guidance, level in ((10, 3.0, 0), (20, 3.0, 0), (6, 3.0, 0), (10, 2.0, 0), (10, 1.5, 0), (10, 1.0, 0), (10, 3.0, 100)):
        found = embed(painter.vision, painter.paint(painter.gallery[some], steps, guidance, level))
        first, ten = retrieval(found, painter.gallery, some)
        own = painter.plain[some]
        first_plain, ten_plain = retrieval(found[own], painter.gallery[plain], back[some[own]])
        key = f"{steps} steps, guidance {guidance:g}, level {level}"
        scores[key] = [round(v, 4) for v in (first, ten, first_plain, ten_plain)]
        run.say(f"evaluate: {key}: all {first:.3f} {ten:.3f}; without skin tones {first_plain:.3f} {ten_plain:.3f}")
    if (run.work / "judge.0.safetensors").exists():
        judge = load(run, "judge", Judge())
        with torch.inference_mode():
            gallery = torch.cat([judge(part) for part in torch.split(painter.originals, 512)])
            found = torch.cat([judge(part) for part in torch.split(painter.paint(painter.gallery[some]), 512)])
        scores["judge"] = [round(v, 4) for v in retrieval(found, gallery, some)]
        run.say(f"evaluate: as the judge sees them: {scores['judge']}")
    (run.work / "scores.json").write_text(json.dumps(scores, indent=2))
    sheets(run, painter, plain)


def sheets(run: Run, painter: Painter, plain: torch.Tensor) -> None:
    """Write contact sheets: held-out augmentations beside their repainted pictures, lines between two, and random latents."""
    draw, device = painter.draw, run.device
    some = plain[torch.randperm(len(plain), generator=draw, device=device)[: run.count(64)]]
    seen = augment(painter.rgba[some], MILD, draw)
    embeddings = embed(painter.vision, seen)
    contact_sheet(run.work / "contact.png", [seen, painter.paint(embeddings)])
    pairs = [("spider", "scorpion"), ("red apple", "basketball"), ("cat face", "lion")]
    pairs += [("sailboat", "airplane"), ("guitar", "violin"), ("tiger", "racing car")]
    lines = []
    for one, other in pairs:
        ends = [painter.gallery[painter.names.index(name)] for name in (one, other) if name in painter.names]
        if len(ends) == 2:
            share = torch.linspace(0, 1, 16, device=device)[:, None]
            lines.append(painter.paint(torch.lerp(ends[0], ends[1], share), same=True))
    if lines:
        contact_sheet(run.work / "lines.png", [torch.cat(lines)])
    told = painter.told
    for size in (16, 32):
        latents = torch.randn((run.count(64), size), generator=draw, device=device)
        cut = told.mean + (latents * told.deviation[:size]) @ told.components[:size]
        kept = (embeddings - told.mean) @ told.components[:size].T @ told.components[:size] + told.mean
        contact_sheet(run.work / f"latents-{size}.png", [painter.paint(cut, same=True), painter.paint(kept, same=True)])
        found = embed(painter.vision, painter.paint(kept))
        run.say(f"evaluate: cut to {size} components: top-1, top-10 {retrieval(found, painter.gallery, some)}")
