"""Options -> cells, or refusals; and what cells cost and plans promise before anything runs."""
