"""Runs in MLflow: opened, sent in the background, and closed; nothing here decides anything or raises."""
