import sys

import numpy as np
import pytest

from rlx.envs.base import make

RNG = np.random.default_rng(0)


@pytest.fixture
def library():
    return pytest.importorskip("reasoning_gym")


def gym(dataset="chain_sum", train_prompts=12, heldout_prompts=8, seed=0, **config):
    return make(
        "reasoning_gym",
        train_prompts=train_prompts,
        heldout_prompts=heldout_prompts,
        seed=seed,
        kwargs={"dataset": dataset, **config},
    )


def add_up(expression):
    """The value of `12 - 3 + 4`, read word by word."""
    total, sign = 0, 1
    for word in expression.split():
        if word in "+-":
            sign = 1 if word == "+" else -1
        else:
            total += sign * int(word)
    return total


def test_chain_sum_has_the_terms_asked_for_and_right_answers(library):
    env = gym(min_terms=3, max_terms=3, max_digits=2)
    for problem in env.train + env.heldout:
        question, end = problem.prompt[:-1], problem.prompt[-1]
        expression = question.split(": ")[1].removesuffix(" =")
        assert end == "\n" and len(expression.split()) == 5
        answer = add_up(expression)
        assert env.solution(problem, RNG, worked=False) == str(answer)
        assert env.solution(problem, RNG, worked=True) == str(answer)
        assert env.grade(problem, str(answer), True) == 1
        assert env.grade(problem, str(answer), False) == 0  # cut
        assert env.grade(problem, str(answer + 1), True) < 1
        assert env.grade(problem, "", True) == 0


@pytest.mark.parametrize("dataset", ["chain_sum", "gcd", "spell_backward", "countdown"])
def test_grades_are_the_librarys(library, dataset):
    env = gym(dataset)
    reference = library.create_dataset(dataset, seed=99, size=1)  # any seed: the entry decides
    grades = []
    for problem in env.heldout:
        right = problem.answer["answer"]
        for text in (right, f"{right} or so", "1", "zzz", "", right + right):
            expected = reference.score_answer(text, problem.answer)
            # rounding lets some of the library's sums of shares exceed 1
            assert env.grade(problem, text, True) == min(expected, 1)
            grades.append(expected)
    assert grades[::6] == [1.0] * len(env.heldout) and min(grades) < 0.5


def test_completions_are_stripped(library):
    env = gym("spell_backward")
    problem = env.heldout[0]
    padded = f" {problem.answer['answer']}\n"
    assert library.create_dataset("spell_backward").score_answer(padded, problem.answer) < 1
    assert env.grade(problem, padded, True) == 1


def test_text_that_the_librarys_grader_cannot_parse_scores_zero(library):
    env = gym("prime_factorization")
    problem = env.heldout[0]
    with pytest.raises(ValueError):
        library.create_dataset("prime_factorization").score_answer("zzz", problem.answer)
    assert env.grade(problem, "zzz", True) == 0
    assert env.grade(problem, problem.answer["answer"], True) == 1


@pytest.mark.parametrize(
    "score, grade",
    [(float("nan"), 0), (float("inf"), 0), (1.5, 1), (-0.5, 0), (0.25, 0.25), (None, 0), (True, 1)],
)
def test_scores_outside_the_unit_interval(library, monkeypatch, score, grade):
    env = gym()
    monkeypatch.setattr(env._dataset, "score_answer", lambda answer, entry: score)
    assert env.grade(env.heldout[0], "1", True) == grade


def test_questions_are_distinct_and_heldout_is_not_trained_on(library):
    # 90 of the 200 sums and differences of two digits: many are drawn more than once
    env = gym(min_terms=2, max_terms=2, max_digits=1, train_prompts=60, heldout_prompts=30)
    prompts = [p.prompt for p in env.train + env.heldout]
    assert len(set(prompts)) == len(prompts) == 90
    assert [p.id for p in env.train] == list(range(60))
    assert [p.id for p in env.heldout] == list(range(30))


def test_problems_depend_on_the_seed_alone(library):
    first, again, other = gym(seed=1), gym(seed=1), gym(seed=2)
    assert first.train == again.train and first.heldout == again.heldout
    assert first.tokenizer == again.tokenizer
    assert gym(seed=1, train_prompts=30).heldout == first.heldout
    # the library's entry i depends on seed + i, so naive neighbouring seeds share their entries
    prompts, others = ({p.prompt for p in env.train + env.heldout} for env in (first, other))
    assert not prompts & others


def test_tokenizer_covers_questions_and_answers_in_sorted_order(library):
    env = gym("spell_backward")
    problems = env.train + env.heldout
    for problem in problems:
        for text in (problem.prompt, env.solution(problem, RNG, worked=False)):
            assert env.tokenizer.decode(env.tokenizer.encode(text)) == text
    assert list(env.tokenizer.chars) == sorted(set(env.tokenizer.chars))
    lengths = [len(env.tokenizer.encode(p.prompt)) for p in problems]
    assert env.max_prompt_tokens == max(lengths) > min(lengths)


def test_tokenizer_covers_characters_that_only_answers_use(library):
    only_in_answers = 0
    for seed in range(4):
        env = gym(train_prompts=1, heldout_prompts=1, seed=seed, max_terms=2, max_digits=1)
        texts = [env.solution(p, RNG, worked=False) for p in env.train + env.heldout]
        questions = env.train[0].prompt + env.heldout[0].prompt
        only_in_answers += len(set("".join(texts)) - set(questions))
        assert all(env.tokenizer.encode(text) for text in texts)
    assert only_in_answers > 0


def test_dataset_that_follows_the_hash_seed_needs_it_fixed(library, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ValueError) as error:
        gym("word_ladder")
    assert str(error.value) == (
        "env.kwargs.dataset=word_ladder: its entries depend on Python's hash seed; "
        "set PYTHONHASHSEED=0 in the environment"
    )
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(gym("ransom_note").heldout) == 8


def test_dataset_without_reference_answers_can_be_graded_but_not_solved(library):
    env = gym("rush_hour", train_prompts=2, heldout_prompts=2)
    assert env.grade(env.heldout[0], "AA+1", True) < 1
    with pytest.raises(ValueError) as error:
        env.solution(env.heldout[0], RNG, worked=False)
    assert str(error.value) == (
        "env.kwargs.dataset=rush_hour: it has no reference answers; set warm_start.steps=0"
    )


def test_ceiling_is_unknown(library):
    env = gym()
    assert env.ceiling(env.heldout, 9) is None


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"dataset": "chain_sums"},
            "env.kwargs.dataset=chain_sums: unknown dataset; try chain_sum",
        ),
        ({"dataset": None}, "env.kwargs.dataset=None: unknown dataset; try "),
        (
            {"dataset": "qqqq"},
            "env.kwargs.dataset=qqqq: unknown dataset; try for example chain_sum",
        ),
        ({"min_term": 2}, "env.kwargs.min_term=2: unknown to chain_sum; try min_terms"),
        ({"qqqq": 2}, "env.kwargs.qqqq=2: unknown to chain_sum; try allow_negation, max_digits"),
        (
            {"min_terms": 0},
            "env.kwargs={'min_terms': 0}: min_terms must be positive; chain_sum needs other values",
        ),
        ({"min_terms": "two"}, "env.kwargs={'min_terms': 'two'}: '>' not supported"),
        (
            {"min_terms": 1, "max_terms": 1, "max_digits": 1, "heldout_prompts": 5},
            "env.train_prompts=12: 170 draws of chain_sum hold 10 distinct questions, "
            "not 17 with env.heldout_prompts=5; ask for fewer",
        ),
    ],
)
def test_errors(library, config, message):
    with pytest.raises(ValueError) as error:
        gym(**config)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_absent_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError) as error:
        gym()
    assert str(error.value).startswith("env.name=reasoning_gym: cannot import it (")
    assert str(error.value).endswith("; pip install 'rlx[gym]'")
