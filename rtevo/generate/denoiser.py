"""The networks, with all constants of a session precomputed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rtevo.errors import ModelError

__all__ = ["PLAIN", "Denoiser", "Guided", "KandinskyDenoiser"]

PLAIN: dict[str, Any] = {
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
}
"""Configuration that :class:`Guided` requires of a network, unless a kind of model differs."""

_PLAIN_KANDINSKY = PLAIN | {"addition_embed_type": "image", "class_embed_type": None, "encoder_hid_dim_type": "image_proj"}


class Guided(nn.Module):
    """One guided evaluation of a ``UNet2DConditionModel`` with known timesteps."""

    time_embeddings: torch.Tensor

    def __init__(self, unet: Any, plain: Mapping[str, Any], guidance_scale: float) -> None:
        super().__init__()
        other = [f"{key} = {unet.config.get(key)!r}" for key, usual in plain.items() if unet.config.get(key, usual) != usual]
        if other:
            raise ModelError(f"unet/config.json: expected a network as published, found {', '.join(other)}: choose backend eager")
        self.unet, self.guidance_scale = unet, guidance_scale
        self.times: nn.Module = nn.Identity()  # applied to the time embedding by a rewritten network

    def at(self, timesteps: torch.Tensor) -> None:
        """Compute the time embeddings (m, k) of other timesteps (m,), one at a time like the pipeline."""
        unet, like = self.unet, self.unet.conv_in.weight
        with torch.no_grad():
            rows = [unet.time_embedding(unet.time_proj(t[None].to(like.device)).to(like.dtype)) for t in timesteps]
        self.time_embeddings = torch.cat(rows)

    def _guide(self, latents: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the prediction, float32 (n, c, h, w); both halves of guidance in one batch, the unguided first."""
        guided, channels = self.guidance_scale > 1, latents.shape[1]
        sample = latents.to(embedding.dtype)
        found = self._network(torch.cat([sample, sample]) if guided else sample, embedding, text)[:, :channels].float()
        if not guided:
            return found
        off, on = found.chunk(2)
        return off + self.guidance_scale * (on - off)

    def _network(self, sample: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """``UNet2DConditionModel.forward``, without the branches that these models never take."""
        unet, embedding = self.unet, self.times(embedding)
        sample = unet.conv_in(sample)
        kept: tuple[torch.Tensor, ...] = (sample,)
        for block in unet.down_blocks:
            sample, more = block(hidden_states=sample, temb=embedding, **_text(block, text))
            kept += more
        if unet.mid_block is not None:
            sample = unet.mid_block(sample, embedding, **_text(unet.mid_block, text))
        for block in unet.up_blocks:
            take = len(block.resnets)
            kept, taken = kept[:-take], kept[-take:]
            sample = block(hidden_states=sample, res_hidden_states_tuple=taken, temb=embedding, **_text(block, text))
        if unet.conv_norm_out is not None:
            sample = unet.conv_act(unet.conv_norm_out(sample))
        found: torch.Tensor = unet.conv_out(sample)
        return found


class Denoiser(Guided):
    """Stable unCLIP's network.

    Of its four inputs, the prompt is always empty and the timesteps are known: their embeddings, and the keys and values of the
    prompt in every cross-attention, are computed once. The remaining inputs are the latents and the image embedding.

    The network is changed: its cross-attentions always use the prompt given here.

    Parameters
    ----------
    unet : diffusers.UNet2DConditionModel
        With ``class_embed_type="projection"``.
    prompt : tensor (1, t, c)
        Text embedding of the empty prompt.
    timesteps : tensor (m,)
        Every timestep at which the network will be evaluated; :meth:`at` changes them.
    guidance_scale : float
        1: no guidance, half the work.
    sides : tuple of int
        Height and width of the latents.

    Raises
    ------
    ModelError
        The network has inputs or parts that Stable unCLIP does not have.
    """

    prompt: torch.Tensor

    def __init__(self, unet: Any, prompt: torch.Tensor, timesteps: torch.Tensor, guidance_scale: float, sides: tuple[int, int]) -> None:
        super().__init__(unet, PLAIN, guidance_scale)
        if any(side % 2**unet.num_upsamplers for side in sides):
            raise ModelError(f"unet/config.json sample_size: expected multiples of {2**unet.num_upsamplers}: choose backend eager")
        self.register_buffer("prompt", prompt.clone(), persistent=False)
        self.at(timesteps)
        for name, part in unet.named_modules():
            if name.endswith("attn2"):
                part.set_processor(_KnownPrompt(part, self.prompt))

    def embed(self, labels: torch.Tensor) -> torch.Tensor:
        """Embed class labels (n, 2 e) for :meth:`forward`: (n or, with guidance, 2 n, c), the unguided half first."""
        if self.guidance_scale > 1:
            labels = torch.cat([torch.zeros_like(labels), labels])
        found: torch.Tensor = self.unet.class_embedding(labels)
        return found

    def forward(self, latents: torch.Tensor, time_embedding: torch.Tensor, image_embedding: torch.Tensor) -> torch.Tensor:
        """Evaluate the network.

        Parameters
        ----------
        latents : tensor, float32 (n, c, h, w)
        time_embedding : tensor (1, k)
            A row of `time_embeddings`.
        image_embedding : tensor (n or 2 n, k)
            From :meth:`embed`.

        Returns
        -------
        tensor, float32 (n, c, h, w)
            The guided prediction.
        """
        return self._guide(latents, time_embedding + image_embedding, self.prompt.expand(len(image_embedding), -1, -1))


class KandinskyDenoiser(Guided):
    """The network of Kandinsky 2.2's decoder: the image embedding stands for the prompt, and is added to the time embedding too.

    Parameters
    ----------
    unet : diffusers.UNet2DConditionModel
        With ``encoder_hid_dim_type="image_proj"`` and ``addition_embed_type="image"``.
    nothing : tensor (1, e)
        Embedding of the unguided half: a black picture's.
    timesteps : tensor (m,)
    guidance_scale : float

    Raises
    ------
    ModelError
        The network has inputs or parts that Kandinsky 2.2 does not have.
    """

    nothing: torch.Tensor

    def __init__(self, unet: Any, nothing: torch.Tensor, timesteps: torch.Tensor, guidance_scale: float) -> None:
        super().__init__(unet, _PLAIN_KANDINSKY, guidance_scale)
        self.register_buffer("nothing", nothing.clone(), persistent=False)
        self.at(timesteps)

    def embed(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the addition to the time embedding (n or 2 n, k) and the attended words (n or 2 n, t, c) of embeddings (n, e)."""
        if self.guidance_scale > 1:
            embeddings = torch.cat([self.nothing.expand(len(embeddings), -1), embeddings])
        return self.unet.add_embedding(embeddings), self.unet.encoder_hid_proj(embeddings)

    def forward(self, latents: torch.Tensor, time_embedding: torch.Tensor, image: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Evaluate the network; see :meth:`Denoiser.forward`."""
        return self._guide(latents, time_embedding + image[0], image[1])


class _KnownPrompt:
    """Cross-attention to a prompt with known keys and values."""

    def __init__(self, attention: Any, prompt: torch.Tensor) -> None:
        if attention.norm_cross or attention.norm_q is not None or attention.group_norm is not None or attention.spatial_norm is not None:
            raise ModelError("unet: expected the cross-attention of Stable unCLIP, found norms inside: choose backend eager")
        with torch.no_grad():
            self.key = self._heads(attention.to_k(prompt), attention.heads).clone()
            self.value = self._heads(attention.to_v(prompt), attention.heads).clone()

    @staticmethod
    def _heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
        """(n, t, c) to (n, heads, t, c / heads)."""
        return tensor.reshape(len(tensor), -1, heads, tensor.shape[-1] // heads).transpose(1, 2)

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, *_: Any, **__: Any) -> torch.Tensor:
        """Attend, (n, t, c) to (n, t, c)."""
        count = len(hidden_states)
        query = self._heads(attn.to_q(hidden_states), attn.heads)
        found = nn.functional.scaled_dot_product_attention(
            query, self.key.expand(count, -1, -1, -1), self.value.expand(count, -1, -1, -1), scale=attn.scale
        )
        projected: torch.Tensor = attn.to_out[0](found.transpose(1, 2).flatten(2))
        if attn.residual_connection:
            projected = projected + hidden_states
        return projected / float(attn.rescale_output_factor)


def _text(block: Any, prompt: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
