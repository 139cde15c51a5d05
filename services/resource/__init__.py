"""Memory and accelerator budgets, and who holds how much of them."""
