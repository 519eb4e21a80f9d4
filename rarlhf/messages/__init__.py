"""What a person reads while something runs: progress, diagnostics, Markdown; no result depends on it."""
