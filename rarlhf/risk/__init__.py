"""Risk measures, their schedule and the choice of hard prompts, as maths on tensors; nothing here knows a model."""
