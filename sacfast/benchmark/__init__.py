"""Side-by-side measurements: `sacfast benchmark`. Contenders take turns in one process, in every round."""
