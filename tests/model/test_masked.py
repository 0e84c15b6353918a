"""What the masked backbone may and may not see, and the loss of hidden tokens alone."""

import torch

from tests.model import tiny


def setup(num_known: int = 5):
    recipe = tiny.recipe("masked", "random", "diffusion")
    model = tiny.model(recipe)
    return recipe, model, tiny.latents(recipe, 3), tiny.draws(model, 3, num_known)


def test_a_hidden_token_cannot_influence_z():
    _, model, _, draws = setup()
    generator = torch.Generator().manual_seed(0)
    tokens, order = torch.randn(3, 16, 4, generator=generator), draws["order"]
    condition = model.condition(torch.tensor([0, 1, 2]))
    z = model.backbone(tokens, order, condition, 5)
    hidden, known = tokens.clone(), tokens.clone()
    hidden[:, 5:] += 1.0
    known[:, 4] += 1.0
    assert torch.equal(model.backbone(hidden, order, condition, 5), z)
    assert not torch.allclose(model.backbone(known, order, condition, 5), z)


def test_the_order_of_known_tokens_does_not_matter():
    _, model, _, draws = setup()
    tokens, order = torch.randn(3, 16, 4), draws["order"]
    shuffled, positions = tokens.clone(), order.clone()
    shuffled[:, :5], positions[:, :5] = tokens[:, :5].flip(1), order[:, :5].flip(1)
    condition = model.condition(torch.tensor([0, 1, 2]))
    z = model.backbone(tokens, order, condition, 5)
    assert torch.allclose(model.backbone(shuffled, positions, condition, 5), z, atol=1e-5)


def test_z_of_this_steps_tokens_equals_z_of_all_hidden_ones():
    _, model, _, draws = setup()
    tokens, order = torch.randn(3, 16, 4), draws["order"]
    condition = model.condition(torch.tensor([0, 1, 2]))
    some = model.predict(tokens[:, :5], order, condition, num_wanted=3, cache=None)
    assert torch.allclose(some, model.backbone(tokens, order, condition, 5)[:, :3], atol=1e-5)


def test_dropped_labels_become_the_null_class():
    _, model, _, _ = setup()
    labels = torch.tensor([4, 5])
    condition = model.condition(labels, torch.tensor([False, True]))
    assert torch.equal(condition[0], model.class_embed.weight[4])
    assert torch.equal(condition[1], model.null_class[0])


def test_loss_has_one_value_per_hidden_token_and_its_draws_average():
    _, model, latents, draws = setup()
    labels = torch.tensor([0, 1, 2])
    loss = model(latents, labels, draws, 5)
    assert loss.shape == (3, 11)
    single = [{**draws, "t": draws["t"][:, :, k : k + 1], "noise": draws["noise"][:, :, k : k + 1]} for k in range(4)]
    mean = torch.stack([model(latents, labels, one, 5) for one in single]).mean(0)
    assert torch.allclose(loss, mean, rtol=1e-5)


def test_train_and_eval_differ_in_dropout_alone():
    _, model, latents, draws = setup()
    labels = torch.tensor([0, 1, 2])
    quiet = model(latents, labels, draws, 5)
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    assert torch.equal(model.train()(latents, labels, draws, 5), quiet)
