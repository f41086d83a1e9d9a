"""`python -m igam_tf.figures`: the paper's Figures 1, 4, 6 and 7, and eq. 18, for any list of runs.

__main__    flags, models, folder
chosen      the names of the figures, and their settings
measuring   input gradients, alignment, the plane of two directions: numbers alone
drawing     numbers -> matplotlib figures
"""
