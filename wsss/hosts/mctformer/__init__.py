"""MCTformer: multi-class token transformer."""
