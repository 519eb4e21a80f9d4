"""Speed and memory of the PPO engine, beside the last PPO of TRL."""
