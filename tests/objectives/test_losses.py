"""Each loss against figures of another implementation, hand-worked numbers and a NumPy loop.

Gradients are compared element by element: a loss can have the right value and a wrong gradient.
"""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlx.objectives.losses import LOSSES, cispo, gspo, policy_objective, ppo_clip, reinforce
from rlx.objectives.weights import weights

DATA = Path(__file__).parents[1] / "data"
GOLDEN = dict(np.load(DATA / "expected.npz")) | dict(np.load(DATA / "expected2.npz"))
GOLDEN_INPUTS = dict(np.load(DATA / "inputs.npz"))
NUMBERS = {
    "clip_low": 0.2, "clip_high": 0.3, "is_cap": 1.5, "tau_positive": 1.0, "tau_negative": 1.5
}  # fmt: skip
RATIOS = [kind for kind in LOSSES if kind != "tbrm"]  # tests/objectives/test_terms.py has it
AGGREGATIONS = ("token_mean", "sample_mean", "prompt_mean", "fixed_length")


def value_and_grad(loss, weight_BT, logp_BT, *args, **numbers):
    """Of the objective sum(weight * obj), with respect to logp."""

    def objective(logp_BT):
        obj_BT, info = loss(logp_BT, *args, **numbers)
        return jnp.sum(weight_BT * obj_BT), (obj_BT, info)

    (value, (obj_BT, info)), grad_BT = jax.value_and_grad(objective, has_aux=True)(logp_BT)
    return value, grad_BT, obj_BT, info


def random_batch(seed=0, B=8, T=5, spread=0.6):
    """Ragged rows with holes; prompt 1 of 4 is dropped, and one row of prompt 2 is empty."""
    rng = np.random.default_rng(seed)
    logp_BT = -rng.exponential(1.0, (B, T))
    behavior_logp_BT = np.minimum(logp_BT + rng.normal(0, spread, (B, T)), -1e-3)
    adv_BT = np.broadcast_to(rng.normal(size=(B, 1)), (B, T))
    mask_BT = np.arange(T) < rng.integers(1, T + 1, (B, 1))
    mask_BT = mask_BT & (rng.random((B, T)) < 0.8)
    mask_BT[:, 0] = True
    mask_BT[2:4] = False
    mask_BT[4] = False
    return tuple(x.astype(np.float32) for x in (logp_BT, behavior_logp_BT, adv_BT, mask_BT))


# --- figures of another implementation ------------------------------------------------------------


def golden_losses():
    return sorted({key.rsplit("/", 1)[0] for key in GOLDEN if key.endswith("/loss")})


def golden_call(name):
    """`kind_number_number/aggregation` -> loss with its numbers, arguments of `weights`."""
    recipe, aggregation = name.split("/")
    if recipe.startswith("cispo_cap"):
        loss = partial(cispo, is_cap=float(recipe.removeprefix("cispo_cap")))
    else:
        kind, low, high = recipe.rsplit("_", 2)
        given = {"clip_low": float(low), "clip_high": float(high), "is_cap": 20.0}
        given |= {"tau_positive": float(low), "tau_negative": float(high)}
        loss = partial(policy_objective, kind, **given)
    known = {"fixed_length_T": ("fixed_length", 9), "sequence": ("sample_mean", None)}
    kind, length = known.get(aggregation, (aggregation, None))
    return loss, {"kind": kind, "length": length}


def test_every_golden_figure_is_used():
    losses = {f"{name}/{what}" for name in golden_losses() for what in ("loss", "grad_BT")}
    others = {key for key in GOLDEN if key.startswith(("advantage/", "gae_"))}
    assert losses | others == set(GOLDEN)  # test_advantages.py takes the others
    assert len(golden_losses()) == 17 + 15


@pytest.mark.parametrize("name", golden_losses())
def test_golden(name):
    loss, reduction = golden_call(name)
    x = GOLDEN_INPUTS
    mask_BT = x["mask_BT"]
    adv_BT = np.broadcast_to(x["adv_B"][:, None], mask_BT.shape)
    weight_BT = weights(mask_BT, x["prompt_B"], **reduction)
    value, grad_BT, *_ = value_and_grad(
        loss, weight_BT, x["logp_BT"], x["behavior_logp_BT"], adv_BT, mask_BT
    )
    # golden losses are minimised, ours are objectives to maximise
    assert_allclose(-value, GOLDEN[f"{name}/loss"], rtol=1e-5, atol=1e-6)
    assert_allclose(-grad_BT, GOLDEN[f"{name}/grad_BT"], rtol=1e-5, atol=1e-7)


# --- numbers worked by hand -----------------------------------------------------------------------

LOGP = np.log(np.array([[0.5, 0.3, 0.2], [0.5, 0.1, 0.9]], np.float32))
BEHAVIOR = np.log(np.array([[0.25, 0.3, 0.4], [0.25, 0.2, 0.1]], np.float32))
ADV = np.array([[1, 1, 1], [-2, -2, -2]], np.float32)
MASK = np.array([[1, 1, 1], [1, 1, 0]], np.float32)
# rho = 0.5/0.25, 0.3/0.3, 0.2/0.4  =  2  1  0.5
#       0.5/0.25, 0.1/0.2, masked   =  2  0.5  -


def test_reinforce_by_hand():
    value, grad_BT, obj_BT, info = value_and_grad(reinforce, 1.0, LOGP, BEHAVIOR, ADV, MASK)
    # A log p: ln 0.5 = -0.693147, ln 0.3 = -1.203973, ln 0.2 = -1.609438; -2 ln 0.1 = 4.605170
    assert_allclose(obj_BT, [[-0.693147, -1.203973, -1.609438], [1.386294, 4.605170, 0]], rtol=1e-5)
    assert_allclose(value, 2.484906, rtol=1e-5)  # their sum
    assert_allclose(grad_BT, [[1, 1, 1], [-2, -2, 0]])  # A
    assert_allclose(info["ratio_BT"], [[2, 1, 0.5], [2, 0.5, 1]], rtol=1e-6)
    assert_array_equal(info["clipped_BT"], np.zeros((2, 3)))


def test_ppo_clip_by_hand():
    value, grad_BT, obj_BT, info = value_and_grad(
        partial(ppo_clip, clip_low=0.2, clip_high=0.3), 1.0, LOGP, BEHAVIOR, ADV, MASK
    )
    # A = 1:  min(2, 1.3) = 1.3 clipped; min(1, 1) = 1; min(0.5, 0.8) = 0.5
    # A = -2: min(-4, -2.6) = -4, the clip does not help a bad token that grew;
    #         min(-1, -1.6) = -1.6 clipped
    assert_allclose(obj_BT, [[1.3, 1, 0.5], [-4, -1.6, 0]], rtol=1e-6)
    assert_allclose(value, -2.8, rtol=1e-6)
    # d(rho A)/d logp = rho A where free, 0 where clipped
    assert_allclose(grad_BT, [[0, 1, 0.5], [-4, 0, 0]], rtol=1e-6)
    assert_allclose(info["ratio_BT"], [[2, 1, 0.5], [2, 0.5, 1]], rtol=1e-6)
    assert_array_equal(info["clipped_BT"], [[1, 0, 0], [0, 1, 0]])


def test_cispo_by_hand():
    value, grad_BT, obj_BT, info = value_and_grad(
        partial(cispo, is_cap=1.5), 1.0, LOGP, BEHAVIOR, ADV, MASK
    )
    # min(rho, 1.5) = 1.5, 1, 0.5; 1.5, 0.5.  Objective: that times A log p
    #   1.5 * -0.693147 = -1.039721, -1.203973, 0.5 * -1.609438 = -0.804719
    #   1.5 * 1.386294 = 2.079442, 0.5 * 4.605170 = 2.302585
    assert_allclose(obj_BT, [[-1.039721, -1.203973, -0.804719], [2.079442, 2.302585, 0]], rtol=1e-5)
    assert_allclose(value, 1.333614, rtol=1e-5)
    # gradient: min(rho, 1.5) A, at clipped tokens too
    assert_allclose(grad_BT, [[1.5, 1, 0.5], [-3, -1, 0]], rtol=1e-6)
    assert_allclose(info["ratio_BT"], [[2, 1, 0.5], [2, 0.5, 1]], rtol=1e-6)
    assert_array_equal(info["clipped_BT"], [[1, 0, 0], [1, 0, 0]])


def test_gspo_by_hand():
    behavior = np.log(np.array([[0.25, 0.15, 0.2], [0.5, 0.4, 0.1]], np.float32))
    value, grad_BT, obj_BT, info = value_and_grad(
        partial(gspo, clip_low=0.6, clip_high=0.3), 1.0, LOGP, behavior, ADV, MASK
    )
    # row 0: rho = 2, 2, 1;  s = 4^(1/3) = 1.587401 > 1.3 and A > 0: clipped at 1.3, no gradient
    # row 1: rho = 1, 1/4 (3rd masked);  s = (1/4)^(1/2) = 0.5 in [0.4, 1.3]: free
    #        obj = 0.5 * -2 = -1 per token; d obj/d logp_t = s A / 2 = -0.5 from each of 2 tokens
    assert_allclose(obj_BT, [[1.3, 1.3, 1.3], [-1, -1, 0]], rtol=1e-6)
    assert_allclose(value, 1.9, rtol=1e-6)
    assert_allclose(grad_BT, [[0, 0, 0], [-1, -1, 0]], rtol=1e-6)
    assert_allclose(info["ratio_BT"], [[1.587401] * 3, [0.5, 0.5, 1]], rtol=1e-6)
    assert_array_equal(info["clipped_BT"], [[1, 1, 1], [0, 0, 0]])


def test_gates_by_hand():
    """q = 0.5 and p as given; A of either sign: what is shut, and the gradient of what is not."""
    p_T = np.float32([0.1, 0.3, 0.45, 0.55, 0.7, 0.9])  # rho = 0.2, 0.6, 0.9, 1.1, 1.4, 1.8
    logp_BT, behavior_logp_BT = np.log([p_T, p_T]), np.log(np.full((2, 6), 0.5, np.float32))
    adv_BT = np.float32([[1] * 6, [-1] * 6])
    clip = {"clip_low": 0.15, "clip_high": 0.25}
    both = [1, 1, 0, 0, 1, 1]
    expected = {  # the row of A = 1, then that of A = -1
        "double_sided": (both, both),
        "dppo_tv": ([0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0]),  # 0.9 - 0.5 > 0.25; 0.5 - 0.3 > 0.15
        # D = 0.5 log(0.25 / p / (1 - p)) = 0.511 at 0.1 and 0.9, 0.087 at 0.3 and 0.7,
        # 0.005 at 0.45 and 0.55
        "dppo_kl": ([0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]),
    }
    for kind, shut in expected.items():
        loss = partial(policy_objective, kind, **clip, is_cap=1.5)
        _, grad_BT, _, info = value_and_grad(
            loss, 1.0, logp_BT, behavior_logp_BT, adv_BT, np.ones((2, 6), np.float32)
        )
        assert_array_equal(info["clipped_BT"], shut)
        ratio_T = p_T / 0.5 if kind == "double_sided" else np.minimum(p_T / 0.5, 1.5)
        assert_allclose(grad_BT, adv_BT * ratio_T * (1 - np.array(shut)), rtol=1e-6)


def test_a_policy_that_is_certain_of_its_token_has_a_divergence():
    """1 - p rounds to 0: nothing is NaN, and a token that was sure is no longer shut or lost."""
    logp_BT, behavior_logp_BT = np.float32([[0, -1e-9, -1]]), np.float32([[-1, 0, 0]])
    loss = partial(policy_objective, "dppo_kl", clip_low=0.1, clip_high=0.1, is_cap=20.0)
    one = np.ones((1, 3), np.float32)
    _, grad_BT, _, info = value_and_grad(loss, 1.0, logp_BT, behavior_logp_BT, one, one)
    assert_array_equal(info["clipped_BT"], [[1, 0, 0]])  # it rose from 0.37 to 1
    assert_allclose(grad_BT, [[0, 1, np.exp(-1)]], rtol=1e-6)


# --- a float64 loop -------------------------------------------------------------------------------


# What token i of a sequence adds: log-probs of its tokens under the learner, the same held constant
# and those of the sampler; the advantage.
LOW, HIGH, CAP = (NUMBERS[name] for name in ("clip_low", "clip_high", "is_cap"))


def pessimistic(rho, a):
    return min(rho * a, min(max(rho, 1 - LOW), 1 + HIGH) * a)


def loop_gmpo(logp, held, behavior, a, i):
    bounded = [
        min(x - y, HIGH) if a > 0 else max(x - y, -LOW) for x, y in zip(logp, behavior, strict=True)
    ]
    return a * math.prod(math.exp(x) for x in bounded) ** (1 / len(bounded))


def loop_sapo(logp, held, behavior, a, i):
    tau = NUMBERS["tau_positive" if a > 0 else "tau_negative"]
    return a * 4 / tau / (1 + math.exp(-tau * (math.exp(logp[i] - behavior[i]) - 1)))


def loop_double_sided(logp, held, behavior, a, i):
    rho = math.exp(held[i] - behavior[i])
    return rho * a * logp[i] if 1 - LOW < rho < 1 + HIGH else 0.0


def loop_dppo(divergence, logp, held, behavior, a, i):
    p, q = math.exp(held[i]), math.exp(behavior[i])
    far = divergence(p, q) > (HIGH if a > 0 else LOW) and (p - q) * a > 0
    return 0.0 if far else min(p / q, CAP) * a * logp[i]


def binary_kl(p, q):
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


LOOPS = {
    "reinforce": lambda logp, held, behavior, a, i: a * logp[i],
    "cispo": lambda logp, held, behavior, a, i: (
        min(math.exp(held[i] - behavior[i]), CAP) * a * logp[i]
    ),
    "ppo_clip": lambda logp, held, behavior, a, i: pessimistic(math.exp(logp[i] - behavior[i]), a),
    "gspo": lambda logp, held, behavior, a, i: pessimistic(
        math.exp((sum(logp) - sum(behavior)) / len(logp)), a
    ),
    "gmpo": loop_gmpo,
    "sapo": loop_sapo,
    "double_sided": loop_double_sided,
    "dppo_tv": partial(loop_dppo, lambda p, q: abs(p - q)),
    "dppo_kl": partial(loop_dppo, binary_kl),
}


def loop_objective(kind, aggregation, logp, held_logp, behavior, adv, mask, prompt, length):
    """Sum over prompts, sequences and tokens; `held_logp` is logp where it is held constant."""
    tokens = {
        p: {
            b: [t for t in range(logp.shape[1]) if mask[b, t]]
            for b in range(len(logp))
            if prompt[b] == p
        }
        for p in set(prompt)
    }
    n_prompt = {p: sum(len(ts) for ts in rows.values()) for p, rows in tokens.items()}
    n_total = sum(n_prompt.values())
    kept_prompts = sum(n > 0 for n in n_prompt.values())
    kept_rows = sum(len(ts) > 0 for rows in tokens.values() for ts in rows.values())
    total = 0.0
    for p, rows in tokens.items():
        for b, ts in rows.items():
            for t in ts:
                obj = LOOPS[kind](
                    [logp[b, i] for i in ts], [held_logp[b, i] for i in ts],
                    [behavior[b, i] for i in ts], adv[b, t], ts.index(t),
                )  # fmt: skip
                total += (
                    obj
                    / {
                        "token_mean": n_total,
                        "sample_mean": len(ts) * kept_rows,
                        "prompt_mean": n_prompt[p] * kept_prompts,
                        "fixed_length": kept_rows * length,
                    }[aggregation]
                )
    return total


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kind", RATIOS)
def test_loop(kind, aggregation):
    batch = random_batch()
    prompt_B = np.arange(8) // 2
    weight_BT = weights(batch[-1], prompt_B, kind=aggregation, length=7)
    value, grad_BT, _, info = value_and_grad(
        partial(policy_objective, kind, **NUMBERS), weight_BT, *batch
    )
    assert (info["clipped_BT"].sum() > 0) == LOSSES[kind].clips

    logp, behavior, adv, mask = (x.astype(np.float64) for x in batch)
    loop = partial(loop_objective, kind, aggregation)
    rest = (logp, behavior, adv, mask, prompt_B, 7)
    expected_grad_BT = np.zeros_like(logp)
    for index in np.ndindex(*logp.shape):  # central differences
        h = np.zeros_like(logp)
        h[index] = 1e-6
        expected_grad_BT[index] = (loop(logp + h, *rest) - loop(logp - h, *rest)) / 2e-6
    assert np.abs(expected_grad_BT).max() > 1e-2
    assert_allclose(value, loop(logp, *rest), rtol=1e-5)
    assert_allclose(grad_BT, expected_grad_BT, rtol=1e-5, atol=1e-7)


# --- relations ------------------------------------------------------------------------------------


def test_on_policy_gradients_coincide():
    logp_BT, _, adv_BT, mask_BT = random_batch()
    for loss in (
        reinforce,
        partial(ppo_clip, clip_low=0.2, clip_high=0.3),
        partial(ppo_clip, clip_low=0.0, clip_high=0.0),
        partial(cispo, is_cap=1.5),
        partial(policy_objective, "sapo", tau_positive=1.0, tau_negative=2.0),
        *(partial(policy_objective, kind, **NUMBERS) for kind in ("double_sided", "dppo_tv")),
        partial(policy_objective, "dppo_kl", **NUMBERS),
    ):
        _, grad_BT, _, info = value_and_grad(loss, 1.0, logp_BT, logp_BT, adv_BT, mask_BT)
        assert_allclose(grad_BT, adv_BT * mask_BT, rtol=1e-6)
        assert_array_equal(info["ratio_BT"], np.ones_like(logp_BT))
        assert_array_equal(info["clipped_BT"], np.zeros_like(logp_BT))


def test_gspo_of_one_token_is_ppo():
    batch = random_batch(B=16, T=1)
    clip = {"clip_low": 0.2, "clip_high": 0.3}
    ours = value_and_grad(gspo, 1.0, *batch, **clip)
    ppo = value_and_grad(ppo_clip, 1.0, *batch, **clip)
    assert ppo[-1]["clipped_BT"].sum() > 0
    jax.tree.map(partial(assert_allclose, rtol=1e-6), ours, ppo)


def test_a_clipped_token_has_a_gradient_in_cispo_only():
    logp_BT, adv_BT, mask_BT = np.float32([[-1]]), np.float32([[1]]), np.float32([[1]])
    behavior_logp_BT = logp_BT - np.float32(np.log(3))  # rho = 3
    _, ppo_grad_BT, _, ppo_info = value_and_grad(
        ppo_clip, 1.0, logp_BT, behavior_logp_BT, adv_BT, mask_BT, clip_low=0.2, clip_high=0.2
    )
    _, cispo_grad_BT, _, cispo_info = value_and_grad(
        cispo, 1.0, logp_BT, behavior_logp_BT, adv_BT, mask_BT, is_cap=1.2
    )
    assert ppo_info["clipped_BT"] == cispo_info["clipped_BT"] == 1
    assert ppo_grad_BT == 0
    assert_allclose(cispo_grad_BT, [[1.2]], rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), clip_low=st.floats(0, 0.9), clip_high=st.floats(0, 2))
def test_ppo_is_a_lower_bound(seed, clip_low, clip_high):
    """min(rho A, ...) <= rho A for A of either sign, and equal to it inside the bounds."""
    batch = random_batch(seed)
    adv_BT, mask_BT = batch[2:]
    obj_BT, info = ppo_clip(*batch, clip_low=clip_low, clip_high=clip_high)
    free_BT = np.asarray(info["ratio_BT"]) * adv_BT * mask_BT
    assert (np.asarray(obj_BT) <= free_BT + 1e-6).all()
    inside_BT = (info["ratio_BT"] >= 1 - clip_low) & (info["ratio_BT"] <= 1 + clip_high)
    assert_allclose(np.asarray(obj_BT)[inside_BT], free_BT[inside_BT], rtol=1e-5, atol=1e-6)
    assert not np.asarray(info["clipped_BT"])[inside_BT].any()


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("kind", RATIOS)
def test_masked_entries_are_exactly_zero(kind, rubbish):
    """Whatever the arrays hold at masked entries, they neither count nor leak."""
    *arrays, mask_BT = random_batch()
    loss = partial(policy_objective, kind, **NUMBERS)
    clean = value_and_grad(loss, 1.0, *arrays, mask_BT)
    dirty_arrays = [np.where(mask_BT > 0, x_BT, np.float32(rubbish)) for x_BT in arrays]
    dirty = value_and_grad(loss, 1.0, *dirty_arrays, mask_BT)
    jax.tree.map(assert_array_equal, dirty, clean)
    _, grad_BT, obj_BT, info = dirty
    masked_BT = mask_BT == 0
    assert (grad_BT[masked_BT] == 0).all() and (obj_BT[masked_BT] == 0).all()
    assert (info["ratio_BT"][masked_BT] == 1).all() and (info["clipped_BT"][masked_BT] == 0).all()


@pytest.mark.parametrize("kind", RATIOS)
def test_extreme_ratios_stay_finite(kind):
    logp_BT = np.float32([[-1e-3, -500.0, -1e-3, -500.0]])
    behavior_logp_BT = np.float32([[-500.0, -1e-3, -500.0, -1e-3]])
    adv_BT, mask_BT = np.float32([[1, 1, -1, -1]]), np.ones((1, 4), np.float32)
    loss = partial(policy_objective, kind, **NUMBERS)
    value, grad_BT, *_ = value_and_grad(loss, 1.0, logp_BT, behavior_logp_BT, adv_BT, mask_BT)
    assert np.isfinite(value) and np.isfinite(grad_BT).all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kind", RATIOS)
def test_microbatches_add_and_padding_is_free(kind, aggregation):
    """Slices with the weights of the whole batch, and extra masked columns, change nothing."""
    batch = random_batch()
    prompt_B = np.arange(8) // 2
    loss = partial(policy_objective, kind, **NUMBERS)
    reduction = {"kind": aggregation, "length": 9}
    weight_BT = np.asarray(weights(batch[-1], prompt_B, **reduction))
    value, grad_BT, *_ = value_and_grad(loss, weight_BT, *batch)

    total = 0.0
    for rows in ([0, 5], [2, 3], [1, 6], [7, 4]):  # through groups, one slice wholly masked
        part = value_and_grad(loss, weight_BT[rows], *(x_BT[rows] for x_BT in batch))
        total += part[0]
        assert_allclose(part[1], grad_BT[np.array(rows)], rtol=1e-6)
    assert_allclose(total, value, rtol=1e-5)

    padded = [np.pad(x_BT, ((0, 0), (0, 3))) for x_BT in batch]
    padded_weight_BT = weights(padded[-1], prompt_B, **reduction)
    padded_value, padded_grad_BT, *_ = value_and_grad(loss, padded_weight_BT, *padded)
    assert_allclose(padded_value, value, rtol=1e-5)
    assert_allclose(padded_grad_BT, np.pad(grad_BT, ((0, 0), (0, 3))), rtol=1e-6)


@pytest.mark.parametrize("kind", RATIOS)
def test_strict_dtypes_and_traced_numbers(kind):
    """One compilation serves all numbers; float32 stays float32 without promotion."""
    batch = tuple(jnp.asarray(x_BT) for x_BT in random_batch())
    traces = []

    @jax.jit
    def step(numbers, *batch):
        traces.append(kind)
        return value_and_grad(partial(policy_objective, kind, **numbers), 1.0, *batch)

    for scale in (1.0, 0.5):
        numbers = {name: number * scale for name, number in NUMBERS.items()}
        plain = value_and_grad(partial(policy_objective, kind, **numbers), 1.0, *batch)
        with jax.numpy_dtype_promotion("strict"):
            traced = step({k: jnp.float32(v) for k, v in numbers.items()}, *batch)
            bool_mask = step.__wrapped__(numbers, *batch[:3], batch[3] > 0)
        assert {x.dtype for x in jax.tree.leaves(traced)} == {np.dtype("float32")}
        for other in (traced, bool_mask):
            jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-6), other, plain)
    assert len(traces) == 3  # once under jit, and twice called without it


def test_unknown_kind():
    with pytest.raises(KeyError, match="ppo"):
        policy_objective("ppo", LOGP, BEHAVIOR, ADV, MASK, **NUMBERS)
