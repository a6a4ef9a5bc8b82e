"""OFT as a tuner on PEFT's host."""
