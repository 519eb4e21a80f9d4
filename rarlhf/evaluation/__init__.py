"""Measures of what the models write: rewards, tails, drift, diversity, perplexity, their intervals, and the report."""
