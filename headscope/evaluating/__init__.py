"""How an evaluation is carried out: conditions, tasks, answers and their journals, tables."""
