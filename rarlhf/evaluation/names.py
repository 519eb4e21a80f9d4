"""Names of metrics that others show too; this module is cheap to import, unlike what computes them."""

COMPARED = ("reward_mean", "reward_prompt_tail", "reward_cvar_10", "kl_sft", "perplexity_reference")
