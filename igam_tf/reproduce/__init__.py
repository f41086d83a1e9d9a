"""`python -m igam_tf.reproduce --table=...`: reproduces the paper's tables row by row.

tables.py      the published figures, and the flags of `igam_tf.train` for each row
aligning.py    cos(J_s, J_t) of the rows that were trained without a teacher
collecting.py  run folders -> figures with intervals, differences, minutes
seeds.py       the figures of several seeds -> those of their means
writing.py     figures -> Markdown, LaTeX, the plot over minutes
running.py     rows as processes, several at once
__main__.py    runs unfinished rows, then aligns, collects and writes
"""
