import pytest
import torch
from torch import nn

from marcli.model.build import build_model
from marcli.training.optim import apply_step, build_optimizer, decayed_names, gradient_norm


@pytest.fixture
def model(recipe):
    torch.manual_seed(0)
    return build_model(recipe())


def test_only_matrices_of_the_backbone_decay(model, recipe):
    decayed = decayed_names(model)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert {"backbone.encoder.0.mlp.fc1.weight", "class_embed.weight", "backbone.mask_token"} <= decayed
    assert not any(name.startswith("head.") or name.endswith(".bias") or shapes[name] == 1 for name in decayed)
    kept = shapes.keys() - decayed
    assert all(name.startswith("head.") or name.endswith(".bias") or shapes[name] == 1 for name in kept)
    groups = build_optimizer(model, recipe().train).param_groups
    assert [group["weight_decay"] for group in groups] == [0.02, 0.0]
    assert [len(group["params"]) for group in groups] == [len(decayed), len(kept)]


def grads(model, scale):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_clipped_steps_equal_torch_clip_and_plain_adamw(recipe, scale):
    """The clipping factor inside the fused routine is that of clip_grad_norm_, below and above the limit."""
    models = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = build_model(recipe())
        if ours:
            optimizer = build_optimizer(model, recipe().train)
        else:
            decayed = decayed_names(model)
            groups = [
                {"params": [p], "weight_decay": 0.02 if n in decayed else 0.0} for n, p in model.named_parameters()
            ]
            optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), foreach=False)
        for _ in range(3):
            grads(model, scale)
            if ours:
                norm = gradient_norm(list(model.parameters()))
                skip = torch.zeros(())
                apply_step(optimizer, learning_rate=0.01, norm=norm, largest_norm=3.0, skip=skip)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), 3.0)
                optimizer.step()
        models.append(model)
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_skipped_step_changes_nothing(model, recipe):
    optimizer = build_optimizer(model, recipe().train)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    grads(model, float("nan"))
    norm = gradient_norm(list(model.parameters()))
    apply_step(optimizer, learning_rate=0.01, norm=norm, largest_norm=3.0, skip=torch.ones(()))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for state in optimizer.state.values():
        assert state["step"] == 0 and not state["exp_avg"].any()
