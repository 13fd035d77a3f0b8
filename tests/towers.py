"""Transformers in float64 numpy from the original checkpoints' names: what the scorers must compute.

Also random checkpoints with these names, and antialiased resizing as its definition says.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erf, softmax


def norm(x, state, name, eps):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def attend(q, k, v, heads, mask=0.0):
    """`q` is `(Q, D)`, `k` and `v` are `(K, D)`; one head after the other."""
    size = q.shape[1] // heads
    parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
    return np.concatenate([softmax(q[:, p] @ k[:, p].T / math.sqrt(size) + mask, -1) @ v[:, p] for p in parts], 1)


def patches(image, kernel, bias=0.0):
    """`(3, H, W)` to `(patches, D)` by a convolution whose stride is its size."""
    size = kernel.shape[-1]
    rows, columns = image.shape[1] // size, image.shape[2] // size
    cells = [
        image[:, r * size : (r + 1) * size, c * size : (c + 1) * size] for r in range(rows) for c in range(columns)
    ]
    return np.stack([kernel.reshape(len(kernel), -1) @ cell.ravel() for cell in cells]) + bias


def open_clip_blocks(x, state, prefix, layers, heads, mask=0.0):
    for layer in range(layers):
        name = f"{prefix}transformer.resblocks.{layer}"
        y = norm(x, state, f"{name}.ln_1", 1e-5)
        qkv = y @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]
        x = x + linear(attend(*np.split(qkv, 3, 1), heads, mask), state, f"{name}.attn.out_proj")
        y = norm(x, state, f"{name}.ln_2", 1e-5)
        x = x + linear(gelu(linear(y, state, f"{name}.mlp.c_fc")), state, f"{name}.mlp.c_proj")
    return x


def open_clip_score(state, image, ids, layers=2, heads=2):
    """Cosine of a picture `(3, H, W)` and token ids, the last of which is the end."""
    x = np.concatenate([state["visual.class_embedding"][None], patches(image, state["visual.conv1.weight"])])
    x = norm(x + state["visual.positional_embedding"], state, "visual.ln_pre", 1e-5)
    x = open_clip_blocks(x, state, "visual.", layers, heads)
    seen = norm(x[0], state, "visual.ln_post", 1e-5) @ state["visual.proj"]
    y = state["token_embedding.weight"][ids] + state["positional_embedding"][: len(ids)]
    causal = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    y = open_clip_blocks(y, state, "", layers, heads, causal)
    read = norm(y[-1], state, "ln_final", 1e-5) @ state["text_projection"]
    return float(seen @ read / np.sqrt((seen @ seen) * (read @ read)))


def imagereward_score(state, image, ids, layers=2, heads=2):
    """ImageReward's raw output before its constants, for a picture `(3, H, W)` and unpadded token ids."""
    v = "blip.visual_encoder."
    x = patches(image, state[f"{v}patch_embed.proj.weight"], state[f"{v}patch_embed.proj.bias"])
    x = np.concatenate([state[f"{v}cls_token"][0], x]) + state[f"{v}pos_embed"][0]
    for layer in range(layers):
        name = f"{v}blocks.{layer}"
        qkv = linear(norm(x, state, f"{name}.norm1", 1e-6), state, f"{name}.attn.qkv")
        x = x + linear(attend(*np.split(qkv, 3, 1), heads), state, f"{name}.attn.proj")
        y = gelu(linear(norm(x, state, f"{name}.norm2", 1e-6), state, f"{name}.mlp.fc1"))
        x = x + linear(y, state, f"{name}.mlp.fc2")
    x = norm(x, state, f"{v}norm", 1e-6)
    t = "blip.text_encoder."
    y = state[f"{t}embeddings.word_embeddings.weight"][ids]
    y = norm(
        y + state[f"{t}embeddings.position_embeddings.weight"][: len(ids)], state, f"{t}embeddings.LayerNorm", 1e-12
    )
    for layer in range(layers):
        name = f"{t}encoder.layer.{layer}"
        for kind, other in (("attention", None), ("crossattention", x)):
            source = y if other is None else other
            q, k, u = (
                linear(s, state, f"{name}.{kind}.self.{n}")
                for s, n in ((y, "query"), (source, "key"), (source, "value"))
            )
            out = linear(attend(q, k, u, heads), state, f"{name}.{kind}.output.dense")
            y = norm(out + y, state, f"{name}.{kind}.output.LayerNorm", 1e-12)
        out = linear(gelu(linear(y, state, f"{name}.intermediate.dense")), state, f"{name}.output.dense")
        y = norm(out + y, state, f"{name}.output.LayerNorm", 1e-12)
    return head_score(state, y[0], "mlp.")


def head_score(state, x, prefix=""):
    for layer in (0, 2, 4, 6, 7):
        x = linear(x, state, f"{prefix}layers.{layer}")
    return float(x[0])


class Random:
    """Random tensors of a state dict, float32."""

    def __init__(self, seed):
        self._rng, self.state = np.random.default_rng(seed), {}

    def add(self, name, *shape, scale=0.3, shift=0.0):
        self.state[name] = (shift + scale * self._rng.standard_normal(shape)).astype(np.float32)

    def linear(self, name, out, inner):
        self.add(f"{name}.weight", out, inner, scale=inner**-0.5)
        self.add(f"{name}.bias", out)

    def norm(self, name, width):
        self.add(f"{name}.weight", width, shift=1.0)
        self.add(f"{name}.bias", width)

    def head(self, width, prefix=""):
        sizes = (width, 1024, 128, 64, 16, 1)
        for layer, inner, out in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
            self.linear(f"{prefix}layers.{layer}", out, inner)


def open_clip_state(words, context, vision=160, text=128, joint=24, places=5, patch=16, layers=2):
    """A random ViT of open_clip: two heads of 80 and of 64, two layers."""
    made = Random(0)
    for prefix, width in (("visual.", vision), ("", text)):
        for layer in range(layers):
            name = f"{prefix}transformer.resblocks.{layer}"
            made.norm(f"{name}.ln_1", width)
            made.norm(f"{name}.ln_2", width)
            made.add(f"{name}.attn.in_proj_weight", 3 * width, width, scale=2 * width**-0.5)
            made.add(f"{name}.attn.in_proj_bias", 3 * width)
            made.linear(f"{name}.attn.out_proj", width, width)
            made.linear(f"{name}.mlp.c_fc", 2 * width, width)
            made.linear(f"{name}.mlp.c_proj", width, 2 * width)
    for name in ("visual.ln_pre", "visual.ln_post"):
        made.norm(name, vision)
    made.norm("ln_final", text)
    made.add("visual.class_embedding", vision)
    made.add("visual.positional_embedding", places, vision)
    made.add("visual.conv1.weight", vision, 3, patch, patch, scale=0.05)
    made.add("visual.proj", vision, joint)
    made.add("token_embedding.weight", words, text)
    made.add("positional_embedding", context, text)
    made.add("text_projection", text, joint)
    made.add("logit_scale", shift=4.6, scale=0.0)
    return made.state


def imagereward_state(words, vision=128, text=32, places=5, patch=16, layers=2):
    """A random ImageReward: two heads of 64 for pictures, two layers."""
    made = Random(1)
    v, t = "blip.visual_encoder.", "blip.text_encoder."
    made.add(f"{v}cls_token", 1, 1, vision)
    made.add(f"{v}pos_embed", 1, places, vision)
    made.add(f"{v}patch_embed.proj.weight", vision, 3, patch, patch, scale=0.05)
    made.add(f"{v}patch_embed.proj.bias", vision)
    made.norm(f"{v}norm", vision)
    made.add(f"{t}embeddings.word_embeddings.weight", words, text)
    made.add(f"{t}embeddings.position_embeddings.weight", 40, text)
    made.norm(f"{t}embeddings.LayerNorm", text)
    for layer in range(layers):
        name = f"{v}blocks.{layer}"
        made.norm(f"{name}.norm1", vision)
        made.norm(f"{name}.norm2", vision)
        made.linear(f"{name}.attn.qkv", 3 * vision, vision)
        made.linear(f"{name}.attn.proj", vision, vision)
        made.linear(f"{name}.mlp.fc1", 2 * vision, vision)
        made.linear(f"{name}.mlp.fc2", vision, 2 * vision)
        name = f"{t}encoder.layer.{layer}"
        for kind, source in (("attention", text), ("crossattention", vision)):
            made.linear(f"{name}.{kind}.self.query", text, text)
            made.linear(f"{name}.{kind}.self.key", text, source)
            made.linear(f"{name}.{kind}.self.value", text, source)
            made.linear(f"{name}.{kind}.output.dense", text, text)
            made.norm(f"{name}.{kind}.output.LayerNorm", text)
        made.linear(f"{name}.intermediate.dense", 2 * text, text)
        made.linear(f"{name}.output.dense", text, 2 * text)
        made.norm(f"{name}.output.LayerNorm", text)
    made.head(text, "mlp.")
    return made.state


def triangle(x):
    return max(1 - abs(x), 0)


def cubic(x):
    """Keys' kernel with a = -1/2, as PIL's and as torch's antialiased one."""
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0)


def shrink(pixels, height, width, kernel, reach):
    """Antialiased resizing of `(3, H, W)`: the kernel is widened by the factor of reduction."""

    def weights(size, target):
        scale = size / target
        widen = max(scale, 1)
        found = np.zeros((target, size))
        for k in range(target):
            centre = (k + 0.5) * scale
            low, high = int(centre - reach * widen + 0.5), int(centre + reach * widen + 0.5)
            for j in range(max(low, 0), min(high, size)):
                found[k, j] = kernel((j + 0.5 - centre) / widen)
        return found / found.sum(1, keepdims=True)

    return np.einsum("th,chw,vw->ctv", weights(pixels.shape[1], height), pixels, weights(pixels.shape[2], width))
