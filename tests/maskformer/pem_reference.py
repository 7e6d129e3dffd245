"""PEM as plain loops: a slow reference to compare `maskformer` with. Inference only, no code shared with it.

Source: Cavagnero et al., "PEM: Prototype-based Efficient MaskFormer", CVPR 2024 (arXiv 2402.19422), from a written
description of its published behaviour. QUIRK marks a behaviour of the published model that one would not guess from the
paper; CHOICE marks where the description leaves two readings open and this file takes one.

Weights: one flat dict. "BN" stands for four vectors `.weight .bias .mean .var`; biases marked ? may be absent.
D = pixel dim (128), E = hidden dim (256), M = mask dim (256), C_s = channels of the backbone map of stride s.

  name                                  shape                meaning
  pixel.lateral{s}.conv.weight          (D, C_s, 1, 1)       s in 4, 8, 16, 32; bias?
  pixel.lateral{s}.norm                 BN(D)
  pixel.context.conv.weight             (D, C_32, 1, 1)      of the global mean of the stride-32 backbone map; bias?
  pixel.context.norm                    BN(D)
  pixel.gate{s}.squeeze.weight          (D/2, D, 1, 1)       self-modulation, s in 4, 8, 16, 32; bias?
  pixel.gate{s}.norm                    BN(D/2)
  pixel.gate{s}.excite.weight           (D, D/2, 1, 1)       bias?
  pixel.deform{s}.offset.weight, .bias  (27, D, 3, 3)        s in 8, 16, 32: 18 offsets then 9 modulations
  pixel.deform{s}.conv.weight           (D, D, 3, 3)         never a bias
  pixel.deform{s}.norm                  BN(D)
  pixel.deform{s}.up.weight             (D, D, 4, 4)         transposed convolution (in, out, y, x), never a bias
  pixel.deform{s}.up_norm               BN(D)
  pixel.out.conv.weight                 (M, D, 1, 1)         bias?
  pixel.out.norm                        BN(M)

  query.content, query.position         (Q, E)               learned queries: initial state, and their position
  level_embed                           (3, E)               for s32, s16, s8
  project{i}.weight, .bias              (E, D, 1, 1)         i in 0, 1, 2: s32, s16, s8
  layer{i}.cross.memory_norm            BN(E)
  layer{i}.cross.local.weight           (E, 1, 3, 3)         depthwise; bias?
  layer{i}.cross.key.weight, .bias      (E, E)
  layer{i}.cross.query_norm.weight,.bias (E,)                LayerNorm
  layer{i}.cross.query.weight, .bias    (E, E)
  layer{i}.cross.interact.weight, .bias (E, E)               the "proj" of prototype times query
  layer{i}.cross.alpha                  (E,)
  layer{i}.cross.final.weight, .bias    (E, E)
  layer{i}.self.norm.weight, .bias      (E,)                 LayerNorm
  layer{i}.self.{q,k,v,out}.weight,.bias (E, E)
  layer{i}.ffn.norm.weight, .bias       (E,)                 LayerNorm
  layer{i}.ffn.0.weight, .bias          (F, E)
  layer{i}.ffn.1.weight, .bias          (E, F)
  norm.weight, .bias                    (E,)                 LayerNorm of every prediction
  classes.weight, .bias                 (K + 1, E)           the last class is "no object"
  mask.{0,1,2}.weight, .bias            (E, E) (E, E) (M, E)
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
STRIDES = (32, 16, 8)  # of the three maps the transformer reads, in its order


# ---------------------------------------------------------------- small parts


def batch_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Normalise every channel of (B, C, H, W) by its running statistics, eps 1e-5."""
    out = torch.empty_like(x)
    for c in range(x.shape[1]):
        standard = (x[:, c] - weights[f"{name}.mean"][c]) / torch.sqrt(weights[f"{name}.var"][c] + 1e-5)
        out[:, c] = standard * weights[f"{name}.weight"][c] + weights[f"{name}.bias"][c]
    return out


def layer_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Normalise the last axis, eps 1e-5, biased variance."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """x Wᵀ + b over the last axis."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def pointwise(x: Tensor, weights: Weights, name: str) -> Tensor:
    """1x1 convolution of (B, C, H, W): one matrix at every pixel."""
    out = torch.einsum("oc,bchw->bohw", weights[f"{name}.weight"][:, :, 0, 0], x)
    bias = weights.get(f"{name}.bias")
    return out if bias is None else out + bias[:, None, None]


def pointwise_norm_relu(x: Tensor, weights: Weights, name: str) -> Tensor:
    """1x1 convolution, batch norm, ReLU."""
    return batch_norm(pointwise(x, weights, f"{name}.conv"), weights, f"{name}.norm").clamp(min=0)


def unit(x: Tensor, dim: int) -> Tensor:
    """x divided by its Euclidean length along `dim` (at least 1e-12)."""
    return x / (x**2).sum(dim, keepdim=True).sqrt().clamp(min=1e-12)


def sine_position(height: int, width: int, channels: int) -> Tensor:
    """Position (channels, H, W) of DETR: rows first; counts start at 1, end at 2π; sine and cosine interleaved."""
    half = channels // 2
    out = torch.empty(channels, height, width)
    for i in range(half):
        frequency = 10000 ** (2 * (i // 2) / half)
        wave = math.sin if i % 2 == 0 else math.cos
        for y in range(height):
            out[i, y] = wave((y + 1) / (height + 1e-6) * 2 * math.pi / frequency)
        for x in range(width):
            out[half + i, :, x] = wave((x + 1) / (width + 1e-6) * 2 * math.pi / frequency)
    return out


# ---------------------------------------------------------------- pixel decoder


def pixel_decoder(features: list[Tensor], weights: Weights) -> tuple[Tensor, list[Tensor]]:
    """Backbone maps (strides 4, 8, 16, 32) to mask features (B, M, H/4, W/4) and the maps s32, s16, s8 (B, D, ., .)."""
    f4, f8, f16, f32 = features
    context = f32.mean((2, 3), keepdim=True)
    context = pointwise_norm_relu(context, weights, "pixel.context")  # (B, D, 1, 1)
    below = pointwise_norm_relu(f32, weights, "pixel.lateral32") + context
    maps = []
    for stride, finer in zip(STRIDES, (f16, f8, f4), strict=True):
        # CHOICE: a level is modulated before the map from below is added to it: the description lists the modulation
        # with the level's own projection, and the addition last.
        if stride == 32:
            below = modulate(below, weights, "pixel.gate32")
        x, up = deform_layer(below, weights, f"pixel.deform{stride}")
        maps.append(x)
        level = pointwise_norm_relu(finer, weights, f"pixel.lateral{stride // 2}")
        level = modulate(level, weights, f"pixel.gate{stride // 2}")
        # CHOICE: published inputs are multiples of 32, so `up` is exactly the finer size; elsewhere (maps are divided
        # rounding up) it is at most one row or column longer, and that is cut off.
        below = level + up[:, :, : level.shape[2], : level.shape[3]]
    return pointwise_norm_relu(below, weights, "pixel.out"), maps


def modulate(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Context-based self-modulation: x + x * gate, the gate from the global mean of x."""
    hidden = pointwise(x.mean((2, 3), keepdim=True), weights, f"{name}.squeeze")
    hidden = batch_norm(hidden, weights, f"{name}.norm").clamp(min=0)
    gate = pointwise(hidden, weights, f"{name}.excite")
    gate = torch.sigmoid(torch.sigmoid(gate))  # QUIRK: two sigmoids, so a gate lies within (0.5, 0.731)
    return x + x * gate


def deform_layer(x: Tensor, weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    """Deformable convolution: the map the transformer reads, and it at twice the size for the next level."""
    raw = F.conv2d(x, weights[f"{name}.offset.weight"], weights[f"{name}.offset.bias"], padding=1)
    # QUIRK: the published code names the first 9 channels x and the next 9 y, but hands the 18 on unpermuted, and the
    # kernel reads them as (y, x) pairs: y and x of kernel point k are channels 2k and 2k + 1.
    x = deformable_conv(x, raw[:, :18], torch.sigmoid(raw[:, 18:]), weights[f"{name}.conv.weight"])
    x = batch_norm(x, weights, f"{name}.norm").clamp(min=0)
    up = F.conv_transpose2d(x, weights[f"{name}.up.weight"], stride=2, padding=1)
    return x, batch_norm(up, weights, f"{name}.up_norm").clamp(min=0)


def deformable_conv(x: Tensor, offsets: Tensor, modulation: Tensor, kernel: Tensor) -> Tensor:
    """Modulated deformable 3x3 convolution (DCNv2), stride 1, padding 1, one offset group.

    x (B, C, H, W), offsets (B, 18, H, W) in pixels, modulation (B, 9, H, W), kernel (O, C, 3, 3) -> (B, O, H, W).
    """
    batch, _, height, width = x.shape
    out = torch.zeros(batch, kernel.shape[0], height, width)
    for b in range(batch):
        for row in range(height):
            for column in range(width):
                for k in range(9):
                    ky, kx = divmod(k, 3)
                    y = row + ky - 1 + float(offsets[b, 2 * k, row, column])
                    x_ = column + kx - 1 + float(offsets[b, 2 * k + 1, row, column])
                    value = bilinear(x[b], y, x_) * modulation[b, k, row, column]
                    out[b, :, row, column] += kernel[:, :, ky, kx] @ value
    return out


def bilinear(x: Tensor, row: float, column: float) -> Tensor:
    """The value (C,) of x (C, H, W) at a fractional pixel; corners outside the map count as zero."""
    top, left = math.floor(row), math.floor(column)
    value = torch.zeros(x.shape[0])
    for y, weight_y in ((top, top + 1 - row), (top + 1, row - top)):
        for x_, weight_x in ((left, left + 1 - column), (left + 1, column - left)):
            if 0 <= y < x.shape[1] and 0 <= x_ < x.shape[2]:
                value += weight_y * weight_x * x[:, y, x_]
    return value


# ---------------------------------------------------------------- transformer


def transformer(
    mask_features: Tensor, maps: list[Tensor], weights: Weights, layers: int = 6, heads: int = 8
) -> list[tuple[Tensor, Tensor]]:
    """Predictions of the untouched queries and after each layer: layers + 1 pairs.

    Each pair: class logits (B, Q, K + 1) and mask logits (B, Q, H/4, W/4). `maps` are s32, s16, s8.
    """
    levels = [pointwise(x, weights, f"project{i}") for i, x in enumerate(maps)]
    levels = [x + weights["level_embed"][i][:, None, None] for i, x in enumerate(levels)]
    batch = mask_features.shape[0]
    queries = weights["query.content"].expand(batch, -1, -1).clone()  # (B, Q, E)
    predictions = [predict(queries, mask_features, weights)]
    for i in range(layers):
        level = levels[i % 3]
        blocked = blocked_pixels(predictions[-1][1], level.shape[2], level.shape[3])
        queries = prototype_attention(queries, level, blocked, weights, f"layer{i}.cross", heads)
        queries = queries + self_attention(queries, weights, f"layer{i}.self", heads)
        queries = queries + feed_forward(queries, weights, f"layer{i}.ffn")
        predictions.append(predict(queries, mask_features, weights))
    return predictions


def predict(queries: Tensor, mask_features: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Class logits (B, Q, K + 1) and mask logits (B, Q, H, W) of queries (B, Q, E)."""
    x = layer_norm(queries, weights, "norm")
    embed = linear(linear(x, weights, "mask.0").clamp(min=0), weights, "mask.1").clamp(min=0)
    embed = linear(embed, weights, "mask.2")
    return linear(x, weights, "classes"), torch.einsum("bqc,bchw->bqhw", embed, mask_features)


def blocked_pixels(mask_logits: Tensor, height: int, width: int) -> Tensor:
    """Pixels (B, Q, HW) a query may not choose: its own mask, at the level's size, below 0.5."""
    resized = F.interpolate(mask_logits, (height, width), mode="bilinear", align_corners=False)
    blocked = torch.sigmoid(resized).flatten(2) < 0.5
    for image in blocked:
        # QUIRK: the reset of empty masks fires only where EVERY query (of a head; masks are the same for all heads) is
        # empty. A single empty query keeps its row of -inf, see `chosen_pixel`.
        if bool(image.all()):
            image[:] = False
    return blocked


def prototype_attention(
    queries: Tensor, memory: Tensor, blocked: Tensor, weights: Weights, name: str, heads: int
) -> Tensor:
    """Each head of each query takes the ONE pixel most like it: queries (B, Q, E) -> (B, Q, E), residual included."""
    batch, count, width = queries.shape
    keys = memory + sine_position(memory.shape[2], memory.shape[3], width)
    keys = batch_norm(keys, weights, f"{name}.memory_norm")
    keys = F.conv2d(keys, weights[f"{name}.local.weight"], weights.get(f"{name}.local.bias"), padding=1, groups=width)
    keys = linear(keys.flatten(2).transpose(1, 2), weights, f"{name}.key")
    # CHOICE: keys and queries get unit length over all E channels, before the heads are split.
    keys = unit(keys, dim=2)  # (B, HW, E)
    # CHOICE: the norm sees content and position together, and the residual below is the un-normed content.
    asked = layer_norm(queries + weights["query.position"], weights, f"{name}.query_norm")
    asked = unit(linear(asked, weights, f"{name}.query"), dim=2)  # (B, Q, E)

    prototypes = torch.empty(batch, count, width)
    size = width // heads
    for b in range(batch):
        for q in range(count):
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                pixel = chosen_pixel(keys[b, :, part] @ asked[b, q, part], blocked[b, q])
                prototypes[b, q, part] = keys[b, pixel, part]

    mixed = linear(prototypes * asked, weights, f"{name}.interact")
    mixed = unit(mixed, dim=1)  # QUIRK: unit length over the query axis, not over the channels
    out = linear(mixed * weights[f"{name}.alpha"] + prototypes, weights, f"{name}.final")
    return out + queries  # the residual has no position added


def chosen_pixel(similarity: Tensor, blocked: Tensor) -> int:
    """The most similar open pixel, the first of equals. QUIRK: with no pixel open it is pixel 0, not any good one."""
    best, best_value = 0, -math.inf
    for pixel in range(len(similarity)):
        if not bool(blocked[pixel]) and float(similarity[pixel]) > best_value:
            best, best_value = pixel, float(similarity[pixel])
    return best


def self_attention(queries: Tensor, weights: Weights, name: str, heads: int) -> Tensor:
    """Pre-norm attention among queries (B, Q, E), without the residual; positions on query and key, not on value."""
    x = layer_norm(queries, weights, f"{name}.norm")
    placed = x + weights["query.position"]
    q, k, v = (linear(a, weights, f"{name}.{n}") for n, a in (("q", placed), ("k", placed), ("v", x)))
    out = torch.empty_like(queries)
    size = queries.shape[2] // heads
    for b in range(queries.shape[0]):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            share = torch.softmax(q[b, :, part] @ k[b, :, part].T / math.sqrt(size), dim=1)
            out[b, :, part] = share @ v[b, :, part]
    return linear(out, weights, f"{name}.out")


def feed_forward(queries: Tensor, weights: Weights, name: str) -> Tensor:
    """Pre-norm two-layer perceptron with ReLU, without the residual."""
    hidden = linear(layer_norm(queries, weights, f"{name}.norm"), weights, f"{name}.0").clamp(min=0)
    return linear(hidden, weights, f"{name}.1")


# ---------------------------------------------------------------- weights


def upsampling_at_start(dim: int) -> Tensor:
    """Published initial `up.weight` (D, D, 4, 4). QUIRK: the bilinear kernel is written to output channel 0 only.

    The other output channels start random; here they are zero.
    """
    weight = torch.zeros(dim, dim, 4, 4)
    for y in range(4):
        for x in range(4):
            weight[:, 0, y, x] = (1 - abs(y / 2 - 0.75)) * (1 - abs(x / 2 - 0.75))
    return weight


def random_weights(
    channels: tuple[int, int, int, int],
    *,
    pixel_dim: int = 128,
    hidden_dim: int = 256,
    mask_dim: int = 256,
    feedforward_dim: int = 2048,
    queries: int = 100,
    classes: int = 150,
    layers: int = 6,
    seed: int = 0,
) -> Weights:
    """All weights of the table above, random: nothing at its neutral start, so that no term can hide."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    weights: Weights = {}

    def conv(name: str, *shape: int, bias: bool) -> None:
        weights[f"{name}.weight"] = normal(*shape, scale=math.prod(shape[1:]) ** -0.5)
        if bias:
            weights[f"{name}.bias"] = normal(shape[0], scale=0.2)

    def norm(name: str, dim: int, batch: bool) -> None:
        weights[f"{name}.weight"] = 1 + normal(dim, scale=0.2)
        weights[f"{name}.bias"] = normal(dim, scale=0.2)
        if batch:
            weights[f"{name}.mean"] = normal(dim, scale=0.2)
            weights[f"{name}.var"] = 0.5 + torch.rand(dim, generator=generator)

    def conv_norm(name: str, out: int, inner: int) -> None:
        conv(f"{name}.conv", out, inner, 1, 1, bias=False)
        norm(f"{name}.norm", out, batch=True)

    d, e = pixel_dim, hidden_dim
    for stride, count in zip((4, 8, 16, 32), channels, strict=True):
        conv_norm(f"pixel.lateral{stride}", d, count)
        conv(f"pixel.gate{stride}.squeeze", d // 2, d, 1, 1, bias=False)
        norm(f"pixel.gate{stride}.norm", d // 2, batch=True)
        conv(f"pixel.gate{stride}.excite", d, d // 2, 1, 1, bias=True)
    conv_norm("pixel.context", d, channels[3])
    for stride in STRIDES:
        name = f"pixel.deform{stride}"
        conv(f"{name}.offset", 27, d, 3, 3, bias=True)  # published start: zero
        conv(f"{name}.conv", d, d, 3, 3, bias=False)
        norm(f"{name}.norm", d, batch=True)
        conv(f"{name}.up", d, d, 4, 4, bias=False)
        norm(f"{name}.up_norm", d, batch=True)
    conv_norm("pixel.out", mask_dim, d)

    weights["query.content"], weights["query.position"] = normal(queries, e), normal(queries, e)
    weights["level_embed"] = normal(3, e)
    for i in range(3):
        conv(f"project{i}", e, d, 1, 1, bias=True)
    for i in range(layers):
        name = f"layer{i}.cross"
        norm(f"{name}.memory_norm", e, batch=True)
        conv(f"{name}.local", e, 1, 3, 3, bias=True)
        norm(f"{name}.query_norm", e, batch=False)
        for part in ("key", "query", "interact", "final"):
            conv(f"{name}.{part}", e, e, bias=True)
        weights[f"{name}.alpha"] = 1 + normal(e, scale=0.3)  # published start: one
        for part in ("q", "k", "v", "out"):
            conv(f"layer{i}.self.{part}", e, e, bias=True)
        norm(f"layer{i}.self.norm", e, batch=False)
        norm(f"layer{i}.ffn.norm", e, batch=False)
        conv(f"layer{i}.ffn.0", feedforward_dim, e, bias=True)
        conv(f"layer{i}.ffn.1", e, feedforward_dim, bias=True)
    norm("norm", e, batch=False)
    conv("classes", classes + 1, e, bias=True)
    conv("mask.0", e, e, bias=True)
    conv("mask.1", e, e, bias=True)
    conv("mask.2", mask_dim, e, bias=True)
    return weights
