"""How responses are drawn from a model; nothing here updates a weight."""
