"""Scorers of texts: classifiers and Python functions; nothing here knows how a text was made."""
