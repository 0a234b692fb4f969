"""hello: the least that a function can do."""


def run(seed):
    greeting = f"hello, {seed}"
    return greeting.encode(), {"greeting": greeting}
