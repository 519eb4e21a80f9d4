"""PPO: rollouts, advantages, losses, the KL controller, checkpoints; models and data are arguments."""
