"""How responses are drawn from a model and by which rule; nothing here updates a weight."""
