"""Stable Diffusion 1.5 and XL, with an IP-Adapter as the input for a picture's embedding (Ye et al. 2023, arXiv:2308.06721).

The adapter turns the embedding into four words; the network's cross-attentions attend to them beside the prompt, which is always empty.
The unguided half of guidance uses the words of an embedding of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from rtevo.errors import ModelError
from rtevo.generate.base import GeneratorSettings
from rtevo.generate.denoiser import PLAIN, Guided
from rtevo.generate.folder import ADAPTER_XL, ModelFolder
from rtevo.generate.loading import load_adapter, load_tiny_decoder
from rtevo.generate.parts import drawing

__all__ = ["Adapted", "AdaptedDenoiser"]


class Adapted:
    """Stable Diffusion with an IP-Adapter; see :class:`rtevo.generate.models.Model`."""

    def __init__(
        self, folder: ModelFolder, settings: GeneratorSettings, device: torch.device, dtype: torch.dtype, tell: Callable[[str], None] | None
    ) -> None:
        self.settings, self.folder, self.device, self.dtype = settings, folder, device, dtype
        self.pipe = pipe = load_adapter(folder, device, dtype, tell)
        if settings.tiny_vae is not None:
            pipe.vae = load_tiny_decoder(settings.tiny_vae, folder, dtype).to(device)
        self.condition_size, self.noise_size, self.draws_alike = folder.embedding_size, 0, True
        guided = self._is_guided(settings.guidance_scale)
        with torch.no_grad():
            self.prompts = self._encode_prompt(guided)
        pipe.text_encoder = pipe.tokenizer = None  # only the empty prompt is used
        if folder.kind == ADAPTER_XL:
            pipe.text_encoder_2 = pipe.tokenizer_2 = None

    def _is_guided(self, guidance_scale: float) -> bool:
        """Whether the network runs for two halves: a network with the scale as an input needs only one."""
        return guidance_scale > 1 and self.pipe.unet.config.time_cond_proj_dim is None

    def _encode_prompt(self, guided: bool) -> dict[str, torch.Tensor]:
        """Return the empty prompt in the pipeline's form."""
        names = ["prompt_embeds", "negative_prompt_embeds"]
        if self.folder.kind == ADAPTER_XL:
            names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
            found = self.pipe.encode_prompt("", device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=guided)
        else:
            found = self.pipe.encode_prompt("", self.device, 1, guided)
        return {name: part for name, part in zip(names, found, strict=True) if part is not None}

    def condition(self, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the embeddings: this network has no input for noise."""
        return embeddings

    def denoise(self, condition: torch.Tensor, latents: torch.Tensor, generators: Sequence[torch.Generator], steps: int) -> torch.Tensor:
        """Run the unchanged pipeline once for each picture: it takes one embedding a call."""
        scale = self.settings.guidance_scale
        found = []
        for embedding, noise, generator in zip(condition, latents, generators, strict=True):
            told = embedding.to(self.device, self.dtype)[None, None]
            if self._is_guided(scale):
                told = torch.cat([torch.zeros_like(told), told])
            with drawing(self.pipe.scheduler, partial(torch.randn, generator=generator)):
                found.append(
                    self.pipe(
                        **self.prompts,
                        ip_adapter_image_embeds=[told],
                        latents=noise[None].to(self.device, self.dtype),
                        num_inference_steps=steps,
                        guidance_scale=scale,
                        height=self.folder.image_size[0],
                        width=self.folder.image_size[1],
                        output_type="latent",
                        return_dict=False,
                    )[0]
                )
        return torch.cat(found)

    def denoiser(self, timesteps: torch.Tensor) -> AdaptedDenoiser:
        """See :class:`rtevo.generate.models.Model`."""
        unet, given, added = self.pipe.unet, self.prompts, None
        guided = self._is_guided(self.settings.guidance_scale)
        halves = ("negative_", "") if guided else ("",)
        prompt = torch.cat([given[f"{half}prompt_embeds"] for half in halves])
        if self.folder.kind == ADAPTER_XL:
            pooled = torch.cat([given[f"{half}pooled_prompt_embeds"] for half in halves])
            size = self.folder.image_size
            ids = torch.tensor([*size, 0, 0, *size], dtype=prompt.dtype, device=self.device).expand(len(pooled), -1)
            with torch.no_grad():
                added = unet.get_aug_embed(pooled, prompt, {"text_embeds": pooled, "time_ids": ids})
        return AdaptedDenoiser(unet, prompt, added, timesteps, self.settings.guidance_scale, guided)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See :class:`rtevo.generate.models.Model`."""
        vae = self.pipe.vae
        mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
        latents = latents.to(vae.dtype)
        if mean is not None and std is not None:
            mean, std = (torch.tensor(part, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1) for part in (mean, std))
            latents = latents * std / vae.config.scaling_factor + mean
        else:
            latents = latents / vae.config.scaling_factor
        image: torch.Tensor = vae.decode(latents, return_dict=False)[0]
        return image


class AdaptedDenoiser(Guided):
    """The network of Stable Diffusion with an IP-Adapter, with all constants of a session precomputed.

    Keys and values of the prompt are computed once, those of the picture's four words once a picture, for all attentions in one product.
    The network is changed: its cross-attentions always use the prompt given here.

    Parameters
    ----------
    unet : diffusers.UNet2DConditionModel
        With one IP-Adapter loaded.
    prompt : tensor (1 or 2, t, c)
        Embedding of the empty prompt, the unguided half first.
    added : tensor (1 or 2, k), optional
        Added to the time embedding: SDXL's pooled prompt and sizes.
    timesteps : tensor (m,)
    guidance_scale : float
    guided : bool
        Whether the network is evaluated for two halves; otherwise the scale is an input, or there is no guidance.

    Raises
    ------
    ModelError
        The network has inputs or parts that these models do not have.
    """

    words: torch.Tensor
    added: torch.Tensor

    def __init__(
        self, unet: Any, prompt: torch.Tensor, added: torch.Tensor | None, timesteps: torch.Tensor, guidance_scale: float, guided: bool
    ) -> None:
        kind = "text_time" if added is not None else None
        plain = PLAIN | {"class_embed_type": None, "addition_embed_type": kind}
        del plain["time_cond_proj_dim"]
        super().__init__(unet, plain, guidance_scale if guided else 1.0)
        self._told_scale = guidance_scale
        self.at(timesteps)
        like = self.time_embeddings
        self.register_buffer("added", torch.zeros_like(like[:1]) if added is None else added.clone(), persistent=False)
        self.project = unet.encoder_hid_proj.image_projection_layers[0]
        weights: list[torch.Tensor] = []
        for name, part in unet.named_modules():
            if name.endswith("attn2"):
                own = _own_words(part)
                part.set_processor(_Words(part, prompt, sum(map(len, weights)), len(own[0])))
                weights += own
        self.register_buffer("words", torch.cat(weights), persistent=False)

    def at(self, timesteps: torch.Tensor) -> None:
        """Compute the time embeddings (m, k) of other timesteps (m,), with the guidance scale if the network has an input for it."""
        unet, like = self.unet, self.unet.conv_in.weight
        size, told = unet.config.time_cond_proj_dim, None
        if size is not None:
            from diffusers import StableDiffusionPipeline

            scale = torch.tensor([self._told_scale - 1])
            told = StableDiffusionPipeline.get_guidance_scale_embedding(None, scale, embedding_dim=size).to(like.device, like.dtype)
        with torch.no_grad():
            rows = [unet.time_embedding(unet.time_proj(t[None].to(like.device)).to(like.dtype), told) for t in timesteps]
        self.time_embeddings = torch.cat(rows)

    def embed(self, embeddings: torch.Tensor) -> torch.Tensor:
        """From embeddings (n, e) to keys and values of all attentions (n or 2 n, 4, 2 c), the unguided half first."""
        if self.guidance_scale > 1:
            embeddings = torch.cat([torch.zeros_like(embeddings), embeddings])
        return nn.functional.linear(self.project(embeddings), self.words)

    def forward(self, latents: torch.Tensor, time_embedding: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Evaluate the network; see :meth:`rtevo.generate.denoiser.Denoiser.forward`."""
        added = self.added[:, None].expand(-1, len(words) // len(self.added), -1).flatten(0, 1)
        return self._guide(latents, time_embedding + added, words)


def _own_words(attention: Any) -> list[torch.Tensor]:
    """Return the weights for keys and values of a picture's words in one attention: (c, k) each, the adapter's scale in the latter."""
    adapter = attention.processor
    if attention.norm_cross or attention.norm_q is not None or attention.group_norm is not None or len(adapter.to_k_ip) != 1:
        raise ModelError("unet: expected cross-attention with one IP-Adapter and no norms inside: choose backend eager")
    return [adapter.to_k_ip[0].weight.detach(), adapter.scale[0] * adapter.to_v_ip[0].weight.detach()]


class _Words:
    """Cross-attention to a prompt with known keys and values, and to the words of a picture."""

    def __init__(self, attention: Any, prompt: torch.Tensor, start: int, size: int) -> None:
        self._places = slice(start, start + size), slice(start + size, start + 2 * size)
        with torch.no_grad():
            self.key, self.value = (_heads(part(prompt), attention.heads).clone() for part in (attention.to_k, attention.to_v))

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, *_: Any, **__: Any) -> torch.Tensor:
        """Attend, (n, t, c) to (n, t, c); `encoder_hidden_states` are keys and values of the picture's words (n, 4, all)."""
        query = _heads(attn.to_q(hidden_states), attn.heads)
        key, value = (part[:, None].expand(-1, len(query) // len(part), -1, -1, -1).flatten(0, 1) for part in (self.key, self.value))
        attend = nn.functional.scaled_dot_product_attention
        found = attend(query, key, value)
        word_key, word_value = (_heads(encoder_hidden_states[..., place], attn.heads) for place in self._places)
        found = found + attend(query, word_key, word_value)
        projected: torch.Tensor = attn.to_out[0](found.transpose(1, 2).flatten(2))
        if attn.residual_connection:
            projected = projected + hidden_states
        return projected / float(attn.rescale_output_factor)


def _heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """(n, t, c) to (n, heads, t, c / heads)."""
    return tensor.reshape(len(tensor), -1, heads, tensor.shape[-1] // heads).transpose(1, 2)
