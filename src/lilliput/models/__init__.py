"""Models, and what their tables of embeddings are called."""

TABLES = ("class_token", "distillation_token", "positions", "words")  # of a model that is to be a program
EMBEDDINGS = (*TABLES, "token_types")  # which a program has as a part of its positions
