"""What is known of a checkout of verl: its settings, and its functions on recorded cases."""

import msgspec


class FunctionResult(msgspec.Struct, frozen=True):
    """One function of a checkout on the recorded cases that it can be given.

    Attributes:
        name: under which the recorded commit has it.
        cases: how many it was given; none where the checkout has no such function.
        equal: how many of them have the recorded bits.
        largest: the largest distance from the recorded value, as a share of the larger of both, in
            the norm.
        worst: the case of that distance.
        one_side_finite: cases in which an entry is finite on one side alone.
        problem: what it raised, and on which case.
    """

    name: str
    cases: int = 0
    equal: int = 0
    largest: float = 0.0
    worst: str = ""
    one_side_finite: int = 0
    problem: str = ""


class CheckoutDescription(msgspec.Struct, frozen=True):
    """A checkout.

    Attributes:
        name: of its folder.
        state: its commit, and whether files were modified.
        version: what its package says.
        has_sdpo: whether it has the fork's settings of self-distillation.
        layers: settings by layer and name, as texts; layers that it does not have are left out.
        functions: its functions on recorded cases.
    """

    name: str
    state: str
    version: str
    has_sdpo: bool
    layers: dict[str, dict[str, str]]
    functions: list[FunctionResult]
