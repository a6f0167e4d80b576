"""Models of the published architectures with random weights: they cost what trained ones cost, and need no download.

A whole diffusers folder is written (``python -m bench.random_model`` is its command). Weights are random; the last layers are scaled so
that predictions have the size of noise and pictures fill their range, and the embedding's part is loud enough to be seen in a picture.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rtevo.generate.loading import quieten

__all__ = ["KINDS", "write_model"]

KINDS = ("large", "small", "kandinsky", "sd15", "sdxl", "sdxl-vit-h", "sdxl-turbo")
"""Stable unCLIP 2.1 with ViT-H (1024-d) and ViT-L (768-d); Kandinsky 2.2's decoder with its prior's ViT-bigG (1280-d); with IP-Adapters:
Stable Diffusion 1.5 (ViT-H), XL (ViT-bigG or ViT-H) and XL-Turbo (ViT-H)."""

_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
_EMBEDDING_GAIN = 20.0
_ADAPTER_GAIN = 3.0
_CONTRAST = 0.5  # standard deviation of a colour, where black is -1 and white is 1


def write_model(
    folder: Path, kind: str, narrow: int = 1, px: int = 0, device: str = "cpu", half: bool = True, shallow: bool = False
) -> None:
    """Write a model folder.

    Parameters
    ----------
    folder : Path
        New.
    kind : str
        One of `KINDS`.
    narrow : int
        Every width, and the depth of the encoders, is divided by it: the same classes, small enough for a test.
    px : int
        Side of an image; 0: as published.
    device : str
        Where the weights are drawn.
    half : bool
        Write half precision.
    shallow : bool
        Stable unCLIP and Stable Diffusion 1.5 with two levels of one layer: what must be exported in a test.
    """
    quieten()
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    with torch.device(device), torch.no_grad():
        parts = (_kandinsky if kind == "kandinsky" else _diffusion if kind.startswith("sd") else _unclip)(kind, narrow, px, shallow)
        _scale(parts, device)
        adapter = _adapter(parts) if kind.startswith("sd") else {}
    for name, part in parts.items():
        part.to(torch.float16 if half else torch.float32).save_pretrained(folder / name) if isinstance(part, torch.nn.Module) else (
            part.save_pretrained(folder / name)
        )
    classes = {name: [type(part).__module__.split(".")[0], type(part).__name__] for name, part in parts.items()}
    if kind != "kandinsky":
        for name in ("tokenizer", "tokenizer_2") if "text_encoder_2" in parts else ("tokenizer",):
            _write_tokenizer(folder / name)
            classes[name] = ["transformers", "CLIPTokenizer"]
    if "image_normalizer" in classes:
        classes["image_normalizer"][0] = "stable_diffusion"
    if adapter:
        from safetensors.torch import save_file

        (folder / "ip_adapter").mkdir()
        dtype = torch.float16 if half else torch.float32
        weights = {name: weight.to(dtype).contiguous().cpu() for name, weight in adapter.items()}
        save_file(weights, folder / "ip_adapter" / f"ip-adapter_{kind}.safetensors")
        del classes["image_encoder"]  # the adapter's, not the pipeline's
    for name in ("image_encoder", "image_processor") if kind == "kandinsky" else ():
        del classes[name]  # of the prior, not of the decoder's pipeline
    pipelines = {"kandinsky": "KandinskyV22Pipeline", "sd15": "StableDiffusionPipeline"}
    pipeline = "StableDiffusionXLPipeline" if kind.startswith("sdxl") else pipelines.get(kind, "StableUnCLIPImg2ImgPipeline")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "_diffusers_version": "0.35.0", **classes}, indent=2))


def _vision(hidden: int, layers: int, heads: int, inner: int, projection: int, narrow: int) -> Any:
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=hidden // narrow,
        num_hidden_layers=max(1, layers // narrow),
        num_attention_heads=heads if narrow == 1 else 1,
        intermediate_size=inner // narrow,
        projection_dim=projection // narrow,
        image_size=224 if narrow == 1 else 28,
        patch_size=14,
        hidden_act="gelu",
    )
    return transformers.CLIPVisionModelWithProjection(config)


def _extractor(side: int) -> Any:
    import transformers

    return transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _widths(widths: tuple[int, ...], narrow: int) -> tuple[int, ...]:
    return tuple(max(32, width // narrow // 32 * 32) for width in widths)  # group norms have 32 groups


def _unclip(kind: str, narrow: int, px: int, shallow: bool) -> dict[str, Any]:
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    size = (1024 if kind == "large" else 768) // narrow
    text = 1024 // narrow
    vision = _vision(1280, 32, 16, 5120, 1024, narrow) if kind == "large" else _vision(1024, 24, 16, 4096, 768, narrow)
    plain, cross = "DownBlock2D", "CrossAttnDownBlock2D"
    down = (cross, plain) if shallow else (cross, cross, cross, plain)
    unet = diffusers.UNet2DConditionModel(
        sample_size=(px or 768) // 8,
        block_out_channels=_widths((320, 640, 1280, 1280)[: len(down)], narrow),
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        layers_per_block=1 if shallow else 2,
        attention_head_dim=(5, 10, 20, 20)[: len(down)] if narrow == 1 else 2,
        cross_attention_dim=text,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * size,
        use_linear_projection=True,
    )
    return {
        "unet": unet,
        "vae": diffusers.AutoencoderKL(
            block_out_channels=_widths((128, 256, 512, 512), narrow),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1 if shallow else 2,
            latent_channels=4,
            sample_size=px or 768,
        ),
        "image_encoder": vision,
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=size),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=49408 // narrow,
                hidden_size=text,
                intermediate_size=4 * text,
                num_hidden_layers=max(1, 23 // narrow),
                num_attention_heads=16 if narrow == 1 else 1,
                projection_dim=512 // narrow,
                hidden_act="gelu",
            )
        ),
        "feature_extractor": _extractor(vision.config.image_size),
    } | _schedulers()


def _schedulers() -> dict[str, Any]:
    import diffusers

    with torch.device("cpu"):
        return {
            "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            "scheduler": diffusers.PNDMScheduler(
                **_NOISE, beta_schedule="scaled_linear", prediction_type="v_prediction", skip_prk_steps=True, steps_offset=1
            ),
        }


def _kandinsky(kind: str, narrow: int, px: int, shallow: bool) -> dict[str, Any]:
    import diffusers

    vision = _vision(1664, 48, 16, 8192, 1280, narrow)
    simple = "SimpleCrossAttnDownBlock2D"
    down = ("ResnetDownsampleBlock2D", simple, simple, simple)
    return {
        "unet": diffusers.UNet2DConditionModel(
            sample_size=(px or 512) // 8,
            out_channels=8,
            block_out_channels=_widths((384, 768, 1152, 1536), narrow),
            attention_head_dim=64 if narrow == 1 else 16,
            cross_attention_dim=768 // narrow,
            layers_per_block=3 if narrow == 1 else 1,
            down_block_types=down,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=tuple(name.replace("Down", "Up").replace("down", "up") for name in reversed(down)),
            encoder_hid_dim=vision.config.projection_dim,
            encoder_hid_dim_type="image_proj",
            addition_embed_type="image",
            resnet_time_scale_shift="scale_shift",
        ),
        "movq": diffusers.VQModel(
            block_out_channels=_widths((128, 256, 256, 512), narrow),
            down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
            layers_per_block=1 if shallow else 2,
            latent_channels=4,
            num_vq_embeddings=16384 // narrow,
            vq_embed_dim=4,
            norm_type="spatial",
        ),
        "image_encoder": vision,
        "image_processor": _extractor(vision.config.image_size),
        "scheduler": diffusers.DDPMScheduler(**_NOISE, beta_schedule="linear", clip_sample=False),
    }


def _diffusion(kind: str, narrow: int, px: int, shallow: bool) -> dict[str, Any]:
    """Stable Diffusion 1.5, XL and XL-Turbo."""
    import diffusers

    xl, large = kind != "sd15", kind == "sdxl"
    vision = _vision(1664, 48, 16, 8192, 1280, narrow) if large else _vision(1280, 32, 16, 5120, 1024, narrow)
    plain, cross = "DownBlock2D", "CrossAttnDownBlock2D"
    down = (plain, cross, cross) if xl else (cross, plain) if shallow else (cross, cross, cross, plain)
    layers = ((1, 2, 10) if narrow == 1 else (1, 1, 2)) if xl else 1
    side = (px or (1024 if kind in ("sdxl", "sdxl-vit-h") else 512)) // 8
    words = _text(768, 12, 12, 768, narrow)
    unet: dict[str, Any] = {"cross_attention_dim": 768 // narrow, "attention_head_dim": 8 if narrow == 1 else 2}
    parts: dict[str, Any] = {"text_encoder": words, "image_encoder": vision}
    if xl:
        import transformers

        parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(_text(1280, 32, 20, 1280, narrow).config)
        unet = {
            "cross_attention_dim": 768 // narrow + 1280 // narrow,
            "attention_head_dim": (5, 10, 20) if narrow == 1 else 2,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256 // narrow,
            "projection_class_embeddings_input_dim": 1280 // narrow + 6 * (256 // narrow),
        }
    parts["unet"] = diffusers.UNet2DConditionModel(
        sample_size=side,
        block_out_channels=_widths((320, 640, 1280, 1280)[: len(down)], narrow),
        down_block_types=down,
        layers_per_block=1 if shallow else 2,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        transformer_layers_per_block=layers,
        **unet,
    )
    parts["vae"] = diffusers.AutoencoderKL(
        block_out_channels=_widths((128, 256, 512, 512), narrow),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if shallow else 2,
        latent_channels=4,
        sample_size=8 * side,
        scaling_factor=0.13025 if xl else 0.18215,
        force_upcast=not xl,  # as published for 1.5, where pipelines take no notice; for XL as the one that was made for half precision
    )
    with torch.device("cpu"):
        noise = diffusers.PNDMScheduler(**_NOISE, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
        euler = diffusers.EulerDiscreteScheduler(**_NOISE, beta_schedule="scaled_linear", timestep_spacing="trailing")
    return parts | {"scheduler": euler if xl else noise}


def _text(hidden: int, layers: int, heads: int, projection: int, narrow: int) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=49408 // narrow,
        hidden_size=hidden // narrow,
        intermediate_size=4 * hidden // narrow,
        num_hidden_layers=max(2, layers // narrow),  # SDXL takes the last but one
        num_attention_heads=heads if narrow == 1 else 1,
        projection_dim=projection // narrow,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return transformers.CLIPTextModel(config)


def _adapter(parts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A global IP-Adapter's weights, under their published names: every second attention processor is a cross-attention's."""
    unet, size = parts["unet"], parts["image_encoder"].config.projection_dim
    cross = unet.config.cross_attention_dim
    found = {
        "image_proj.proj.weight": torch.randn((4 * cross, size)) * size**-0.5,
        "image_proj.proj.bias": torch.zeros(4 * cross),
        "image_proj.norm.weight": torch.ones(cross),
        "image_proj.norm.bias": torch.zeros(cross),
    }
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            found[f"ip_adapter.{number}.to_k_ip.weight"] = torch.randn((width, cross)) * cross**-0.5
            found[f"ip_adapter.{number}.to_v_ip.weight"] = torch.randn((width, cross)) * _ADAPTER_GAIN * cross**-0.5
    return found


def _scale(parts: dict[str, Any], device: str) -> None:
    """Scale last layers and the embedding's part; predictions and pictures of random networks are faint otherwise."""
    unet, decoder = parts["unet"].eval(), parts.get("vae", parts.get("movq")).eval()
    side = unet.config.sample_size
    noise = torch.randn((1, 4, min(side, 32), min(side, 32)), device=device)
    size = parts["image_encoder"].config.projection_dim
    if "movq" in parts:
        given = {"encoder_hidden_states": None, "added_cond_kwargs": {"image_embeds": torch.randn((1, size), device=device)}}
        unet.encoder_hid_proj.image_embeds.weight.mul_(_EMBEDDING_GAIN)
    elif "image_normalizer" not in parts:
        given = {"encoder_hidden_states": torch.randn((1, 77, unet.config.cross_attention_dim), device=device)}
        if "text_encoder_2" in parts:
            pooled = torch.randn((1, parts["text_encoder_2"].config.projection_dim), device=device)
            given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.full((1, 6), 512.0, device=device)}
    else:
        given = {
            "encoder_hidden_states": torch.randn((1, 77, unet.config.cross_attention_dim), device=device),
            "class_labels": torch.randn((1, 2 * size), device=device),
        }
        unet.class_embedding.linear_2.weight.mul_(_EMBEDDING_GAIN)
    predicted = unet(noise, torch.tensor(500, device=device), return_dict=False, **given)[0]
    unet.conv_out.weight.mul_(1 / predicted.std())
    latents = noise / getattr(decoder.config, "scaling_factor", 1.0)
    options = {"force_not_quantize": True} if "movq" in parts else {}
    picture = decoder.decode(latents, return_dict=False, **options)[0]
    decoder.decoder.conv_out.weight.mul_(_CONTRAST / picture.std())
    decoder.decoder.conv_out.bias.zero_()


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single letters: only the empty prompt is ever used."""
    folder.mkdir()
    words = ("<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"))
    special = {"bos_token": words[0], "eos_token": words[1], "unk_token": words[1], "pad_token": words[1]}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
