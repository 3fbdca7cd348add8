"""The names and colours that recipes have in figures of studies with many cells.

Recipes that share a colour never appear in the same panel of curves.
"""

from rlx.scaling.style import COLORS

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = COLORS

COLOR_OF = {
    # recipes
    **{"scalerl": BLUE, "cispo": BLUE, "minimax_m1": GREEN, "magistral": PINK},
    **{"qwen2_5_dapo": VERMILION, "deepseek_grpo": ORANGE},
    # losses
    **{"none": BLUE, "dapo_loss": VERMILION, "clip_wide": VERMILION, "clip_narrow": ORANGE},
    **{"gspo": GREEN, "gspo_small": PINK, "cap_4": PINK, "cap_8": ORANGE, "sapo": PINK},
    **{"double_sided": SKY, "dppo_tv": ORANGE, "dppo_kl": ORANGE, "gmpo": GREEN},
    **{"sequence_is": SKY, "sequence_mask": ORANGE, "geometric_is": GREEN, "geometric_mask": PINK},
    **{"clip_cov": PINK, "guarded": BLUE},
    # schedules
    **{"sync": GREEN, "off_policy_8": SKY, "pipeline_1": PINK},
    # prompts, aggregation, normalisation, precision
    **{"keep": PINK, "uniform": GREEN, "g8": PINK, "g32": ORANGE, "length_penalty": ORANGE},
    **{"sample_mean": PINK, "token_mean": GREEN, "prompt_norm": GREEN, "centered": ORANGE},
    **{"bf16_heads": GREEN},
    # a teacher
    **{"slower": SKY, "teacher_alone": GREEN, "teacher_beside": VERMILION},
    # lengths of answers, sizes of batches
    **{"11": BLUE, "16": BLUE, "9": GREEN, "8": ORANGE},
}
