"""From text to a score: classifiers and Python functions; nothing here knows how a text came about."""
