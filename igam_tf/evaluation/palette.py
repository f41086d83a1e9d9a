"""Okabe and Ito's colours for all plots; they can be told apart with any common colour blindness."""

BLACK, GREY = "#000000", "#666666"
BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
