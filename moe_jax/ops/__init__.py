"""Array programs without parameters: grouped matmul, permutation, expert feed-forward."""
