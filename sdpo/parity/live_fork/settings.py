"""The fork's own settings objects, from settings as the recorded cases have them."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from sdpo.parity.live_fork.modules import CONFIG, DP_ACTOR, live_function

Settings = Mapping[str, object]
"""Settings by their names in the fork."""


class LiveActor(Protocol):
    """The fork's `DataParallelPPOActor`, as far as it is used here."""

    config: Any
    actor_module: nn.Module
    teacher_module: nn.Module | None
    _forward_micro_batch: Callable[..., dict[str, Tensor]]
    _optimizer_step: Callable[[], Tensor]
    update_policy: Callable[[Any], dict[str, object]]


RENAMED = {"teacher_regularization": {"trust-region": "trust_region"}}
"""Values that other checkouts have another name for, as verl's pull request 5499 has."""


def distillation_settings(settings: Settings) -> object:
    """The fork's `SelfDistillationConfig`; what is not given has its default there.

    Raises:
        ValueError: the checkout refuses a value, also under the names of `RENAMED`.
    """
    make = live_function(CONFIG, "SelfDistillationConfig")
    try:
        return make(**settings)
    except ValueError:
        renamed = {
            name: RENAMED.get(name, {}).get(str(value), value) for name, value in settings.items()
        }
        if renamed == settings:
            raise
        return make(**renamed)


def live_actor(
    actor: Settings, distillation: Settings, module: nn.Module, optimizer: object = None
) -> LiveActor:
    """The fork's actor.

    Args:
        actor: settings of the update, `compute_dtype` (of the autocast) among them.
        distillation: settings of the loss and of the teacher.
        module: the model.
        optimizer: of its parameters, None where nothing is learnt.
    """
    given = dict(actor)
    dtype = given.pop("compute_dtype", "float32")
    config = live_function(CONFIG, "FSDPActorConfig")(
        strategy="fsdp",
        rollout_n=1,
        use_torch_compile=False,
        policy_loss=live_function(CONFIG, "PolicyLossConfig")(loss_mode="sdpo"),
        self_distillation=distillation_settings(distillation),
        fsdp_config=live_function(CONFIG, "FSDPEngineConfig")(dtype=dtype),
        **given,
    )
    return live_function(DP_ACTOR, "DataParallelPPOActor")(config, module, optimizer)
