"""The stages: one small file each, which reads inputs, calls `rarlhf`, and writes outputs."""
