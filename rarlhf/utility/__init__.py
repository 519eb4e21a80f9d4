"""What models can still do beside the task that they were tuned for."""
