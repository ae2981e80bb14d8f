"""Stand-ins for the packages of `sdpo/parity/neighbours`: the same names, our own maths.

Each divergence is right; a top-k is the student's where the package takes logits of both sides.
"""

import sys
from types import ModuleType, SimpleNamespace

from sdpo.loss.divergence import divergence, sampled_token_divergence
from sdpo.loss.importance import importance
from sdpo.loss.support import log_probs, support, tail
from sdpo.parity.neighbours.packages import neighbours

OPD = '''
from nowhere import masked_mean, response_layout


def opd_loss_fn(data_pack, logprobs, *, kl_coef: float = 1.0, temperature: float = 1.0):
    """Right at temperature 1 only: sampled tokens with the ratio detached."""
    layout = response_layout(data_pack, logprobs, need_ref_logprobs=True)
    ratio = (logprobs - layout.ref_logprobs).detach() / temperature
    return masked_mean(ratio * logprobs, layout) * kl_coef, {}
'''
OPSD = """
import nothing_of_this_name


class OPSDTrainer(Unknown):
    @staticmethod
    def generalized_jsd_loss(
        student_logits, teacher_logits, labels=None, beta=0.5, temperature=1.0, top_k=None
    ) -> Unknown:
        if top_k:
            ids = torch.topk(student_logits, top_k).indices
            student_logits = student_logits.gather(-1, ids)
            teacher_logits = teacher_logits.gather(-1, ids)
        s = F.log_softmax(student_logits / temperature, -1)
        t = F.log_softmax(teacher_logits / temperature, -1)
        if beta in (0, 1):
            to, of = (s, t) if beta == 0 else (t, s)
            loss = F.kl_div(to, of, reduction="none", log_target=True).sum(-1)
        else:
            m = torch.logaddexp(s + torch.tensor(1 - beta).log(), t + torch.tensor(beta).log())
            loss = sum(w * (x.exp() * (x - m)).sum(-1) for w, x in ((beta, t), (1 - beta, s)))
        mask = labels != -100
        return (loss * mask).sum() / mask.sum().clamp(min=1)
"""


def _jsd(student, teacher, alpha, temperature=1.0):
    return divergence(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        alpha=alpha,
    )


def _mean(loss, mask):
    mask = mask != 0
    return loss.where(mask, 0).sum() / mask.sum().clamp(min=1)


class TeacherOutput:
    """Keeps the top-k entries that it is told, in place of all."""

    def __init__(self, full_logits, labels):
        self.full_logits, self.labels, self.k = full_logits, labels, None

    def to_topk(self, k):
        self.k = k
        return self


def gkd_loss(student_logits, teacher_output, labels, beta, temperature):
    teacher = teacher_output.full_logits
    if teacher_output.k:
        ids = student_logits.topk(teacher_output.k).indices
        student_logits, teacher = student_logits.gather(-1, ids), teacher.gather(-1, ids)
    mask = labels != -100
    loss = _jsd(student_logits, teacher, beta, temperature).where(mask, 0).sum()
    return loss, mask.sum()


def generalized_jsd_loss(student_logits, teacher_logits, labels, beta, temperature):
    return _mean(_jsd(student_logits, teacher_logits, beta, temperature), labels != -100)


def _topk(student, teacher, *, distillation_topk, distillation_alpha, distillation_add_tail):
    _, s, t = support(student, teacher, distillation_topk=distillation_topk)
    s, t = (tail(x, distillation_add_tail=distillation_add_tail) for x in (s, t))
    return divergence(s, t, alpha=distillation_alpha)


def _sampled(student, teacher, ids, *, distillation_alpha):
    assert distillation_alpha == 1
    return sampled_token_divergence(log_probs(student, ids), log_probs(teacher, ids))


def _chunked(s, t, s_head, t_head, completion_mask, beta, temperature):
    loss = _mean(_jsd(s @ s_head.T, t @ t_head.T, beta, temperature), completion_mask)
    return loss, None, None


class FusedJSD:
    def __init__(self, **settings):
        assert settings.pop("weight_hard_loss") == 0
        assert settings.pop("weight_soft_loss") == 1
        assert not settings.pop("compiled")
        self.settings = settings

    def __call__(self, student, student_head, teacher, teacher_head, labels):
        logits = student @ student_head.T, teacher @ teacher_head.T
        loss = _jsd(*logits, self.settings["beta"], self.settings["temperature"])
        return _mean(loss, labels != -100)


def kl_divergence(log_q, log_p):
    return divergence(log_q, log_p, alpha=0.0)


def compute_forward_kl_topk(
    student_logits, teacher_topk_log_probs, teacher_topk_ids, config, data_format
):
    """On all entries, where it is given all of them: there nothing is left to renormalise."""
    assert (config.distillation_loss.loss_mode, data_format) == ("forward_kl_topk", "thd")
    theirs, ids = teacher_topk_log_probs.values(), teacher_topk_ids.values()
    own = student_logits[0].log_softmax(-1).gather(-1, ids)
    return {"distillation_losses": divergence(own, theirs, alpha=0.0).unsqueeze(0)}


def compute_sdpo_loss(given):
    own = given.student_logits.log_softmax(-1)
    sampled = own.gather(-1, given.response_ids.unsqueeze(-1)).squeeze(-1)
    if given.training["alpha"] == 1:
        match = given.teacher_indices == given.response_ids.unsqueeze(-1)
        loss = sampled_token_divergence(sampled, given.teacher_logprobs.where(match, 0).sum(-1))
    else:
        own = own.gather(-1, given.teacher_indices)
        loss = _jsd(own, given.teacher_logprobs, given.training["alpha"])
    loss = importance(
        loss,
        student_log_probs=sampled,
        old_log_probs=given.old_student_logprobs,
        is_clip=given.training["is_clip"],
    )
    return {"loss": _mean(loss, given.response_mask)}


class SDPOLoss:
    def __init__(self, kl_top_k):
        self.k = kl_top_k

    def _chunk_loss(self, model, batch, rows, width, tokens):
        sides = (model(input_ids=batch[f"{side}_ids"][rows]).logits[:, :-1] for side in "st")
        loss = _topk(
            *sides,
            distillation_topk=self.k,
            distillation_alpha=1.0,
            distillation_add_tail=True,
        )
        return (loss * batch["action_mask"][rows]).sum() / tokens


_UTILITIES = {
    "compute_full_logit_self_distillation_loss": lambda s, t, *, distillation_alpha: _jsd(
        s, t, distillation_alpha
    ),
    "compute_topk_self_distillation_loss": _topk,
    "compute_sampled_token_self_distillation_loss": _sampled,
    "apply_importance_sampling_clipping": lambda loss, own, old, clip: importance(
        loss, student_log_probs=own, old_log_probs=old, is_clip=clip
    ),
}
MODULES = {
    "swift.rlhf_trainers.gkd_loss": {"gkd_loss": gkd_loss, "TeacherOutput": TeacherOutput},
    "trl.experimental.gkd.gkd_trainer": {
        "GKDTrainer": SimpleNamespace(generalized_jsd_loss=generalized_jsd_loss)
    },
    "trl.experimental.sdft.loss_utils": _UTILITIES,
    "trl.experimental.sdpo.loss_utils": _UTILITIES,
    "trl.trainer.distillation_trainer": {"_chunked_divergence_loss": _chunked},
    "liger_kernel.chunked_loss.jsd_loss": {"LigerFusedLinearJSDLoss": FusedJSD},
    "verl.trainer.distillation.fsdp.losses": {
        "kl_divergence": kl_divergence,
        "compute_forward_kl_topk": compute_forward_kl_topk,
        "DistillationLossConfig": SimpleNamespace,
    },
    "claas.training.sdpo_loss": {
        "compute_sdpo_loss": compute_sdpo_loss,
        "SDPOLossInput": SimpleNamespace,
    },
    "loss": {"SDPOLoss": SDPOLoss},
}


def install(monkeypatch, folder):
    """Put all stand-ins in place of the packages; files of two go to `folder`, on the path."""
    for name, values in MODULES.items():
        module = ModuleType(name)
        vars(module).update(values)
        for end in range(1, name.count(".") + 1):
            parent = ".".join(name.split(".")[:end])
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)
    for path, text in (("areno/api/loss_fns/opd.py", OPD), ("opsd_trainer.py", OPSD)):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


def forget_wrappers():
    """Have the wrappers imported anew, with the packages that are there then."""
    for name in {row.candidate.partition(":")[0] for row in neighbours().values()}:
        sys.modules.pop(name, None)
