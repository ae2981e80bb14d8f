"""Records a recipe of any family."""

from functools import cached_property
from typing import Any

from sdpo.fixtures import GoldenFamily, packaged_family
from sdpo.fixtures.models import load_tokenizer
from sdpo.parity.record.recipes import Recipe, Recording
from sdpo.parity.record.record_loss import record_loss
from sdpo.parity.record.record_prompt import record_prompt
from sdpo.parity.record.record_update import record_update


class CaseRecorder:
    """Runs recipes through the fork, with the packaged models and tokenizer."""

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the packaged prompts were recorded with."""
        return load_tokenizer(packaged_family("reprompt"))

    @cached_property
    def models(self) -> GoldenFamily:
        """The family that holds the models' initial weights."""
        return packaged_family("update")

    def record(self, recipe: Recipe) -> Recording:
        """Run one recipe."""
        if recipe.family == "loss":
            return record_loss(recipe)
        if recipe.family == "reprompt":
            return record_prompt(recipe, self.tokenizer)
        return record_update(recipe, self.models)
