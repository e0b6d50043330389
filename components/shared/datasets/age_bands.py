"""Age bands in whole years, used to balance splits and to report results."""

AGES = {"<18": (0, 17), "18–39": (18, 39), "40–64": (40, 64), "65+": (65, 200)}
