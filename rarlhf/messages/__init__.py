"""What a person reads: progress, diagnostics and Markdown; no number depends on it."""
