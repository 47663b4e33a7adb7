"""Side-by-side measurements: `sacfast benchmark`. Contenders take turns in every round."""
