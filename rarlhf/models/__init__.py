"""Language models: weights, adapters, tokenizers and log-probabilities; nothing here draws a token or trains."""
