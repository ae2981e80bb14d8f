"""Programs say what they do, and their code does it."""

from sdpo.benchmark.embedded.generate_problems import value_of
from sdpo.benchmark.embedded.language import CONDITIONS, VERBS, Program, Step, families

VERB = {(verb.word, verb.kind): verb for verb in VERBS}
SORT, SKIP = VERB["sort", "list"], VERB["skip", "list"]
ZORP, GLIM = VERB["zorp", "number"], CONDITIONS[1]


def test_steps_follow_one_another():
    program = Program("work", (Step(SORT), Step(SKIP, 2)))
    assert program.text == "Write a function work for a list. First sort it, then skip it by 2."
    assert program.code((0, 0)) == "def work(a):\n    a = sorted(a)\n    a = a[2:]\n    return a\n"
    assert value_of(program.code((0, 0)), "work", [4, 1, 3]) == [4]
    assert program.family == "list: sort skip"


def test_a_condition_chooses_a_branch():
    """glim: above or below; zorp: plus, minus or times. The problem set fixes below and times."""
    program = Program("task", (Step(ZORP, 3), Step(VERB["square", "number"])), Step(GLIM, 5))
    assert program.text.endswith("If it is glim 5, zorp it by 3, otherwise square it.")
    assert program.actual == (1, 2, 0)
    values = [value_of(program.code(program.actual), "task", x) for x in (4, 6)]
    assert values == [12, 36]
    assert len(program.meanings()) == 2 * 3


def test_a_verb_that_occurs_twice_means_the_same_both_times():
    program = Program("task", (Step(ZORP, 2), Step(ZORP, 3)))
    assert program.meanings() == [(0, 0), (1, 1), (2, 2)]


def test_a_family_is_a_single_verb_or_a_pair_of_one_kind():
    for condition, verbs in families():
        assert len({verb.kind for verb in verbs}) == 1
        assert not any(verb.last for verb in verbs[:-1])
        assert condition is None or verbs[0].kind == "number"
