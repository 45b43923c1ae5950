"""Sends frames of known sizes into r0, follows /metrics meanwhile, and draws what it says: graph.py URL PICTURE.

Exits with 1 unless the sensor counted every frame that was sent, by size, and no byte more.
"""

import socket
import sys
import time
from itertools import pairwise
from urllib.request import urlopen

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from prometheus_client.parser import text_string_to_metric_families

URL, PICTURE = sys.argv[1:]
PHASES = ((60, 300), (1400, 200), (60, 100), (700, 250))  # (bytes, frames a second), two seconds each
UPPER = (64, 128, 256, 512, 1024, 2048, float("inf"))


def look():
    """Frames so far of each size, and their bytes; None before the first reading."""
    text = urlopen(URL, timeout=5).read().decode()
    family = {one.name: one for one in text_string_to_metric_families(text)}.get(
        "mapek_packet_sizes_size_bytes"
    )
    if family is None:
        return None
    upto = {float(one.labels["le"]): one.value for one in family.samples if "le" in one.labels}
    counts = [upto[bound] for bound in UPPER]
    (total,) = (one.value for one in family.samples if one.name.endswith("_sum"))
    return [counts[0], *(more - less for less, more in pairwise(counts))], total


def wait(until, seconds=30.0):
    """The first look of which `until` is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if (seen := look()) is not None and until(seen):
                return seen
        except OSError:
            pass  # the agent does not serve yet
        time.sleep(0.1)
    sys.exit("graph: the sensor does not say what was sent")


def frame(size):
    """An Ethernet frame of nobody's protocol."""
    return bytes.fromhex("0200000000b10200000000a188b5").ljust(size, b"\0")  # 0x88b5: for experiments


before, bytes_before = wait(lambda seen: True)
began = time.monotonic()
times, rates = [0.0], [[0.0] * len(UPPER)]
sent, last = dict.fromkeys(UPPER, 0), before


def note(seen):
    """A point of the graph, where the sensor was read since the last one: frames a second between the two."""
    global last
    if seen != last:
        now = time.monotonic() - began
        rates.append([(new - old) / (now - times[-1]) for old, new in zip(last, seen, strict=True)])
        times.append(now)
        last = seen


with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
    out.bind(("r0", 0))
    due = looked = time.monotonic()
    for size, rate in PHASES:
        for _ in range(2 * rate):
            out.send(frame(size))
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() - looked > 0.1:
                note(look()[0])
                looked = time.monotonic()
        sent[next(bound for bound in UPPER if size <= bound)] += 2 * rate

# The sensor is read once a second: the last frames show a little later.
wanted = [count + more for count, more in zip(before, sent.values(), strict=True)]
after, bytes_after = wait(lambda seen: seen[0] == wanted)
note(after)
ours = sum(2 * rate * size for size, rate in PHASES)
print(f"sent {sum(sent.values()):.0f} frames, counted {sum(after) - sum(before):.0f}")
print(f"sent {ours} bytes, counted {bytes_after - bytes_before:.0f}")

figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
labels = [f"to {bound:.0f} B" for bound in UPPER[:-1]] + ["longer"]
axes.stackplot(times, list(zip(*rates, strict=True)), labels=labels, step="pre")
axes.set(xlabel="seconds", ylabel="frames a second", title="Frames that arrive on l0, by size")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
figure.savefig(PICTURE, dpi=120)
sys.exit(bytes_after - bytes_before != ours)
