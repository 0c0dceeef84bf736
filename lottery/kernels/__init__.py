"""Arrays in, arrays out: select, pack, unpack, quantize; on a CPU and on a GPU."""
