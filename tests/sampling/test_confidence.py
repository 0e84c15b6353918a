"""Confidence order against a plain implementation over a full mask, as MaskGIT describes it."""

import itertools
import math

import torch
import torch.nn.functional as F

from marcli.sampling.engine.base import head_sampling, schedule_of
from marcli.sampling.engine.plain import PlainEngine
from tests.model import tiny


def maskgit(model, recipe, labels, tape):
    """One image at a time, codes on a grid with holes, positions never reordered."""
    settings, schedule, n = head_sampling(recipe), schedule_of(recipe), recipe.num_tokens
    results = []
    for b, label in enumerate(labels):
        codes = torch.full((n,), -1)
        for step in schedule:
            hidden = torch.nonzero(codes < 0).flatten()
            shown = torch.nonzero(codes >= 0).flatten()
            order = torch.cat([shown, hidden]).unsqueeze(0)
            known = codes[shown].view(1, -1, 1)
            z = model.backbone.predict(known, order, model.condition(label.view(1)), num_wanted=len(hidden))
            null = model.backbone.predict(known, order, model.null_class, num_wanted=len(hidden))
            logits, logits_null = model.head.logits(z[0]), model.head.logits(null[0])
            guided = logits_null + step.guidance * (logits - logits_null)
            probabilities = F.softmax(guided / settings.temperature, dim=-1).double()
            confidence = torch.full((n,), math.inf)
            drawn = codes.clone()
            for row, position in enumerate(hidden.tolist()):
                u, v = tape.noise[b, position, step.index].tolist()
                code = int(torch.searchsorted(probabilities[row].cumsum(0), torch.tensor(u).double(), right=True))
                drawn[position] = code
                fade = recipe.sample.confidence_temperature * (1 - (step.index + 1) / len(schedule))
                confidence[position] = math.log(probabilities[row, code]) - fade * math.log(-math.log(v))
            keep = confidence.argsort(descending=True)[: step.known + step.count]
            codes[keep] = drawn[keep]
        results.append(codes)
    return torch.stack(results)


@torch.inference_mode()
def test_confidence_order_equals_a_plain_implementation():
    recipe = tiny.recipe("masked", "confidence", "cross_entropy", cfg=2.5, temperature=1.3, steps=5)
    model, labels = tiny.model(recipe), torch.tensor([3, 1, 4, 1])
    for parameter in model.head.parameters():
        parameter.mul_(4)
    engine = PlainEngine(model, recipe)
    tape = engine.draw_tape(seed=5, indices=range(4))
    ours = engine.latents(labels=labels, tape=tape, on_step=None).flatten(1)
    assert torch.equal(ours, maskgit(model, recipe, labels, tape))


@torch.inference_mode()
def test_every_step_reveals_its_count_and_never_hides_a_code_again():
    recipe = tiny.recipe("masked", "confidence", "cross_entropy", steps=5)
    engine = PlainEngine(tiny.model(recipe), recipe)
    tape = engine.draw_tape(seed=5, indices=range(2))
    seen = []
    engine.latents(
        labels=torch.tensor([0, 1]), tape=tape, on_step=lambda step, known, order: seen.append((known, order))
    )
    assert [known.shape[1] for known, _ in seen] == [step.known + step.count for step in engine.schedule]
    for (known, order), (later, later_order) in itertools.pairwise(seen):
        assert torch.equal(later[:, : known.shape[1]], known)
        assert torch.equal(later_order[:, : known.shape[1]], order[:, : known.shape[1]])
