"""Stand-in: the trainer's part that builds the teacher's prompt."""

from sdpo.reference import teacher_prompt as reference
from verl import DataProto


class RayPPOTrainer:
    """Sets the tokenizer's sides, and then refuses to go on without workers."""

    def __init__(self, config, tokenizer, role_worker_mapping, resource_pool_manager):
        self.config, self.tokenizer = config, tokenizer
        reference.set_tokenizer_sides(tokenizer, self.settings)
        raise AssertionError("no workers")

    @property
    def settings(self):
        return self.config["actor_rollout_ref"]["actor"]["self_distillation"]

    @staticmethod
    def _collect_feedback(infos, rows, settings):
        return reference.collect_feedback(infos, rows, settings)

    def _get_solution(self, idx, successes, uids, texts, settings):
        chosen = reference.choose_demonstration(idx, successes[uids[idx]], texts, settings)
        if chosen is None:
            return None
        return chosen.text

    def _maybe_build_self_distillation_batch(self, batch, rewards, infos=None):
        if self.config["actor_rollout_ref"]["actor"]["policy_loss"]["loss_mode"] != "sdpo":
            return None
        settings, prompts = self.settings, batch.non_tensor_batch["raw_prompt"]
        responses, uids = batch.batch["responses"], list(batch.non_tensor_batch["uid"])
        rows = range(len(responses))
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
        feedback = self._collect_feedback(infos, len(rows), settings)
        threshold = settings["success_reward_threshold"]
        successes = reference.successes_by_uid(rewards, uids, threshold)
        texts_chosen = [self._get_solution(i, successes, uids, texts, settings) for i in rows]
        chosen = [
            None if text is None else reference.Demonstration(0, text) for text in texts_chosen
        ]
        used = [
            reference.uses_feedback(given, demonstration, settings)
            for given, demonstration in zip(feedback, chosen, strict=True)
        ]
        messages = [
            reference.build_messages(
                prompts[i], chosen[i], feedback[i] if used[i] else None, settings
            )
            for i in rows
        ]
        kwargs = self.config["data"]["apply_chat_template_kwargs"]
        prompt = reference.encode_prompts(messages, self.tokenizer, settings, kwargs)
        tensors = reference.append_responses(*prompt, responses, batch.batch["response_mask"])
        mask = rewards.new_tensor(
            [float(chosen[i] is not None or used[i]) for i in rows], dtype=rewards.dtype
        )
        metrics = reference.batch_metrics(successes, chosen, feedback, used, mask)
        return DataProto({**tensors, "self_distillation_mask": mask}), metrics
