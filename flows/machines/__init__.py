"""Stages on other machines, by Prefect's work pools: what a run asks for, what a machine refuses, what comes back."""
