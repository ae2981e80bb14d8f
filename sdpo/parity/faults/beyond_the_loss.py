"""Faults outside the loss: data path, accumulation, optimizer, teacher.

Each is planted and found in the test that its entry names; those of a trainer's step are also
recognised in audits of trainers (`trainers/judge/known_faults.py`).
"""

from sdpo.parity.faults.reference_parts import Fault

UPDATE_TESTS = "tests/equivalence/test_update_faults.py"
PROMPT_TESTS = "tests/equivalence/test_reprompt_faults.py"
TRAINER_TESTS = "tests/sensitivity/test_trainer_faults.py"


def elsewhere(id_: str, name: str, group: str, stage: str, source: str, proof: str) -> Fault:
    """A fault outside the loss."""
    return Fault(id_, name, group, stage, source, proof=proof)


OUTSIDE = (
    elsewhere(
        "M11",
        "missing ÷ accumulation steps",
        "aggregation",
        "accumulate",
        "TRL #4935",
        f"{UPDATE_TESTS}: loss not divided by accumulation",
    ),
    elsewhere(
        "M12",
        "accumulation scaled twice",
        "aggregation",
        "accumulate",
        "design",
        "tests/parity/faults/test_beyond_the_loss.py: accumulation scaled twice",
    ),
    elsewhere(
        "M24",
        "rate of the average inverted",
        "teacher",
        "teacher_update",
        "TRL #4935, a claim that the code contradicts",
        f"{UPDATE_TESTS}: teacher rate inverted",
    ),
    elsewhere(
        "M25",
        "teacher averaged per micro-batch",
        "teacher",
        "log_probs",
        "lightly-train #968",
        f"{UPDATE_TESTS}: teacher averaged per micro-batch; the second micro-batch sees it first",
    ),
    elsewhere(
        "M26",
        "dropout active in the teacher",
        "teacher",
        "log_probs",
        "TRL #5990",
        f"{TRAINER_TESTS}: M26",
    ),
    elsewhere(
        "M27",
        "system message dropped",
        "data path",
        "teacher_prompt",
        "sdpo-rl 1d101cc, fixed there",
        f"{PROMPT_TESTS}: M27 system message dropped",
    ),
    elsewhere(
        "M28",
        "success threshold 1.0 for 0.5",
        "data path",
        "demonstration",
        "the reference's own default layers",
        f"{PROMPT_TESTS}: M28 threshold 1.0",
    ),
    elsewhere(
        "M29",
        "own success reused as demonstration",
        "data path",
        "demonstration",
        "design",
        f"{PROMPT_TESTS}: M29 own success reused",
    ),
    elsewhere(
        "M30",
        "left instead of right truncation",
        "data path",
        "teacher_tokens",
        "design",
        f"{PROMPT_TESTS}: M30 left truncation",
    ),
    elsewhere(
        "M106",
        "thinking kept in the demonstration",
        "data path",
        "demonstration",
        "design",
        f"{TRAINER_TESTS}: M106",
    ),
    elsewhere(
        "M107",
        "feedback beside a demonstration",
        "data path",
        "teacher_prompt",
        "design",
        f"{TRAINER_TESTS}: M107",
    ),
    elsewhere(
        "M108",
        "feedback ignored",
        "data path",
        "feedback",
        "design",
        f"{TRAINER_TESTS}: M108",
    ),
    elsewhere(
        "M109",
        "teacher averaged per optimizer step",
        "teacher",
        "log_probs",
        "design",
        f"{TRAINER_TESTS}: M109",
    ),
    elsewhere(
        "M110",
        "teacher never updated",
        "teacher",
        "teacher_update",
        "design",
        f"{TRAINER_TESTS}: M110",
    ),
    elsewhere(
        "M111",
        "teacher is a copy of the student",
        "teacher",
        "teacher_update",
        "design",
        f"{TRAINER_TESTS}: M111",
    ),
    elsewhere(
        "M112",
        "average starts from zero",
        "teacher",
        "teacher_update",
        "design",
        f"{TRAINER_TESTS}: M112",
    ),
    elsewhere(
        "M116",
        "teacher answers with the live student's weights",
        "teacher",
        "log_probs",
        "sdpo-rl 0.0.3 with trl 1.16, found by this audit",
        f"{TRAINER_TESTS}: M116",
    ),
    elsewhere(
        "M117",
        "reward compared with the threshold in float64",
        "data path",
        "demonstration",
        "trl 1.16 and sdpo-rl 0.0.3, found by this audit",
        f"{TRAINER_TESTS}: M117",
    ),
    elsewhere(
        "M113",
        "a step with a gradient that is not finite is taken",
        "optimizer",
        "optimizer",
        "design",
        f"{TRAINER_TESTS}: M113",
    ),
    elsewhere(
        "M114",
        "gradient not clipped",
        "optimizer",
        "optimizer",
        "design",
        f"{TRAINER_TESTS}: M114",
    ),
)
