"""Text that language models generate: opening what a user names, prompts in a chat template, strengths, decoding."""
