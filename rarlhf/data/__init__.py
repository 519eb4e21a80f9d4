"""Rows from any source, and queries made of them; nothing here runs a language model."""
