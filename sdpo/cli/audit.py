"""`sdpo audit`: compare a candidate with the reference, stage by stage."""


def audit() -> None:
    """Compare a candidate with the reference, stage by stage."""
    raise NotImplementedError
