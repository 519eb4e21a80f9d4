"""Risk-averse fine-tuning of language models (RA-RLHF, Chaudhary et al., NeurIPS 2024, arXiv 2501.06911)."""
