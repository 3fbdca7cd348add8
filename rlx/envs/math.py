r"""Mathematics with short answers, from a file or a hub; graded by rlx.envs.answers.

Known layouts: GSM8K (`question`, and an `answer` that ends in `#### 72`), MATH (`problem`, and a
`solution` with `\boxed{}`), Polaris and DeepScaleR (`problem`, `answer`).

Integrals, for example, can take the library long, so grade in separate processes
(rlx.envs.grading).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rlx.envs import answers, base, data
from rlx.problem import Problem

PROMPTS, ANSWERS = ("question", "problem", "prompt"), ("answer", "solution")
CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's annotations


class Math:
    """`Problem.answer` is (answer, reference text). Raises InputError on data that cannot be used.

    `boxed=True` accepts only `\\boxed{}`. Without `heldout_path` held-out problems are drawn from
    the same rows. Prompts of more than `max_prompt_chars` are excluded, since the longest prompt
    sets the width of a batch.
    """

    def __init__(
        self,
        *,
        train_prompts: int,
        heldout_prompts: int,
        seed: int,
        path: str | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        split: str = "train",
        heldout_path: str | None = None,
        max_prompt_chars: int = 0,
        prompt_field: str | None = None,
        answer_field: str | None = None,
        boxed: bool = False,
    ):
        answers.library()
        rows = data.source_rows(path, dataset, subset, split)
        fields = ([prompt_field] if prompt_field else PROMPTS,)
        fields += ([answer_field] if answer_field else ANSWERS,)
        self.boxed = boxed
        self.train, self.heldout = data.divide(
            [pair(row, *fields) for row in rows],
            train_prompts=train_prompts,
            heldout_prompts=heldout_prompts,
            seed=seed,
            source=str(path or dataset),
            longest=max_prompt_chars,
            heldout_pool=heldout_path
            and [pair(row, *fields) for row in data.rows(heldout_path, "env.kwargs.heldout_path")],
        )
        self.downstream: dict[str, list[Problem]] = {}
        problems = self.heldout + self.train
        self.tokenizer: base.TextTokenizer = base.characters(
            text for p in problems for text in (p.prompt, p.answer[1], boxed_text(p.answer[0]))
        )
        self.max_prompt_tokens = max(len(p.prompt) for p in problems)

    def grade(self, problem: Problem, completion: str, stopped: bool) -> float:
        """1 if the sample stopped and its answer agrees with the reference, else 0."""
        if not stopped:
            return 0.0
        answer = answers.final_answer(completion, self.boxed)
        return float(answer is not None and answers.same(problem.answer[0], answer, problem.prompt))

    def well_formed(self, completion: str, stopped: bool) -> bool:
        """Whether it stopped and gives an answer."""
        return stopped and answers.final_answer(completion, self.boxed) is not None

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        r"""The reference's text if `worked`, else `\boxed{answer}`; `rng` is not used."""
        answer, text = problem.answer
        return text if worked else boxed_text(answer)

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int) -> None:
        """None: the best score within a length limit is unknown."""
        return None


def boxed_text(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def pair(row: data.Row, prompt_fields: Sequence[str], answer_fields: Sequence[str]):
    """(prompt, (answer, reference text)) of a row."""
    prompt = data.text_field(row, prompt_fields, "prompt_field")
    text = CALCULATOR.sub("", data.text_field(row, answer_fields, "answer_field"))
    if "####" in text:
        answer = text.rpartition("####")[2].strip()
    else:
        answer = answers.last_box(text) if answers.BOX.search(text) else text
    if not answer:
        remedy = "set env.kwargs.answer_field or fix it"
        raise data.bad_row(row[0], "ends without an answer", remedy)
    worked = text if answer != text else boxed_text(answer)
    return prompt + "\n", (answer.strip("$ "), worked)
