"""The audit: is a network robust, or only hard to attack by gradients? See README.md beside this file.

__main__   the command: flags, models, folder
audited    the model under audit, its images and budget; the result of every attack per example
checks     what a check is: PASS, WARN, FAIL; when one attack counts as stronger than another
outputs    checks on logits and gradients, which need no attack
differences  whether the gradient is the function's own
attacking  checks that compare attacks
nested     networks inside the audited one, on which attacks are crafted
planted    the planted-boundary test
catalogue  all checks by name
catalogue  all checks by name; what the documentation says of each
audit      all checks in order, resumed where a killed audit stopped; headline and verdict
page       the report for terminal, Markdown and HTML, with `plots`
controls   networks with masked gradients, on which the checks must fail
"""
