"""`python -m igam_tf.reproduce --table=...`: the paper's tables, run row by row, ours beside theirs.

tables.py      what the paper says, and the flags of `igam_tf.train` for each row
collecting.py  run folders -> figures with intervals, differences, minutes
writing.py     figures -> Markdown, LaTeX, the plot over minutes
__main__.py    runs what is not finished yet, then collects and writes
"""
