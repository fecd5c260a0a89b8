"""A short slice without atheris: the corpus, then mutations of it drawn from a seed."""

from collections.abc import Iterator
from itertools import islice
from random import Random

from tests.fuzz.corpus import read
from tests.fuzz.targets import Target

_BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def mutate(random: Random, corpus: list[bytes], max_bytes: int) -> bytes:
    """One new input: a kept one, changed, cut, joined with another, or nothing but noise."""
    data = bytearray(random.choice(corpus) if corpus and random.random() < 0.9 else b"")
    for _ in range(random.randint(1, 8)):
        at = random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0:
                data[at : at + 1] = bytes([random.choice(_BYTES)])
            case 1:
                data[at:at] = random.randbytes(random.randint(1, 32))
            case 2:
                del data[at : at + random.randint(1, 16)]
            case 3 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 4 if corpus:
                other = random.choice(corpus)
                data[at:] = other[random.randrange(len(other) + 1) :]
            case _:
                data += random.randbytes(random.randint(1, 64))
    return bytes(data[:max_bytes])


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """The target's corpus, then mutations without end."""
    corpus = read(target.corpus)
    yield from corpus
    random = Random(f"{target.name}/{seed}")
    while True:
        yield mutate(random, corpus, target.max_bytes)


def slice_of(target: Target, *, seed: int, at_least: int) -> int:
    """Runs the corpus and mutations of it, so many inputs in all, or the corpus if it has more.

    Returns:
        How many inputs were run. What is wrong raises, with the input in its message.
    """
    run = target.load()
    count = max(at_least, len(read(target.corpus)))
    for data in islice(inputs(target, seed), count):
        try:
            run(data)
        except Exception as err:
            raise AssertionError(f"{target.name}: input {data.hex()}") from err
    return count
