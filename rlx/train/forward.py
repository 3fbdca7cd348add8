"""The learner's forward pass: log-probabilities of a batch's completions, packed or not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.config import ModelConfig
from rlx.models import transformer
from rlx.objectives.logprobs import token_logprobs
from rlx.train import packing
from rlx.types import Batch


def completion_hidden(params, batch: Batch, model: ModelConfig):
    """(hidden_BTD, routed): the hidden state that predicts each completion token.

    The prompt runs once per group; token 0 is predicted by its last hidden state, token t by the
    hidden state of token t - 1. routed: the routing of completion tokens 0 .. T - 2; None without
    routers.
    """
    B, T = batch.completion_BT.shape
    length_P = batch.prompt_length_P
    hidden_PD, context = transformer.prefill(params, model, batch.prompt_PU, length_P)
    hidden_BTD = jnp.repeat(hidden_PD, B // length_P.shape[0], axis=0)[:, None]
    if T == 1:
        return hidden_BTD, None
    tokens_BT = batch.completion_BT[:, :-1]
    expert_BTLK = batch.expert_BTLK
    replay_LBTK = None if expert_BTLK is None else jnp.moveaxis(expert_BTLK[:, :-1], 2, 0)
    later_BTD, routed = transformer.extend(
        params, model, context, length_P, tokens_BT, routing=True, replay_LBTK=replay_LBTK
    )
    return jnp.concatenate([hidden_BTD, later_BTD], axis=1), routed


def _predictions(params, batch: Batch, model: ModelConfig):
    """(hidden_PND, token_PN, first_PGD, routed, to_BT): N hidden states per group, the tokens that
    they predict, and those of them that predict first tokens; `to_BT` maps [P, N] to [B, T].
    """
    P, (B, T) = len(batch.prompt_length_P), batch.completion_BT.shape
    G, D = B // P, model.d_model
    packed_PRt, completion_PGT = batch.packed_PRt, batch.completion_BT.reshape(P, G, T)
    if packed_PRt is None:
        hidden_BTD, routed = completion_hidden(params, batch, model)
        first_PGD, token_PN = hidden_BTD[:, 0].reshape(P, G, D), completion_PGT.reshape(P, G * T)
        to_BT = lambda x_PN: x_PN.reshape(B, T)  # noqa: E731
        return hidden_BTD.reshape(P, G * T, D), token_PN, first_PGD, routed, to_BT
    length_P, rows = batch.prompt_length_P, (P * packed_PRt.shape[1], T - 1)
    hidden_PD, context = transformer.prefill(params, model, batch.prompt_PU, length_P)
    token_Xt, offset_Xt = (x.reshape(rows) for x in packing.inputs(packed_PRt, completion_PGT))
    later_XtD, routed = transformer.extend(
        params, model, context, length_P, token_Xt, offset_Xt, routing=True
    )
    first_PGD = jnp.repeat(hidden_PD[:, None], G, axis=1)
    hidden_PND = jnp.concatenate([first_PGD, later_XtD.reshape(P, -1, D)], axis=1)
    back = jax.vmap(lambda x_Xt: packing.unpacked_inputs(packed_PRt, x_Xt, G))  # over layers
    to_BT = lambda x_PN: packing.unpacked(packed_PRt, x_PN, G).reshape(B, T)  # noqa: E731
    token_PN = packing.predicted(packed_PRt, completion_PGT)
    return hidden_PND, token_PN, first_PGD, jax.tree.map(back, routed), to_BT


def policy(
    params, batch: Batch, temperature, *, model: ModelConfig, mesh: Mesh, vocab_chunk: int = 0,
    head_dtype: str = "float32",
):  # fmt: skip
    """(logp_BT, entropy_BT, value_BT, first_BD, routed) of the completions; in nats.

    first: the hidden state that predicts the first token; values are 0 without a critic; routed:
    the routing (rlx.models.moe) of tokens 0 .. T - 2, None without experts.
    """
    predict = meshes.visible(mesh, _predictions)
    hidden_PND, token_PN, first_PGD, routed, to_BT = predict(params, batch, model)
    head_DV = meshes.visible(mesh, meshes.split)(transformer.head_matrix(params), None, "vocab")
    logp_N, entropy_N = token_logprobs(
        hidden_PND.reshape(-1, model.d_model),
        head_DV,
        token_PN.reshape(-1),
        temperature=temperature,
        vocab_chunk=vocab_chunk,
        head_dtype=jnp.dtype(head_dtype),
    )
    shape = token_PN.shape
    has_critic = "value" in params
    value_PN = transformer.values(params, hidden_PND) if has_critic else jnp.zeros(shape)
    parts = (logp_N.reshape(shape), entropy_N.reshape(shape), value_PN)
    return *map(to_BT, parts), first_PGD.reshape(-1, model.d_model), routed
