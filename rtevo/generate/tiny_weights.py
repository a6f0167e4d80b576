"""Weights of the tiny pipeline: random, seeded, and scaled so that pictures follow their embeddings.

A network with the usual random weights paints the same brownish noise whatever it is asked for. Here the weights are still random
numbers, but their scales are chosen: kernels are smooth, the embedding's part of the network is loud, the noise's part quiet, and two
maps are fitted to some two hundred pictures of the network itself: the last layer of the decoder, so that colours fill their
range, and the projection of the image encoder, so that a picture re-encodes to roughly the embedding it was painted from.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from rtevo.generate.folder import PIPELINE
from rtevo.generate.loading import quieten
from rtevo.generate.tiny import TINY_EMBEDDING_SIZE, TINY_IMAGE_SIZE

__all__ = ["write"]

_SEED = 1
_LATENT_SIDE = TINY_IMAGE_SIZE[0] // 4
_CHANNELS = (24, 32, 48, 48)  # of the unet: 16, 8, 4 and 2 latent pixels a side; at 2, zero padding tells positions apart
_TEXT_SIZE = 32
_WORDS = ("<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"))
_TOKENS = 8  # length of a prompt
_ENCODER_SIDE = 32  # pixels that the image encoder sees

_GUIDANCE = 3.0  # at which colours are fitted
_FIT_STEPS = 2
_FIT_PICTURES = 192
_FIT_BATCH = 16
_CONTRAST = 0.5  # standard deviation of a colour, where black is -1 and white is 1
_RIDGE = 0.1

_ROUGH_DECODER = 0.2  # share of a kernel that is rough rather than smooth
_ROUGH_UNET = 0.6
_ROUGH_COARSE = 1.0  # blocks of 2 and 4 latent pixels a side, where layout is made
_NOISE_IN = 0.1  # gain of the noisy latents
_DOWN = 0.1  # gain of the way down, which carries them
_SKIP = 0.1  # gain of what the way down hands to the way up
_EMBEDDING = 0.4  # gain of the image embedding
_BEND = 0.3  # gain of it inside its projection: small against a bias of 1, the activation is nearly straight there
_TIME = 0.3  # gain of the timestep
_SHIFT = 4.0  # gain of both in every block
_OUT = 4.0  # gain of the prediction, against the noise that is left in the latents


def write(folder: Path) -> None:
    """Fill an empty folder with the tiny pipeline, complete and consistent.

    The same version of the libraries gives the same pipeline (up to rounding on other processors). torch's own random state is left
    as it was.

    Parameters
    ----------
    folder : Path
        An existing folder.
    """
    quieten()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            draw = torch.Generator().manual_seed(_SEED)
            unet, vae = _unet(draw), _vae(draw)
            noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
            scheduler = _scheduler()
            text, encoder, processor = _text_encoder(draw), _image_encoder(draw), _processor()
            wanted = torch.randn((_FIT_PICTURES, TINY_EMBEDDING_SIZE), generator=draw)
            decoded = torch.cat([_paint(part, unet, vae, scheduler, text, draw) for part in torch.split(wanted, _FIT_BATCH)])
            _fit_colours(vae, decoded)
            _fit_encoder(encoder, processor, wanted, vae.decoder.conv_out(decoded))
    finally:
        torch.set_num_threads(threads)
    parts = {"unet": unet, "vae": vae, "scheduler": scheduler, "image_noising_scheduler": noising, "image_encoder": encoder}
    parts |= {"text_encoder": text, "image_normalizer": StableUnCLIPImageNormalizer(TINY_EMBEDDING_SIZE), "feature_extractor": processor}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    _write_tokenizer(folder / "tokenizer")
    _write_index(folder)


# --- networks ---------------------------------------------------------------------------------------------------------------------


def _unet(draw: torch.Generator) -> Any:
    cross = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    unet = UNet2DConditionModel(
        sample_size=_LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=_CHANNELS,
        norm_num_groups=4,
        down_block_types=cross,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(cross)),
        cross_attention_dim=_TEXT_SIZE,
        attention_head_dim=(2, 2, 4, 4),  # heads, as the name has it for old models
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * TINY_EMBEDDING_SIZE,
        use_linear_projection=True,
    )
    coarse = ("mid_block", "down_blocks.2", "down_blocks.3", "up_blocks.0", "up_blocks.1")
    for name, weight in unet.named_parameters():
        _draw(name, weight, draw, _ROUGH_COARSE if name.startswith(coarse) else _ROUGH_UNET)
    unet.class_embedding.linear_1.weight.mul_(_BEND)
    unet.class_embedding.linear_1.bias.fill_(1.0)
    unet.class_embedding.linear_2.weight.mul_(_EMBEDDING / _BEND)
    unet.time_embedding.linear_2.weight.mul_(_TIME)
    unet.conv_in.weight.mul_(_NOISE_IN)
    unet.conv_out.weight.mul_(_OUT)
    for name, module in unet.named_modules():
        if getattr(module, "time_emb_proj", None) is not None:
            module.time_emb_proj.weight.mul_(_SHIFT)
        if name.startswith("down_blocks") and name.endswith("conv1"):
            module.weight.mul_(_DOWN)
    _quieten_skips(unet)
    return unet.eval()


def _quieten_skips(unet: Any) -> None:
    """Scale what each block of the way up takes from the way down: the last channels of its input."""
    handed = [_CHANNELS[0]]
    for i, width in enumerate(_CHANNELS):
        handed += [width] if i == len(_CHANNELS) - 1 else [width, width]
    for block in unet.up_blocks:
        for resnet in block.resnets:
            taken = handed.pop()
            resnet.conv1.weight[:, -taken:].mul_(_SKIP)
            resnet.conv_shortcut.weight[:, -taken:].mul_(_SKIP)


def _vae(draw: torch.Generator) -> Any:
    vae = AutoencoderKL(
        block_out_channels=(16, 24, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=TINY_IMAGE_SIZE[0],
    )
    for name, weight in vae.named_parameters():
        _draw(name, weight, draw, _ROUGH_DECODER)
    return vae.eval()


def _image_encoder(draw: torch.Generator) -> Any:
    config = transformers.CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=8,
        image_size=_ENCODER_SIDE,
        patch_size=_ENCODER_SIDE // 2,
        projection_dim=TINY_EMBEDDING_SIZE,
    )
    encoder = transformers.CLIPVisionModelWithProjection(config)
    for name, weight in encoder.named_parameters():
        _draw(name, weight, draw, 1.0)
        if "patch_embedding" in name or "q_proj" in name or "k_proj" in name:
            weight.mul_(2.0)
    return encoder.eval()


def _text_encoder(draw: torch.Generator) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(_WORDS),
        hidden_size=_TEXT_SIZE,
        intermediate_size=2 * _TEXT_SIZE,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=_TOKENS,
        projection_dim=_TEXT_SIZE,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    encoder = transformers.CLIPTextModel(config)
    for name, weight in encoder.named_parameters():
        _draw(name, weight, draw, 1.0)
    return encoder.eval()


def _draw(name: str, weight: nn.Parameter, draw: torch.Generator, rough: float) -> None:
    """Draw a weight of unit gain, a share `rough` of a 3 x 3 kernel not smooth; biases become 0, gains of norms 1."""
    if name.endswith("bias"):
        weight.zero_()
        return
    if weight.ndim < 2:
        weight.copy_(torch.randn(weight.shape, generator=draw) if name.endswith("class_embedding") else torch.ones(weight.shape))
        return
    fresh = torch.randn(weight.shape, generator=draw) / math.sqrt(weight[0].numel())
    if weight.ndim == 4 and weight.shape[-1] == 3:
        hat = torch.tensor([1.0, 2.0, 1.0])
        smooth = torch.outer(hat, hat) / torch.outer(hat, hat).norm()
        mixing = torch.randn((*weight.shape[:2], 1, 1), generator=draw) / math.sqrt(weight.shape[1])
        fresh = math.sqrt(1.0 - rough**2) * mixing * smooth + rough * fresh
    weight.copy_(fresh)


# --- fitting ----------------------------------------------------------------------------------------------------------------------


def _paint(wanted: torch.Tensor, unet: Any, vae: Any, scheduler: Any, text: Any, draw: torch.Generator) -> torch.Tensor:
    """Paint embeddings (n, e) up to the input of the decoder's last layer, (n, c, H, W)."""
    count, size = wanted.shape
    level = torch.tensor([1.0] * (size // 2) + [0.0] * (size - size // 2)).expand(count, -1)  # of noise level 0
    labels = torch.cat([wanted, level], 1)
    labels = torch.cat([torch.zeros_like(labels), labels])
    prompt = text(torch.tensor([[0] + [1] * (_TOKENS - 1)]))[0].expand(2 * count, -1, -1)
    latents = torch.randn((count, 4, _LATENT_SIDE, _LATENT_SIDE), generator=draw)
    scheduler.set_timesteps(_FIT_STEPS)
    for t in scheduler.timesteps:
        off, on = unet(torch.cat([latents] * 2), t, encoder_hidden_states=prompt, class_labels=labels, return_dict=False)[0].chunk(2)
        latents = scheduler.step(off + _GUIDANCE * (on - off), t, latents, return_dict=False)[0]
    last, vae.decoder.conv_out = vae.decoder.conv_out, nn.Identity()
    decoded: torch.Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    vae.decoder.conv_out = last
    return decoded


def _fit_colours(vae: Any, decoded: torch.Tensor) -> None:
    """Centre red, green and blue over all pictures and make them vary alike and independently (zero-phase whitening)."""
    layer = vae.decoder.conv_out
    seen = nn.functional.avg_pool2d(layer(decoded), 8).permute(0, 2, 3, 1).reshape(-1, 3).double()
    values, vectors = torch.linalg.eigh(torch.cov(seen.T))
    whiten = (vectors @ torch.diag(values**-0.5) @ vectors.T * _CONTRAST).float()
    layer.bias.copy_(whiten @ (layer.bias - seen.mean(0).float()))
    layer.weight.copy_(torch.einsum("ij,jklm->iklm", whiten, layer.weight))


def _fit_encoder(encoder: Any, processor: Any, wanted: torch.Tensor, decoded: torch.Tensor) -> None:
    """Fit the encoder's projection so that pictures re-encode to their embeddings (ridge regression), at unit variance."""
    pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    pictures: list[NDArray[np.uint8]] = list(pixels)
    seen = processor(images=[Image.fromarray(picture) for picture in pictures], return_tensors="pt").pixel_values
    norm = encoder.vision_model.post_layernorm
    pooled = encoder.vision_model(pixel_values=seen).pooler_output.double()
    norm.bias.sub_(pooled.mean(0).float())
    pooled = pooled - pooled.mean(0)
    gram = pooled.T @ pooled
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    fitted = torch.linalg.solve(gram, pooled.T @ wanted.double())
    fitted /= (pooled @ fitted).std(0)
    encoder.visual_projection.weight.copy_(fitted.T.float())


# --- the other parts --------------------------------------------------------------------------------------------------------------


def _scheduler() -> Any:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def _processor() -> Any:
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    side = {"height": _ENCODER_SIDE, "width": _ENCODER_SIDE}
    return kind(size={"shortest_edge": _ENCODER_SIDE}, crop_size=side)


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single letters; the pipeline needs one, though only the empty prompt is ever used."""
    folder.mkdir()
    special = {"bos_token": _WORDS[0], "eos_token": _WORDS[1], "unk_token": _WORDS[1], "pad_token": _WORDS[1]}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": _TOKENS, "do_lower_case": True}
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(_WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def _write_index(folder: Path) -> None:
    parts = {
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
    index = {"_class_name": PIPELINE, "_diffusers_version": "0.35.0", **parts}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
