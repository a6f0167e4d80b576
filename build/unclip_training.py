"""Training of the small unCLIP's parts: pictures, CLIP, the participant's eye, the autoencoder, the diffusion network.

Stages of :mod:`tiny_unclip`, which cites the papers.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diffusers.models.embeddings import get_timestep_embedding
from emoji_pictures import MILD, NONE, STRONG, augment, render, words_of
from torch import nn
from torch.nn import functional
from unclip_parts import (
    EMBEDDING,
    LATENT_SIDE,
    SEED,
    TOKENS,
    VIEWS,
    VOCABULARY,
    Judge,
    Run,
    Trainer,
    autoencoder,
    contact_sheet,
    diffuser,
    embedding_schedule,
    for_vision,
    noise_schedule,
    read_weights,
    text_tower,
    vision_tower,
    write_weights,
)


def stage_render(run: Run) -> None:
    """Render the pictures; write the tokenizer of their names."""
    if run.font is None or run.emojibase is None:
        raise SystemExit("render: expected --font (Debian: fonts-noto-color-emoji) and --emojibase (npm: emojibase-data)")
    pictures = render(run.font, run.emojibase)
    pictures.save(run.work / "pictures.npz")
    write_tokenizer(run.work / "tokenizer", [" ".join(words_of(name)) for name in pictures.names] + pictures.keywords)
    run.say(f"render: {len(pictures.names)} pictures, {int(pictures.plain.sum())} without skin tones")


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """Learn byte pairs from names and keywords and write CLIP's tokenizer files."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2 - len(letters), initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(sorted(texts), trainer)
    learnt = json.loads(learner.to_str())["model"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    words += [word for word in learnt["vocab"] if word not in set(words)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learnt["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": words[0], "eos_token": words[1], "unk_token": words[1], "pad_token": words[1]}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True}
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def tokens(run: Run, names: list[str]) -> torch.Tensor:
    """Return the token numbers (n, t) of names."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(run.work / "tokenizer", local_files_only=True)
    texts = [" ".join(words_of(name)) for name in names]
    found = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    numbers: torch.Tensor = found.input_ids.to(run.device)
    return numbers


def contrast(a: torch.Tensor, b: torch.Tensor, scale: Any) -> torch.Tensor:
    """Symmetric cross-entropy of matching rows (InfoNCE)."""
    logits = functional.normalize(a.float(), dim=1) @ functional.normalize(b.float(), dim=1).T * scale
    target = torch.arange(len(a), device=a.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


class Words(nn.Module):
    """Predicts the words of a picture's keywords from its embedding.

    Parameters
    ----------
    keywords : list of str
    device : torch.device
    """

    def __init__(self, keywords: list[str], device: torch.device) -> None:
        super().__init__()
        words = sorted({word for text in keywords for word in text.split()})
        number = {word: i for i, word in enumerate(words)}
        self.target = torch.zeros(len(keywords), len(words), device=device)
        for i, text in enumerate(keywords):
            for word in text.split():
                self.target[i, number[word]] = 1 / len(text.split())
        self.layer = nn.Linear(EMBEDDING, len(words), device=device)

    def forward(self, embeddings: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of the words of pictures `chosen` (n,), from embeddings (n, e)."""
        said: torch.Tensor = self.target[chosen] * self.layer(embeddings).log_softmax(1)
        return -said.sum(1).mean()


def stage_clip(run: Run) -> None:
    """Train vision and text towers.

    The loss covers names and keywords, equality of two augmentations of a picture, the words of the keywords, and the distribution of the
    variance: later numbers of the embedding cost more, so that few principal components hold most of it.
    """
    draw = run.draw("clip")
    pictures, rgba, share = run.pictures()
    ids = torch.stack([tokens(run, pictures.names), tokens(run, pictures.keywords)])
    vision, text = vision_tower().to(run.device), text_tower(VOCABULARY).to(run.device)
    words = Words(pictures.keywords, run.device)
    price = torch.linspace(0, 3, EMBEDDING, device=run.device)
    see = run.compiled(lambda pixels: vision(pixel_values=pixels).image_embeds)
    trainer = Trainer(run, "clip", [vision, text, words])
    n = min(run.batch("clip"), len(rgba))
    for _ in trainer:
        chosen = torch.multinomial(share, n, generator=draw)
        views = torch.cat([augment(rgba[chosen], STRONG, draw) for _ in range(2)])
        caption = torch.randint(0, 2, (n,), generator=draw, device=run.device)
        with run.half():
            seen = see(for_vision(views))
            said = text(input_ids=ids[caption, chosen]).text_embeds
        seen = seen.float()
        first, second = seen.chunk(2)
        names = (contrast(first, said, 10.0) + contrast(second, said, 10.0)) / 2
        same = contrast(first, second, 8.0)
        named = words(seen, chosen.repeat(2))
        power = seen.square().mean(0)
        spent = (power * price).sum() / power.sum()
        length = (seen.square().mean(1) - 1).square().mean()
        trainer.step(names + same + 0.3 * named + spent + 0.1 * length, names=names, same=same, words=named, spent=spent, length=length)
    trainer.finish()
    write_weights(run.work, "clip-vision", vision.state_dict())
    write_weights(run.work, "clip-text", text.state_dict())
    check_clip(run, vision, draw)


NOT_WORDS = {"apanese", "laus", "slands", "the", "you"}  # what is left of words with a capital, and no kind of thing


def embed(vision: Any, pictures: torch.Tensor, batch: int = 2048) -> torch.Tensor:
    """Image embeddings (n, e), float32."""
    with torch.inference_mode():
        return torch.cat([vision(pixel_values=for_vision(part)).image_embeds.float() for part in torch.split(pictures, batch)])


def retrieval(found: torch.Tensor, gallery: torch.Tensor, own: torch.Tensor) -> tuple[float, float]:
    """Return the share of rows whose own gallery entry is the nearest, and among the ten nearest, by cosine."""
    near = (functional.normalize(found, dim=1) @ functional.normalize(gallery, dim=1).T).topk(10, 1).indices == own[:, None]
    return float(near[:, 0].float().mean()), float(near.any(1).float().mean())


def check_clip(run: Run, vision: Any, draw: torch.Generator) -> None:
    """Log the retrieval of augmented pictures, and the distribution of the variance."""
    pictures, rgba, share = run.pictures()
    plain = torch.cat([augment(part, NONE, draw) for part in torch.split(rgba, 512)])
    gallery = embed(vision, plain)
    for name, how in (("mild", MILD), ("strong", STRONG)):
        changed = torch.cat([augment(part, how, draw) for part in torch.split(rgba, 512)])
        first, ten = retrieval(embed(vision, changed), gallery, torch.arange(len(rgba), device=run.device))
        run.say(f"clip: {name} augmentations find their picture among {len(rgba)}: top-1 {first:.3f}, top-10 {ten:.3f}")
    _, _, scale = principal(gallery, share)
    told = (scale.square().cumsum(0) / scale.square().sum()).tolist()
    run.say("clip: variance in the first 8, 16, 24, 32, 48 components: " + ", ".join(f"{told[k - 1]:.2f}" for k in (8, 16, 24, 32, 48)))
    near = functional.normalize(gallery, dim=1) @ functional.normalize(gallery, dim=1).T
    for wanted in ("spider", "red apple", "cat", "guitar", "sailboat"):
        if wanted in pictures.names:
            row = near[pictures.names.index(wanted)].topk(6).indices.tolist()
            run.say(f"clip: {wanted}: nearest {', '.join(pictures.names[i] for i in row[1:])}")


def principal(embeddings: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weighted principal components: mean (e,), components (e, e) in rows, standard deviations (e,)."""
    weight = (share / share.sum()).double()[:, None]
    mean = (embeddings.double() * weight).sum(0)
    centred = embeddings.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ (centred * weight))
    order = values.argsort(descending=True)
    components = vectors[:, order].T
    components = components * components.sum(1, keepdim=True).sign()
    return mean.float(), components.float(), values[order].clamp(min=1e-12).sqrt().float()


def concept_space(embeddings: torch.Tensor, share: torch.Tensor, keywords: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return principal components of the mean embeddings of keywords: along the first ones, the content changes, not the style.

    Plain components of embeddings that were trained to differ are nearly alike in variance, and each mixes unrelated pictures; the
    means of all pictures that share a keyword (8 or more) vary where pictures differ in kind.

    Returns
    -------
    mean (e,), components (e, e) in rows, standard deviations of all embeddings along them (e,)
    """
    words = sorted({word for text in keywords for word in text.split()})
    has = torch.tensor([[word in said for word in words] for said in (set(text.split()) for text in keywords)], dtype=torch.float64)
    weight = (share / share.sum()).double().cpu()[:, None]
    mean = (embeddings.double().cpu() * weight).sum(0)
    centred = embeddings.double().cpu() - mean
    has = has[:, has.sum(0) >= 8] * weight
    means = (has / has.sum(0)).T @ centred
    _, _, components = torch.linalg.svd(means * has.sum(0).sqrt()[:, None], full_matrices=True)
    components = components * components.sum(1, keepdim=True).sign()
    deviation = (((centred @ components.T) ** 2) * weight).sum(0).clamp(min=1e-12).sqrt()
    return mean.float(), components.float(), deviation.float()


def keyword_means(embeddings: torch.Tensor, share: torch.Tensor, keywords: list[str]) -> tuple[list[str], torch.Tensor]:
    """Keywords of three letters or more that 8 pictures or more have, one of those with the same pictures; their mean embeddings (n, e)."""
    said = {word for text in keywords for word in text.split() if len(word) > 2 and word not in NOT_WORDS}
    words = sorted(said, key=lambda word: (-len(word), word))
    has = torch.tensor([[word in own for word in words] for own in (set(text.split()) for text in keywords)], dtype=torch.float64)
    first = {tuple(column.nonzero()[:, 0].tolist()): k for k, column in reversed(list(enumerate(has.T)))}
    chosen = sorted((k for pictures, k in first.items() if len(pictures) >= 8), key=words.__getitem__)
    weight = has[:, chosen] * share.double().cpu()[:, None]
    return [words[k] for k in chosen], ((weight / weight.sum(0)).T @ embeddings.double().cpu()).float()


def stage_judge(run: Run) -> None:
    """Train the participant's eye: equality of two augmentations of a picture, and the words of its name."""
    draw = run.draw("judge")
    pictures, rgba, share = run.pictures()
    judge, words = Judge().to(run.device), Words(pictures.keywords, run.device)
    trainer = Trainer(run, "judge", [judge, words])
    see = run.compiled(judge)
    for _ in trainer:
        chosen = torch.multinomial(share, run.batch("judge"), generator=draw)
        views = torch.cat([augment(rgba[chosen], STRONG, draw) for _ in range(2)])
        with run.half():
            seen = see(views)
        first, second = seen.float().chunk(2)
        same = contrast(first, second, 6.0)
        named = words(8 * seen.float(), chosen.repeat(2))
        trainer.step(same + 0.5 * named, same=same, words=named)
    trainer.finish()
    write_weights(run.work, "judge", judge.state_dict())
    with torch.inference_mode():
        views = torch.stack(
            [torch.cat([judge(augment(part, how, draw)) for part in torch.split(rgba, 512)]) for how in [NONE] + [MILD] * 7]
        )
        prototypes = functional.normalize(views.mean(0), dim=1)
    first, ten = retrieval(views[1], views[0], torch.arange(len(rgba), device=run.device))
    run.say(f"judge: mild augmentations find their picture: top-1 {first:.3f}, top-10 {ten:.3f}")
    wanted = "spider" if "spider" in pictures.names else pictures.names[0]
    row = (prototypes @ prototypes[pictures.names.index(wanted)]).topk(8)
    near = zip(row.values.tolist(), row.indices.tolist(), strict=True)
    run.say(f"judge: {wanted}: " + ", ".join(f"{pictures.names[i]} {v:.2f}" for v, i in near))
    state = {
        f"{part}_{i}": w.detach().cpu().numpy().astype(np.float16)
        for i, c in enumerate([*judge.convolutions, judge.out])
        for part, w in (("weight", c.weight), ("bias", c.bias))
    }
    state |= {"names": np.array(pictures.names), "keywords": np.array(pictures.keywords)}
    np.savez_compressed(run.work / "participant-eye.npz", prototypes=prototypes.cpu().numpy().astype(np.float16), **state)


def edges(x: torch.Tensor) -> torch.Tensor:
    """Return differences between neighbours, right and down, (n, 6, h - 1, w - 1)."""
    return torch.cat([x[..., 1:, 1:] - x[..., 1:, :-1], x[..., 1:, 1:] - x[..., :-1, 1:]], 1)


def stage_vae(run: Run) -> None:
    """Train the autoencoder on absolute differences of pixels and of edges; whiten its latents."""
    draw = run.draw("vae")
    _, rgba, share = run.pictures()
    vae = autoencoder().to(run.device).to(memory_format=torch.channels_last)

    def both(pictures: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moments = vae.quant_conv(vae.encoder(pictures)).float()
        mean, spread = moments.chunk(2, 1)
        spread = spread.clamp(-20, 10)
        kl = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
        return vae.decoder(vae.post_quant_conv(mean + (0.5 * spread).exp() * noise)).float(), kl

    through = run.compiled(both)
    trainer = Trainer(run, "vae", [vae], decay=0.01)
    for _ in trainer:
        chosen = torch.multinomial(share, run.batch("vae"), replacement=True, generator=draw)
        pictures = 2 * augment(rgba[chosen], STRONG if trainer.done % 4 == 0 else MILD, draw) - 1
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        noise = torch.randn((len(chosen), 4, LATENT_SIDE, LATENT_SIDE), generator=draw, device=run.device)
        with run.half():
            found, kl = through(pictures, noise)
        pixel = (found - pictures).abs().mean()
        edge = (edges(found) - edges(pictures)).abs().mean()
        square = (found - pictures).square().mean()
        trainer.step(pixel + edge + square + 2e-4 * kl, pixel=pixel, edge=edge, kl=kl)
    trainer.finish()
    whiten(run, vae, rgba, share, draw)
    write_weights(run.work, "vae", vae.state_dict())


@torch.inference_mode()
def whiten(run: Run, vae: Any, rgba: torch.Tensor, share: torch.Tensor, draw: torch.Generator) -> None:
    """Whiten the latents to zero mean and unit covariance, inside the two adjacent 1 x 1 convolutions (zero-phase)."""
    chosen = torch.multinomial(share, run.count(2048), replacement=True, generator=draw)
    pictures = augment(rgba[chosen], MILD, draw)
    latents = torch.cat([encode(vae, part) for part in torch.split(pictures, 256)])
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 4).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    forward = (vectors @ torch.diag(values**-0.5) @ vectors.T).float()
    back = (vectors @ torch.diag(values**0.5) @ vectors.T).float()
    inner, outer = vae.quant_conv, vae.post_quant_conv
    outer.bias.add_(outer.weight[:, :, 0, 0] @ mean.float())
    outer.weight.copy_((outer.weight[:, :, 0, 0] @ back)[..., None, None])
    inner.weight[:4] = torch.einsum("ij,jklm->iklm", forward, inner.weight[:4].clone())
    inner.bias[:4] = forward @ (inner.bias[:4] - mean.float())
    inner.bias[4:] -= torch.log(values.float().mean())  # log-variances follow the mean change of scale
    shown = torch.cat([decode(vae, encode(vae, part)) for part in torch.split(pictures[:512], 256)])
    error = (shown - pictures[:512]).square().mean()
    spread = [round(float(v) ** 0.5, 3) for v in values]
    run.say(f"vae: latents had deviations {spread}; reconstruction {-10 * math.log10(float(error)):.2f} dB")
    contact_sheet(run.work / "vae.png", [pictures[:32], shown[:32]])


def encode(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Return latents (n, 4, 16, 16) of pictures (0 to 1)."""
    found: torch.Tensor = vae.encode(2 * pictures - 1).latent_dist.mode().float()
    return found


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return pictures (0 to 1) of latents."""
    found: torch.Tensor = vae.decode(latents, return_dict=False)[0].float()
    return (found / 2 + 0.5).clamp(0, 1)


def load(run: Run, name: str, network: Any) -> Any:
    """Return a trained network on the device."""
    state = read_weights(run.work, name)
    if not state:
        raise SystemExit(f"{name}: expected its weights in {run.work}; run its stage first")
    network.load_state_dict(state)
    return network.to(run.device).eval().requires_grad_(False)


@torch.inference_mode()
def prepare(run: Run) -> dict[str, torch.Tensor]:
    """Return latents (n, views, 4, 16, 16) and embeddings (n, views, e) of all pictures and augmentations; the empty prompt (t, 64)."""
    draw = run.draw("unet")
    _, rgba, _ = run.pictures()
    vision, vae = load(run, "clip-vision", vision_tower()), load(run, "vae", autoencoder())
    text = load(run, "clip-text", text_tower(VOCABULARY))
    latents, embeddings = [], []
    for view in range(VIEWS if run.share >= 0.02 else 2):
        pictures = [augment(part, MILD if view else NONE, draw) for part in torch.split(rgba, 512)]
        with run.half():
            latents.append(torch.cat([encode(vae, part).half() for part in pictures]))
        embeddings.append(torch.cat([embed(vision, part) for part in pictures]))
    run.say(f"unet: {len(embeddings) * len(rgba)} latents and embeddings")
    prompt = text(input_ids=tokens(run, [""])).last_hidden_state[0]
    return {"latents": torch.stack(latents, 1), "embeddings": torch.stack(embeddings, 1), "prompt": prompt.float()}


class Conditioning:
    """Return the diffusion network's conditions: embeddings, sometimes made less certain, noised, with their noise level; or zeros.

    Parameters
    ----------
    embeddings : tensor, float32 (n, e)
        Embeddings of the plain pictures.
    share : tensor, float32 (n,)
    """

    def __init__(self, embeddings: torch.Tensor, share: torch.Tensor) -> None:
        self.mean, self.components, self.deviation = principal(embeddings, share)
        self.spread = ((embeddings - self.mean).square() * (share / share.sum())[:, None]).sum(0).sqrt()
        self.keep = embedding_schedule().alphas_cumprod.to(embeddings.device)
        levels = torch.arange(1000, device=embeddings.device)
        self.levels = get_timestep_embedding(levels, EMBEDDING, flip_sin_to_cos=True, downscale_freq_shift=0)

    def blur(self, embeddings: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Make embeddings less certain: sometimes cut to the first principal components, scaled, or jittered."""
        n, device = len(embeddings), embeddings.device
        chance = torch.rand((n, 4), generator=draw, device=device)
        latent = (embeddings - self.mean) @ self.components.T
        kept = 8 + chance[:, 1:2] * (EMBEDDING - 8)
        cut = (torch.arange(EMBEDDING, device=device) < kept) | (chance[:, :1] > 0.3)
        latent = latent * cut * torch.where(chance[:, 2:3] < 0.3, 0.7 + 2 * chance[:, 2:3], 1.0)
        jitter = 0.2 * chance[:, 3:].square() * self.deviation * torch.randn((n, EMBEDDING), generator=draw, device=device)
        return self.mean + (latent + jitter) @ self.components

    def labels(self, embeddings: torch.Tensor, level: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Add noise to embeddings (n, e) at levels (n,), and append the level's embedding like the pipeline: (n, 2 e)."""
        noise = torch.randn(embeddings.shape, generator=draw, device=embeddings.device)
        keep = self.keep[level][:, None]
        noised = keep.sqrt() * (embeddings - self.mean) / self.spread + (1 - keep).sqrt() * noise
        return torch.cat([noised * self.spread + self.mean, self.levels[level]], 1)


def stage_unet(run: Run) -> None:
    """Train the diffusion network on latents and embeddings, all on the device."""
    data = prepare(run)
    _, _, share = run.pictures()
    latents, embeddings = data["latents"], data["embeddings"]
    unet = diffuser().to(run.device)
    state = read_weights(run.work, "unet")
    done = int(state.pop("done")) if state else 0
    if state:
        unet.load_state_dict(state)
        run.say(f"unet: continues at step {done}")
    draw = torch.Generator(run.device).manual_seed(SEED["unet"] + done)
    unet = unet.to(memory_format=torch.channels_last)
    keep = noise_schedule().alphas_cumprod.to(run.device)
    told = Conditioning(embeddings[:, 0], share)
    n = run.batch("unet")
    prompt = data["prompt"].expand(n, -1, -1)

    def loss_of(noisy: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = unet(noisy, t, encoder_hidden_states=prompt, class_labels=labels, return_dict=False)[0]
        return (found.float() - v).square().mean()

    loss_fn = run.compiled(loss_of)
    trainer = Trainer(run, "unet", [unet], decay=0.01, average=0.9995, done=done)
    saved = time.monotonic()
    for _ in trainer:
        chosen = torch.multinomial(share, n, replacement=True, generator=draw)
        chance = torch.rand((n, 4), generator=draw, device=run.device)
        view = (
            (chance[:, 0] * 2 * latents.shape[1]).long() % latents.shape[1] * (chance[:, 0] < 0.5)
        )  # half of the views are the plain pictures
        level = torch.where(chance[:, 1] < 0.6, 0.0, 999 * chance[:, 2].square()).long()
        labels = told.labels(told.blur(embeddings[chosen, view], draw), level, draw) * (chance[:, 3:] > 0.1)
        clean = latents[chosen, view].float()
        t = torch.randint(0, 1000, (n,), generator=draw, device=run.device)
        noise = torch.randn(clean.shape, generator=draw, device=run.device)
        a, b = keep[t].sqrt().view(-1, 1, 1, 1), (1 - keep[t]).sqrt().view(-1, 1, 1, 1)
        with run.half():
            loss = loss_fn((a * clean + b * noise).contiguous(memory_format=torch.channels_last), t, labels, a * noise - b * clean)
        trainer.step(loss)
        if time.monotonic() - saved > 120:
            save_unet(run, unet, trainer)
            saved = time.monotonic()
    trainer.finish()
    save_unet(run, unet, trainer)


def save_unet(run: Run, unet: Any, trainer: Trainer) -> None:
    """Write the averaged weights, and their number of steps."""
    state = unet.state_dict() | {name: a for (name, _), a in zip(unet.named_parameters(), trainer.averages, strict=True)}
    write_weights(run.work, "unet", state | {"done": torch.tensor(trainer.done)})
