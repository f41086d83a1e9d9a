"""Okabe and Ito's colours, told apart in every common kind of colour blindness, for every plot."""

BLACK, GREY = "#000000", "#666666"
BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
