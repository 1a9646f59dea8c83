"""placeholder"""


def load():
    return "not built yet"
