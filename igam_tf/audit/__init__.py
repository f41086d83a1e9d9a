"""The audit: is a network robust, or only hard to attack by gradients? See README.md beside this file.

__main__   the command: flags, models, folder
subject    what is audited, on which images, how hard; every attack's outcome per example
lines      PASS, WARN, FAIL; when one attack counts as stronger than another
outputs    lines on logits and gradients, which need no attack
attacking  lines that compare attacks
planted    the planted-boundary test
audit      all lines in order, resumed where a killed audit stopped; the headline
report     terminal, Markdown and HTML, with `plots`
controls   networks with masked gradients, to see the lines fail
"""
