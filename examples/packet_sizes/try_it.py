"""The program on made-up frames, without any network: which length is counted where?"""

from pathlib import Path

from mapek.bpf import ObjectSpec, PerCpuArrayMap, load

EXPECTED = {14: 0, 64: 0, 65: 1, 128: 1, 129: 2, 1024: 4, 1514: 5, 2049: 6}
XDP_PASS = 2

with load(ObjectSpec.read(Path(__file__).with_name("packet_sizes.o"))) as loaded:
    program, sizes = loaded.programs["packet_sizes"], loaded.map("sizes", PerCpuArrayMap)
    for length, bucket in EXPECTED.items():
        before = sizes.summed()[1]
        assert program.test_run(bytes(length)).retval == XDP_PASS
        news = sizes.summed()[1] - before
        assert news[bucket].tolist() == [1, length], (length, news)
        assert news.sum() == 1 + length
    frame = bytes(1514)
    print(f"all in the right bucket, {program.test_run(frame, repeat=100_000).duration_ns} ns a packet")
