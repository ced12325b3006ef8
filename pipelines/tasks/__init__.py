"""Documents and how they are scored: perplexity, passkey, and any task of lm-eval."""
