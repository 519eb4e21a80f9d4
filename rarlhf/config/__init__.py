"""Values of params.yaml, the rules between them, and errors that a user reads; imports no other room."""
