"""EoMT against transformers' implementation, and what its annealing promises."""

import copy
import io
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from maskformer.annealing import set_progress
from maskformer.config import ModelConfig
from maskformer.convert import from_timm
from maskformer.eomt import whole_vit
from maskformer.inference import semantic
from maskformer.losses import build_criterion
from maskformer.model import MaskFormer, param_groups
from maskformer.prediction import LayerPrediction
from maskformer.targets import Target
from maskformer.weights import load_backbone_weights

DEPTH, BLOCKS, WIDTH, HEADS, QUERIES = 4, 2, 32, 4, 7
SMALL_VIT = {"img_size": 64, "patch_size": 16, "depth": DEPTH, "embed_dim": WIDTH, "num_heads": HEADS}
TINY = ModelConfig.from_preset(
    "eomt-small",
    num_classes=3,
    num_queries=QUERIES,
    hidden_dim=WIDTH,
    mask_dim=WIDTH,
    decoder_layers=BLOCKS,
    backbone_options=SMALL_VIT,
)
# transformers' names → ours, in this order; blocks are numbered anew from where the queries come in.
NAMES = {
    "attn_mask_probs": "query_decoder.annealing.probability",
    "embeddings.cls_token": "backbone.network.cls_token",
    "embeddings.register_tokens": "backbone.network.reg_token",
    "embeddings.patch_embeddings.projection": "backbone.network.patch_embed.proj",
    "embeddings.position_embeddings.weight": "backbone.network.pos_embed",
    "layernorm.": "query_decoder.norm.",
    ".layernorm2d.": ".norm.",
    "query.weight": "query_decoder.query_embed.weight",
    "upscale_block.block": "query_decoder.upscale",
    "mask_head.fc1": "query_decoder.mask_embed.layers.0",
    "mask_head.fc2": "query_decoder.mask_embed.layers.1",
    "mask_head.fc3": "query_decoder.mask_embed.layers.2",
    "class_predictor": "query_decoder.class_embed",
    "attention.q_proj": "attn.qkv",
    "attention.out_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    **{f"layers.{i}.": f"backbone.network.blocks.{i}." for i in range(DEPTH - BLOCKS)},
    **{f"layers.{DEPTH - BLOCKS + i}.": f"query_decoder.blocks.{i}." for i in range(BLOCKS)},
}


def renamed(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in theirs.items():
        if name.startswith("criterion.") or ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([theirs[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
        for old, new in NAMES.items():
            if name.startswith(old) or not old.startswith("layers."):
                name = name.replace(old, new)
        ours[name] = tensor[None] if name.endswith("pos_embed") else tensor
    return ours


def theirs_and_ours(side: int, probability: float) -> tuple[nn.Module, MaskFormer]:
    from transformers import EomtConfig, EomtForUniversalSegmentation

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "num_blocks": BLOCKS}
    config = EomtConfig(**shape, num_labels=3, image_size=side, patch_size=16, num_queries=QUERIES)
    theirs = EomtForUniversalSegmentation(config).eval()
    with torch.no_grad():
        theirs.embeddings.register_tokens.normal_()  # zero as initialised: no test
        theirs.attn_mask_probs.fill_(probability)
    ours = MaskFormer(TINY.replace(backbone_options={**SMALL_VIT, "img_size": side})).eval()
    ours.load_state_dict(renamed(theirs.state_dict()))
    return theirs, ours


def tiny(seed: int = 0, progress: float = 0.0, **changes) -> MaskFormer:
    """A small model in eval mode whose blocks matter (as initialised, LayerScale is 1e-5)."""
    torch.manual_seed(seed)
    model = MaskFormer(TINY.replace(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("ls1.gamma", "ls2.gamma")):
                parameter.normal_(1.0, 0.3)
            elif name.endswith(("_token", "pos_embed")):
                parameter.normal_()
    set_progress(model, progress)
    return model.eval()


def assert_same(one, other, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(one.class_logits, other.class_logits, atol=tolerance, rtol=0)
    torch.testing.assert_close(one.mask_logits, other.mask_logits, atol=tolerance, rtol=0)


def are_same(one, other) -> bool:
    return torch.equal(one.mask_logits, other.mask_logits) and torch.equal(one.class_logits, other.class_logits)


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("probability", [1.0, 0.0], ids=["masked", "annealed"])
def test_predicts_what_transformers_does(side: int, probability: float) -> None:
    theirs, ours = theirs_and_ours(side, probability)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        wanted, given = theirs(x), ours(x)
    assert 0.1 < (given.mask_logits > 0).float().mean() < 0.9  # else the masks would hide everything or nothing
    assert given.mask_logits.shape == (2, QUERIES, side // 4, side // 4)
    torch.testing.assert_close(given.class_logits, wanted.class_queries_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(given.mask_logits, wanted.masks_queries_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("probability", [1.0, 0.6, 0.0])
def test_every_layer_in_training_is_what_transformers_predicts(probability: float, monkeypatch) -> None:
    """With the same seed the same queries are spared their mask by lot."""
    theirs, ours = theirs_and_ours(64, probability)
    layers = []
    predict = theirs.predict
    monkeypatch.setattr(theirs, "predict", lambda tokens: layers.append(predict(tokens)) or layers[-1])
    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)
    theirs.train()(x)
    torch.manual_seed(1)
    given = ours.train()(x)
    assert len(layers) == BLOCKS + 1 == len(given.auxiliary) + 1
    for (mask_logits, class_logits), layer in zip(layers, (*given.auxiliary, given), strict=True):
        torch.testing.assert_close(layer.mask_logits, mask_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(layer.class_logits, class_logits, atol=1e-4, rtol=0)


def test_half_annealed_predictions_are_no_lottery() -> None:
    """transformers draws the spared queries anew in every prediction, in eval mode too. Ours do not change."""
    theirs, ours = theirs_and_ours(64, 0.5)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(theirs(x).masks_queries_logits, theirs(x).masks_queries_logits)
        assert are_same(ours(x), ours(x))


@pytest.mark.parametrize(("name", "layers", "heads"), [("small", 12, 6), ("base", 12, 12), ("large", 24, 16)])
def test_presets_have_transformers_parameters(name: str, layers: int, heads: int) -> None:
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = ModelConfig.from_preset(f"eomt-{name}")
    with torch.device("meta"):
        ours = MaskFormer(config)
        theirs = EomtForUniversalSegmentation(
            EomtConfig(
                hidden_size=config.hidden_dim,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_blocks=config.decoder_layers,
                num_labels=133,
            )
        )
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert {block.attn.num_heads for block in ours.query_decoder.blocks} == {heads}


def test_bf16_is_no_further_from_float32_than_transformers() -> None:
    theirs, ours = theirs_and_ours(96, 0.0)
    x = torch.randn(4, 3, 96, 96)
    with torch.no_grad():
        exact = ours(x).mask_logits
        with torch.autocast("cpu", torch.bfloat16):
            mine = (ours(x).mask_logits - exact).square().mean()
            other = (theirs(x).masks_queries_logits - exact).square().mean()
    assert 0 < mine < 1.2**2 * other


def test_annealed_inference_is_plain_attention_with_one_prediction(monkeypatch) -> None:
    model = tiny()
    decoder = model.query_decoder
    predictions, masks = [], []
    predict = decoder.predict
    monkeypatch.setattr(decoder, "predict", lambda *args: predictions.append(1) or predict(*args))
    for block in decoder.blocks:
        block.register_forward_pre_hook(lambda _, __, keywords: masks.append(keywords["attn_mask"]), with_kwargs=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        masked = model(x)
        assert len(predictions) == BLOCKS + 1 and all(mask is not None for mask in masks)
        set_progress(model, 1.0)
        predictions.clear(), masks.clear()
        plain = model(x)
    assert predictions == [1] and masks == [None] * BLOCKS
    assert plain.auxiliary == () and not are_same(masked, plain)
    # Training still supervises every layer, without masks.
    predictions.clear(), masks.clear()
    assert len(model.train()(x).auxiliary) == BLOCKS
    assert masks == [None] * BLOCKS


def test_a_query_looks_at_the_patches_inside_its_mask_and_all_else_at_everything() -> None:
    decoder = tiny().query_decoder
    prefix, grid = 5, (3, 4)
    length = QUERIES + prefix + 12
    features = torch.randn(2, WIDTH, 12, 16)
    features[:, :, 4:8, :4] = 0  # sums to nothing there: no logit is positive
    layer = LayerPrediction(torch.zeros(2, QUERIES, 4), torch.randn(2, QUERIES, WIDTH), features)
    allowed = decoder.attention_mask(0, layer, length)
    assert allowed.shape == (2, 1, length, length)
    assert allowed[:, :, QUERIES:].all() and allowed[:, :, :, : QUERIES + prefix].all()
    inside = allowed[:, 0, :QUERIES, QUERIES + prefix :].unflatten(2, grid)
    full = nn.functional.interpolate(layer.mask_logits, size=grid, mode="bilinear") > 0
    assert torch.equal(inside, full)
    assert not inside[:, :, 1, 0].any() and inside.any()


def test_a_model_stored_half_way_predicts_as_it_did() -> None:
    x = torch.randn(1, 3, 64, 64)
    half = tiny(progress=0.45)
    assert [half.query_decoder.annealing.is_active(block) for block in range(BLOCKS)] == [False, True]
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    loaded = tiny(seed=1, progress=1.0)
    with torch.device("meta"):
        assigned = MaskFormer(half.config).eval()
    loaded.load_state_dict(torch.load(file))
    assigned.load_state_dict(half.state_dict(), assign=True)
    with torch.no_grad():
        wanted = half(x)
        assert are_same(half(x), wanted)  # nothing is drawn by lot
        for other in (loaded, assigned, copy.deepcopy(half)):
            assert are_same(other(x), wanted)
        for progress in (0.0, 1.0):
            set_progress(loaded, progress)
            assert not are_same(loaded(x), wanted)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_a_picture_is_the_same_alone_and_in_a_batch(progress: float) -> None:
    model = tiny(progress=progress)
    x = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        together, alone = model(x), model(x[1:2])
    assert_same(
        together._replace(mask_logits=together.mask_logits[1:2], class_logits=together.class_logits[1:2]), alone
    )


def test_permuted_queries_give_permuted_masks() -> None:
    model = tiny()
    x, order = torch.randn(1, 3, 64, 64), torch.randperm(QUERIES)
    with torch.no_grad():
        before = model(x)
        model.query_decoder.query_embed.weight.copy_(model.query_decoder.query_embed.weight[order])
        after = model(x)
    torch.testing.assert_close(after.mask_logits, before.mask_logits[:, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(48, 80), (64, 64), (16, 16), (128, 96)])
def test_any_multiple_of_the_patch_will_do(size: tuple[int, int]) -> None:
    with torch.no_grad():
        out = tiny()(torch.randn(1, 3, *size))
    assert out.mask_logits.shape == (1, QUERIES, size[0] // 4, size[1] // 4)
    assert out.mask_logits.isfinite().all()


def test_sizes_off_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="image of 64 x 72: expected multiples of 16 x 16"):
        tiny()(torch.zeros(1, 3, 64, 72))


@pytest.mark.parametrize("patch", [8, 32])
def test_masks_are_at_a_quarter_for_other_patches(patch: int) -> None:
    model = tiny(backbone_options={**SMALL_VIT, "patch_size": patch}, in_channels=5).train()
    assert model(torch.randn(1, 5, 64, 96)).mask_logits.shape == (1, QUERIES, 16, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 48}, "hidden_dim: 48, but vit_small_patch14_reg4_dinov2 is 32 wide"),
        ({"mask_dim": 16}, "mask_dim: 16, but vit_small"),
        ({"decoder_layers": 4}, "decoder_layers: 4, but .* has 4 blocks"),
        ({"query_decoder": "detr"}, "need each other"),
        ({"backbone": "vit_tiny"}, "timm has no model 'vit_tiny'"),
        ({"backbone": "resnet18"}, "resnet18 is no plain ViT"),
        ({"backbone_options": {**SMALL_VIT, "patch_size": 14}}, "patch_size 14, expected one of 8, 16, 32"),
        ({"backbone_options": {**SMALL_VIT, "widht": 3}}, "widht"),
    ],
)
def test_bad_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskFormer(TINY.replace(**changes))


def loss_of(model: MaskFormer, x: Tensor) -> Tensor:
    torch.manual_seed(5)  # the same lots
    out = model(x)
    return sum(one.class_logits.square().sum() + one.mask_logits.square().sum() for one in (out, *out.auxiliary))


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_every_parameter_gets_a_finite_gradient(progress: float) -> None:
    model = tiny(progress=progress).train()
    loss_of(model, torch.randn(2, 3, 64, 64)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_trains_in_bf16_with_the_trunk_frozen() -> None:
    model = tiny(progress=0.3).train()
    model.backbone.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, torch.randn(2, 3, 64, 64))
    loss.backward()
    assert loss.isfinite() and all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.query_decoder.parameters())


def test_unsupervised_layers_cost_no_gradient() -> None:
    model = tiny(auxiliary=False).train()
    out = model(torch.randn(1, 3, 64, 64))
    assert out.auxiliary == ()
    supervised = tiny().train()
    torch.manual_seed(3)
    x = torch.randn(1, 3, 64, 64)
    torch.manual_seed(3)
    assert_same(model(x), supervised(x), 1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, saving = tiny(progress=0.5).train(), tiny(progress=0.5).train()
    saving.backbone.set_grad_checkpointing()
    saving.query_decoder.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, saving):
        loss_of(model, x).backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_compiles_to_one_graph(progress: float) -> None:
    model = tiny(progress=progress)
    x = torch.randn(1, 3, 96, 64)  # not the configured size: position embeddings are resampled in the graph
    with torch.no_grad():
        assert_same(torch.compile(model, fullgraph=True, backend="eager")(x), model(x), 1e-5)


@pytest.mark.slow
def test_learns_a_batch_by_heart_and_predicts_it_without_masks() -> None:
    """Trained with its masks annealed away, it then predicts by plain attention: mean IoU of at least 0.95."""
    torch.manual_seed(0)
    vit = {**SMALL_VIT, "embed_dim": 64}
    model = MaskFormer(
        TINY.replace(hidden_dim=64, mask_dim=64, backbone_options=vit, num_classes=2, loss_resolution="mask")
    ).train()
    criterion = build_criterion(model.config)
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    places = [[(18, 18, 14), (42, 44, 16)], [(20, 40, 15), (46, 16, 13)]]
    discs = torch.stack([
        torch.stack([(y - a).square() + (x - b).square() < r * r for a, b, r in picture]) for picture in places
    ])  # fmt: skip
    colours = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    pictures = torch.einsum("bnhw,nc->bchw", discs.float(), 2 * colours) + 0.2 * torch.randn(2, 3, 64, 64)
    everywhere = torch.ones(64, 64, dtype=torch.bool)
    targets = [Target.from_masks(torch.tensor([0, 1]), masks, everywhere) for masks in discs]
    optimizer = torch.optim.AdamW(param_groups(model, 1e-3, 1.0), weight_decay=0)
    for step in range(200):
        set_progress(model, step / 200)
        optimizer.zero_grad()
        criterion(model(pictures), targets)["total"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    assert not any(model.query_decoder.annealing.is_active(block) for block in range(BLOCKS))
    with torch.no_grad():
        probability = semantic(model(pictures), (64, 64))
    found = torch.cat((probability, torch.full((2, 1, 64, 64), 0.5)), 1).argmax(1)
    wanted = torch.full((2, 64, 64), 2)
    for n in range(2):
        wanted[discs[:, n]] = n
    ious = [((found == k) & (wanted == k)).sum() / ((found == k) | (wanted == k)).sum() for k in range(3)]
    assert torch.stack(ious).mean() >= 0.95


@pytest.mark.slow
def test_exports_with_any_height_and_width(tmp_path: Path) -> None:
    """torch.export and ONNX of the annealed model, made at one size and run at larger and smaller ones."""
    import onnxruntime

    model = tiny(progress=1.0)
    sides = {2: 32 * torch.export.Dim("h", min=1, max=32), 3: 32 * torch.export.Dim("w", min=1, max=32)}
    example = torch.randn(1, 3, 96, 128)
    program = torch.export.export(model, (example,), dynamic_shapes={"x": sides})
    torch.onnx.export(program, (example,), tmp_path / "eomt.onnx", dynamo=True)
    session = onnxruntime.InferenceSession(tmp_path / "eomt.onnx")
    for size in ((64, 64), (32, 96), (192, 160)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            wanted = model(x)
            exported = program.module()(x)
        torch.testing.assert_close(exported[1], wanted.mask_logits, atol=1e-5, rtol=0)
        class_logits, mask_logits = session.run(None, {session.get_inputs()[0].name: x.numpy()})[:2]
        torch.testing.assert_close(torch.from_numpy(class_logits), wanted.class_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.from_numpy(mask_logits), wanted.mask_logits, atol=1e-4, rtol=0)


def test_stochastic_depth_rises_over_the_whole_network() -> None:
    model = tiny(backbone_options={**SMALL_VIT, "drop_path_rate": 0.3})
    blocks = (*model.backbone.network.blocks, *model.query_decoder.blocks)
    assert [block.drop_path1.drop_prob for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert are_same(model(x), model(x)) and not are_same(model.train()(x), model(x))


def test_the_trunk_learns_at_the_backbones_rate_and_the_last_blocks_at_the_full_one() -> None:
    model = tiny()
    rates = {id(p): group["lr"] for group in param_groups(model, 1.0, 0.1) for p in group["params"]}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {0.1}
    assert {rates[id(p)] for p in model.query_decoder.parameters()} == {1.0}


@pytest.mark.parametrize(("patch", "side"), [(16, 64), (14, 70)], ids=["same", "resampled"])
def test_pretrained_weights_reach_the_last_blocks_too(patch: int, side: int) -> None:
    torch.manual_seed(1)
    shape = {**SMALL_VIT, "patch_size": patch, "img_size": side}
    pretrained = timm.create_model(TINY.backbone, num_classes=5, init_values=0.5, **shape).eval()
    model = tiny()
    queries = model.query_decoder.query_embed.weight.clone()
    account = load_backbone_weights(model, pretrained.state_dict())
    assert account.unexpected == ("head.weight", "head.bias") and account.missing == () and account.inflated == ()
    assert torch.equal(model.query_decoder.query_embed.weight, queries)
    for index, block in enumerate((*model.backbone.network.blocks, *model.query_decoder.blocks)):
        assert torch.equal(block.attn.qkv.weight, pretrained.blocks[index].attn.qkv.weight)
    assert torch.equal(model.query_decoder.norm.weight, pretrained.norm.weight)
    x = torch.randn(1, 3, side, side)
    if patch == 16:
        with torch.no_grad():
            whole = whole_vit(model.backbone, model.query_decoder)
            assert torch.equal(whole.forward_features(x), pretrained.forward_features(x))
    assert len(model.backbone.network.blocks) == DEPTH - BLOCKS and isinstance(model.backbone.network.norm, nn.Identity)
    converted = from_timm(pretrained.state_dict(), model.config)
    fresh = {name.split(".")[1] for name in converted.conversion.fresh}
    assert fresh == {"query_embed", "class_embed", "mask_embed", "upscale", "annealing"}
    assert are_same_weights(converted.query_decoder.blocks, model.query_decoder.blocks)


def are_same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
