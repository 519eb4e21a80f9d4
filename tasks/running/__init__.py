"""What every stage shares: its command line, inputs, outputs and how it ends; no stage of its own."""
