"""Stand-in: settings as dataclasses."""

from dataclasses import dataclass, field


@dataclass
class SelfDistillationConfig:
    full_logit_distillation: bool = True
    alpha: float = 0.0
    distillation_topk: int | None = None
    distillation_add_tail: bool = True
    is_clip: float | None = None
    teacher_regularization: str = "ema"
    teacher_update_rate: float = 0.05
    success_reward_threshold: float = 1.0
    dont_reprompt_on_self_success: bool = False
    remove_thinking_from_demonstration: bool = False
    include_environment_feedback: bool = False
    environment_feedback_only_without_solution: bool = False
    max_reprompt_len: int = 10240
    reprompt_truncation: str = "right"
    reprompt_template: str = (
        "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.\n"
    )
    solution_template: str = "\nCorrect solution:\n\n{successful_previous_attempt}\n\n"
    feedback_template: str = (
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}\n\n"
    )


@dataclass
class PolicyLossConfig:
    loss_mode: str = "vanilla"


@dataclass
class FSDPEngineConfig:
    dtype: str = "bfloat16"


@dataclass
class RolloutConfig:
    repetition_penalty: float = 1.0


@dataclass
class FSDPActorConfig:
    ppo_mini_batch_size: int = 256
    ppo_micro_batch_size_per_gpu: int = 1
    ppo_epochs: int = 1
    loss_agg_mode: str = "token-mean"
    grad_clip: float = 1.0
    entropy_coeff: float = 0.0
    calculate_entropy: bool = False
    use_kl_loss: bool = False
    kl_loss_coef: float = 0.001
    kl_loss_type: str = "low_var_kl"
    use_dynamic_bsz: bool = False
    ppo_max_token_len_per_gpu: int = 16384
    use_remove_padding: bool = False
    use_fused_kernels: bool = False
    strategy: str = "fsdp"
    rollout_n: int = 1
    use_torch_compile: bool = True
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    self_distillation: SelfDistillationConfig = field(default_factory=SelfDistillationConfig)
    fsdp_config: FSDPEngineConfig = field(default_factory=FSDPEngineConfig)
