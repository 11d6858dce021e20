"""What is recorded of a forward is repeated as long as it is the same forward, and no longer."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmdit import eager_forward, forget_graphs, graph_forward
from mmdit.graphs import KEPT


class Recorder:
    """Stands for the card: what it records always reads and writes the same tensors."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        self.recorded += 1
        out = run().clone()

        def replay() -> None:
            self.replayed += 1
            out.copy_(run())

        return replay, out


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_repeated_forward_reads_what_is_given_and_keeps_what_it_gave(build, inputs, recorder) -> None:
    model = build()
    calls = [
        inputs,
        inputs | {"latents": 2 * inputs["latents"]},
        inputs | {"sigma": torch.tensor([0.1, 0.9])},
    ]
    expected = [model(**call) for call in calls]
    graph_forward(model, recorder)
    found = [model(**call) for call in calls]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (recorder.recorded, recorder.replayed) == (1, 3)
    with torch.inference_mode():
        number = model(**inputs | {"sigma": 0.3})
    assert torch.equal(number, model(**inputs | {"sigma": 0.3}))
    assert recorder.recorded == 3  # a number is of float64, and each mode has its own
    eager_forward(model)
    assert torch.equal(number, model(**inputs | {"sigma": 0.3}))
    assert "forward" not in model.__dict__


def test_another_shape_or_skipped_block_is_recorded_and_a_few_are_kept(build, inputs, recorder) -> None:
    model = build()
    graph_forward(model, recorder)
    for tokens in range(1, KEPT + 2):
        model(**inputs | {"context": torch.ones(2, tokens, 24)})
    model(**inputs | {"context": torch.ones(2, KEPT + 1, 24)})
    assert recorder.recorded == KEPT + 1
    model(**inputs | {"context": torch.ones(2, 1, 24)})  # which was dropped
    assert recorder.recorded == KEPT + 2
    skipped = model(**inputs, skip_layers=(1,))
    assert not torch.equal(skipped, model(**inputs))  # of 4 tokens, which is kept
    assert recorder.recorded == KEPT + 3


def test_what_is_changed_in_the_model_is_recorded_anew(build, inputs, recorder) -> None:
    model = build()
    before = model(**inputs)
    graph_forward(model, recorder)
    assert torch.equal(model(**inputs), before)
    fc1 = model.joint_blocks[0].x_block.mlp.fc1
    own = fc1.weight.data
    fc1.weight.data = 2 * own  # as LoRAs are merged, and weights widened
    assert not torch.equal(model(**inputs), before)
    fc1.weight.data = own
    assert torch.equal(model(**inputs), before)
    model.joint_blocks[0].x_block.mlp.fc1 = nn.Sequential(fc1)  # another module of the same weights
    assert torch.equal(model(**inputs), before)
    forget_graphs(model)
    assert torch.equal(model(**inputs), before)
    assert recorder.recorded == 5


def test_what_is_looked_into_or_differentiated_runs_as_it_is_written(build, inputs, recorder) -> None:
    model, seen = build(), []
    graph_forward(model, recorder)
    handle = model.joint_blocks[0].attention.register_forward_hook(lambda *_: seen.append(1))
    model(**inputs)
    handle.remove()
    model(**inputs, residuals=[torch.zeros(2, 6, 64)])
    with torch.enable_grad():
        latents = inputs["latents"].clone().requires_grad_()
        model(**inputs | {"latents": latents}).sum().backward()
        model.final_layer.linear.weight.requires_grad_()
        model(**inputs).sum().backward()
    assert latents.grad is not None
    assert (seen, recorder.recorded) == ([1], 0)
    model.requires_grad_(False)
    copied = copy.deepcopy(model)
    nn.init.zeros_(copied.final_layer.linear.weight)
    nn.init.zeros_(copied.final_layer.linear.bias)
    assert copied(**inputs).abs().max() == 0
    assert model(**inputs).abs().max() > 0
