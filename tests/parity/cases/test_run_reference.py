"""The driver of the reference's updates: what hooks see, and that they change nothing unasked."""

import contextlib
from types import SimpleNamespace

import torch
from torch import nn

from sdpo.parity.cases.run_reference import TraceHooks, in_dtype, run_reference_updates
from sdpo.parity.cases.stage_trace import GRAD_NORM, NO_STAGE, Moment, Place
from sdpo.reference.hooks import Hooks
from sdpo.reference.update import UpdateSettings


class Bigram(nn.Module):
    """Logits of the next token from the present one alone."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(5, 5, generator=random))

    def forward(self, input_ids, **others):
        return SimpleNamespace(logits=self.table[input_ids])


def learn(hooks, updates=1):
    """Two optimizer steps an update, each of two micro-batches of one row."""
    student, teacher = Bigram(), Bigram()
    ids = torch.tensor([[0, 1, 2], [1, 3, 4], [2, 2, 0], [4, 1, 1]])
    sides = {f"{side}{name}": ids for side in ("", "teacher_") for name in ("input_ids",)}
    sides |= {f"{side}attention_mask": torch.ones_like(ids) for side in ("", "teacher_")}
    sides |= {f"{side}position_ids": torch.arange(3).repeat(4, 1) for side in ("", "teacher_")}
    zeros = torch.zeros(4, 2)
    batch = sides | {
        "responses": ids[:, 1:],
        "response_mask": torch.ones(4, 2),
        "old_log_probs": zeros,
        "advantages": zeros,
        "self_distillation_mask": torch.ones(4),
    }
    settings = UpdateSettings(2, 1, distillation_topk=2, teacher_update_rate=0.5)
    with torch.no_grad():
        teacher.table.mul_(2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return run_reference_updates(
        student, teacher, optimizer, settings, 1.0, [(batch, None)] * updates, hooks=hooks
    )


def test_every_value_gradient_and_weight_has_its_place():
    hooks = TraceHooks()
    metrics = learn(hooks, updates=2)
    trace = hooks.trace
    assert len(metrics) == 2
    moments = [Moment(u, s, m) for u in range(2) for s in range(2) for m in range(2)]
    assert list(trace.moments()) == moments
    for update in range(2):
        norms = [trace[Place(update, step, 1, NO_STAGE, GRAD_NORM)] for step in range(2)]
        assert norms == metrics[update]["actor/grad_norm"]
        assert trace.named("optimizer", update).keys() == {"table"}
    gradients = [trace.named("accumulate", 0, step)["table"] for step in range(2)]
    assert [g.norm().item() for g in gradients] == metrics[0]["actor/grad_norm"]


def test_the_teacher_is_averaged_once_an_update():
    hooks = TraceHooks()
    learn(hooks)
    student, start = hooks.trace.named("optimizer")["table"], 2 * Bigram().table
    teacher = hooks.trace.named("teacher_update")["table"]
    assert torch.allclose(teacher, 0.5 * start + 0.5 * student)


def test_a_hook_may_scale_the_loss_and_see_the_order_of_events():
    class Halved(Hooks):
        def __init__(self):
            self.events, self.gradients = [], []

        @contextlib.contextmanager
        def micro_batch(self, step, micro_batch):
            self.events.append(("begins", step, micro_batch))
            yield
            self.events.append(("ends", step, micro_batch))

        def loss(self, step, loss):
            return loss / 2

        def before_step(self, step, actor):
            self.events.append(("step", step))
            (table,) = actor.parameters()
            assert table.grad is not None
            self.gradients.append(table.grad.clone())

    halved, plain = Halved(), TraceHooks()
    learn(halved)
    learn(plain)
    first = [("begins", 0, 0), ("ends", 0, 0), ("begins", 0, 1), ("ends", 0, 1), ("step", 0)]
    assert halved.events[:5] == first
    assert torch.equal(2 * halved.gradients[0], plain.trace.named("accumulate", 0, 0)["table"])


def test_only_floating_tensors_are_cast():
    batch = {"ids": torch.tensor([1]), "mask": torch.tensor([1.0])}
    cast = in_dtype(batch, torch.float64)
    assert (cast["ids"].dtype, cast["mask"].dtype) == (torch.int64, torch.float64)
